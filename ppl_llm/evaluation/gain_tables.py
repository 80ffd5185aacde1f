"""What a run's records say of gains, rankings, abstention and steps, as rows of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .aggregators import Candidate, log_score
from .diagnostics import THRESHOLD, counts, labelled, scored, with_posterior
from .drawing import figure, legend_beside, style
from .gains import arise, fit_saturation, utility_of_samples
from .intervals import Interval, bootstrap, mean_over_problems, proportion
from .metrics import auroc
from .page import Rows
from .results import SCORES, Results
from .risk import pass_until, risk_coverage, saturation
from .tables import interval, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PENALTIES = (0.0, 1.0, 4.0)
"""Of an accepted wrong answer, in units of a right one."""
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
"""Probabilities below which a method abstains."""
GAIN = 0.01
"""A sample that gains less accuracy is not worth it."""
RIGHT_SAMPLES = 2
"""After which PassUntil stops."""


def arise_rows(results: Results) -> Rows:
    """ARISE of every method with two budgets, and how much of it are gains and losses of accuracy."""
    rows = [["ARISE", "budgets", "ARISE", "accuracy gained", "accuracy lost"]]
    for method in results.methods:
        budgets = results.budgets(method)
        if len(budgets) < 2:
            continue
        correct = np.stack([results.table(method, budget) for budget in budgets], -1)
        tokens = np.stack([results.table(method, b, lambda r: float(r["cost"].get("tokens_sampled", math.nan))) for b in budgets], -1)
        if np.isnan(tokens).all():
            continue
        change = np.diff(correct, axis=-1)
        found = bootstrap(arise(correct, np.where(tokens > 0, tokens, math.nan)))
        up, down = (mean_over_problems(np.where(np.isnan(change), np.nan, np.clip(s * change, 0, None)).sum(-1)) for s in (1, -1))
        rows.append([labelled(method, results.least_evaluated(method)), _span(budgets), signed(found), f"{up:.3f}", f"{down:.3f}"])
    return rows


def _span(budgets: Sequence[int]) -> str:
    return ", ".join(map(str, budgets))


def utility_rows(results: Results) -> Rows:
    """Utility of sampling until the reward accepts, by the most attempts and the penalty of a wrong answer."""
    ks = counts(results)
    rows = [[labelled("score, penalty", results.sampled()), *map(str, ks)]]
    for aggregation in SCORES:
        for penalty in PENALTIES:
            cells = [bootstrap(_utilities(results, aggregation, k, penalty)) for k in ks]
            if not all(math.isnan(cell.value) for cell in cells):
                rows.append([f"{aggregation}, {penalty:g}", *map(signed, cells)])
    return rows


def _utilities(results: Results, aggregation: str, k: int, penalty: float) -> NDArray[np.float64]:
    def measure(problem: str, pool: Sequence[Candidate]) -> float:
        if len(pool) < k or not scored(pool, aggregation):
            return math.nan
        right = results.right(problem, pool)
        accepted = [c.answer is not None and log_score(c, aggregation) >= math.log(THRESHOLD) for c in pool]
        hits = sum(a and r for a, r in zip(accepted, right, strict=True))
        return utility_of_samples(len(pool), hits, sum(accepted) - hits, k, penalty)

    return results.over_samples(measure)


def ranking_rows(results: Results) -> Rows:
    """How often a right sample ranks above a wrong one, by each score and by its length: over all samples, and within problems."""
    rows = [[labelled("ranked by", results.sampled()), "AUROC", "within problems"]]
    ranks = {name: (lambda c, name=name: log_score(c, name)) for name in SCORES} | {
        "shorter solution": lambda c: -float(c.tokens),
        "probability under the language model": lambda c: math.nan if c.log_prob is None else c.log_prob,
    }
    for name, rank in ranks.items():
        pools = [(problem, pool) for (problem, _), pool in results.samples.items() if name not in SCORES or scored(pool, name)]
        values = [(float(rank(c)), right) for problem, pool in pools for c, right in zip(pool, results.right(problem, pool), strict=True)]
        if not values or any(math.isnan(value) for value, _ in values):
            continue
        within = [auroc([rank(c) for c in pool], results.right(problem, pool)) for problem, pool in pools]
        known = [each for each in within if not math.isnan(each)]
        rows.append([name, _number(auroc(*zip(*values, strict=True))), _number(float(np.mean(known)) if known else math.nan)])
    return rows


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def confidences(results: Results) -> dict[str, tuple[list[float], list[bool]]]:
    """Of each method with a posterior, at its largest budget: the probability of each answer given, and whether it is right; no answer has
    probability 0."""
    found = {}
    for method in with_posterior(results):
        records = results.by_key[method, results.budgets(method)[-1]].values()
        sure = [0.0 if r["answer"] is None else float(r["answers"].get(str(r["answer"]), 0.0)) for r in records]
        found[method] = (sure, [bool(r["correct"]) for r in records])
    return found


def abstention_rows(results: Results) -> Rows:
    """Share answered, and accuracy of what is answered, where less probable answers are not given; and the area under the curve."""
    rows = [["abstain below", "AURC", "always answered", *(f"{t:g}" for t in THRESHOLDS)]]
    for method, (sure, right) in confidences(results).items():
        cells = [f"1.00 answered, {np.mean(right):.3f} right"]
        for threshold in THRESHOLDS:
            given = [hit for p, hit in zip(sure, right, strict=True) if p >= threshold]
            cells.append(f"{len(given) / len(right):.2f} answered" + (f", {np.mean(given):.3f} right" if given else ""))
        key = method, results.budgets(method)[-1]
        rows.append([labelled(f"{method}, {key[1]}", results.evaluated(key)), f"{risk_coverage(sure, right).area:.3f}", *cells])
    return rows


def risk_figure(results: Results) -> Figure:
    """Share of wrong answers against the share of problems that are answered."""
    drawn, axes = figure()
    for i, (method, (sure, right)) in enumerate(confidences(results).items()):
        curve = risk_coverage(sure, right)
        axes.plot(curve.coverage, curve.risk, label=method, **{**style(i), "marker": "."})
    axes.set_xlim(0, 1.02)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("share of problems answered")
    axes.set_ylabel("share of wrong answers among them")
    legend_beside(drawn)
    return drawn


def wrong_step_rows(results: Results) -> Rows:
    """Right answers by wrong steps: of each method with recorded candidates at its largest budget, where the task checks steps."""
    rows = [["steps behind right answers, budget", "right answers", "with a wrong step", "wrong steps of each"]]
    for method in results.methods:
        budget = results.budgets(method)[-1]
        table = np.full((len(results.problems), len(results.seeds)), math.nan)
        wrong: list[int] = []
        for i, problem in enumerate(results.problems):
            for j, seed in enumerate(results.seeds):
                given = results.by_key[method, budget].get((problem, seed), {}).get("candidates", ())
                own = [c["wrong_steps"] for c in given if "wrong_steps" in c and results.is_right(problem, c["answer"])]
                wrong += own
                if own:
                    table[i, j] = float(np.mean([n > 0 for n in own]))
        if wrong:
            rows.append([f"{method}, {budget}", f"{len(wrong):,}", interval(proportion(table)), f"{np.mean(wrong):.2f}"])
    return rows


def repeated_words(results: Results, ks: Sequence[int], voted: Sequence[Interval]) -> str:
    """Where a majority of more samples gains little, and PassUntil, in words."""
    words = []
    try:
        fitted = fit_saturation(ks, [each.value for each in voted])
        number = saturation(fitted.ceiling, fitted.chance, GAIN)
        words.append(
            f"maj@k fits {fitted.ceiling:.3f} (1 - (1 - {fitted.chance:.3f})^k) (TTSPM): from {number} samples on one more gains less than "
            f"{GAIN:g}"
        )
    except ValueError:
        pass
    until = []
    for (problem, _), pool in results.samples.items():
        places = [n for n, right in enumerate(results.right(problem, pool), 1) if right][:RIGHT_SAMPLES]
        if len(places) == RIGHT_SAMPLES:
            until.append(pass_until(RIGHT_SAMPLES, places[-1]))
    if until:
        words.append(
            f"PassUntil, which stops at {RIGHT_SAMPLES} right samples, estimates pass@1 as {np.mean(until):.3f} on average over the "
            f"{len(until)} of {len(results.samples)} pools that have as many"
        )
    return "; ".join(words) + "." if words else ""
