"""Accuracy against how long solutions think, from records."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from . import figures
from .aggregators import Candidate
from .intervals import proportion
from .page import Plot, Rows, Section, Table
from .results import Results
from .tables import accuracy_cell, interval

THINKING = "Thinking: tokens (10 %, 50 % and 90 % quantile; the most) and waits of a solution, and what closed it"
BY_LENGTH = "Accuracy of single samples by how long they think, in quarters of all samples"
NEVER_CLOSED = (
    ". Most solutions never closed their thinking, and so have no answer: close it for them (--max-thinking), give the model's own tag "
    "(--close), or leave these options out if it does not think first"
)
_QUARTERS = 4


def thinking_rows(results: Results) -> Rows:
    """Each method at each budget: how long its solutions think, and how many of its answers are right."""
    rows = [["thinking, budget", "solutions", "tokens of thinking", "waits", "closed at the bound", "never closed", "accuracy"]]
    for (method, budget), cells in results.by_key.items():
        thoughts = [c["thinking"] for record in cells.values() for c in record.get("candidates", ()) if "thinking" in c]
        if not thoughts:
            continue
        tokens = [thought["tokens"] for thought in thoughts]
        low, middle, high = np.quantile(tokens, [0.1, 0.5, 0.9])
        share = {by: sum(thought["closed"] == by for thought in thoughts) / len(thoughts) for by in ("bound", None)}
        rows.append(
            [
                f"{method}, {budget}",
                str(len(thoughts)),
                f"{np.mean(tokens):.1f} ({low:.0f}, {middle:.0f}, {high:.0f}; {max(tokens)})",
                f"{np.mean([thought['waits'] for thought in thoughts]):.2f}",
                f"{share['bound']:.1%}",
                f"{share[None]:.1%}",
                accuracy_cell(results, method, budget),
            ]
        )
    return rows


def length_rows(results: Results) -> Rows:
    """Accuracy of the independent samples in quarters of their tokens of thinking."""
    rows = [["tokens of thinking", "samples", "accuracy of a sample"]]
    pools = {problem: [c for c in pool if c.thinking is not None] for (problem, _), pool in results.samples.items()}
    tokens = sorted(c.thinking.tokens for pool in pools.values() for c in pool if c.thinking is not None)
    if not tokens:
        return rows
    bounds = np.unique(np.quantile(tokens, np.linspace(0, 1, _QUARTERS + 1)))
    for k, (low, high) in enumerate(itertools.pairwise(bounds)):
        last = k + 2 == len(bounds)

        def within(candidate: Candidate, low: float = low, high: float = high, last: bool = last) -> bool:
            thought = candidate.thinking
            return thought is not None and low <= thought.tokens and (thought.tokens < high or (last and thought.tokens == high))

        def right(problem: str, pool: Sequence[Candidate], within=within) -> float:  # type: ignore[no-untyped-def]
            found = [results.is_right(problem, c.answer) for c in pool if within(c)]
            return sum(found) / len(found) if found else math.nan

        number = sum(within(c) for pool in results.samples.values() for c in pool)
        table = results.over_samples(right)[..., 0]
        rows.append([f"{math.ceil(low)} to {math.floor(high) if last else math.ceil(high) - 1}", str(number), interval(proportion(table))])
    if len(bounds) == 1:
        table = results.over_samples(lambda problem, pool: float(np.mean(results.right(problem, pool))))[..., 0]
        rows.append([f"{bounds[0]:.0f}", str(len(tokens)), interval(proportion(table))])
    return rows


def thinking_tables(results: Results) -> list[tuple[str, Rows]]:
    """Titles and tables, where solutions think."""
    candidates = [c for cells in results.by_key.values() for record in cells.values() for c in record.get("candidates", ())]
    thoughts = [c["thinking"] for c in candidates if "thinking" in c]
    never = sum(thought["closed"] is None for thought in thoughts)
    words = THINKING + (NEVER_CLOSED if never > len(thoughts) / 2 else "")
    found = [(words, thinking_rows(results)), (BY_LENGTH, length_rows(results))]
    return [(title, rows) for title, rows in found if len(rows) > 1]


def thinking_sections(results: Results) -> list[Section]:
    """Accuracy against tokens of thinking, where solutions think."""
    tables = thinking_tables(results)
    if not tables:
        return []
    words = "Accuracies against the tokens of thinking of all solutions to a problem; the tables have the numbers."
    name = "Accuracy against tokens of thinking"
    plot = Plot("accuracy-against-thinking", name, words, figures.scaling(results, "thinking_tokens"))
    return [Section("Thinking", "", [plot, *(Table(f"{title}.", rows) for title, rows in tables)])]
