"""A posterior as one HTML file without network access, libraries or scripts other than this package's."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import math
from collections.abc import Hashable
from importlib.resources import files
from typing import Any

from torch import Tensor

from ..posterior.discrete_marginal import DiscreteMarginal
from ..posterior.equivalence_classes import Equivalent, alike
from .explain import explain
from .genealogy import Answer, Describe, Genealogy
from .populations import Population, populations
from .viewable import Viewable

MOST_POPULATIONS = 100
MOST_NODES = 20_000
_DIGITS = 5
_SCRIPTS = ("model.js", "drawing.js", "panel.js")
"""Parts of one script."""


def page(
    posterior: Viewable,
    *,
    title: str | None = None,
    describe: Describe | None = None,
    answer: Answer | None = None,
    equivalent: Equivalent | None = None,
) -> str:
    """The file's text. Arguments as for :meth:`~ppl_llm.inference.ParticlePosterior.to_html`."""
    found = populations(posterior)
    shown = found[-MOST_POPULATIONS:] if posterior.iterations else found[:MOST_POPULATIONS]
    title = title or type(posterior).__name__
    data = {
        "title": title,
        "note": _note(posterior, len(shown), len(found)),
        "event": "resampled" if posterior.estimates_posterior else "selected",
        "unit": "stage" if posterior.unit == "stage" else "step",
        "explanations": _explanations(posterior, describe, answer, equivalent),
        "populations": [_population(each, describe, answer, equivalent) for each in shown],
    }
    style, scripts = _asset("viewer.css"), "\n".join(map(_asset, _SCRIPTS))
    script = f'"use strict";\n(() => {{\n{scripts}}})();\n'
    policy = f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{_asset('viewer.html')}"
        f'<script type="application/json" id="data">{embedded(data)}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def embedded(data: Any) -> str:
    """JSON that no HTML parser can take for markup."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _note(posterior: Viewable, shown: int, total: int) -> str:
    notes = [] if posterior.complete else ["The run was stopped before the model came to its end."]
    if shown < total:
        notes.append(f"{shown} of {total} populations are shown.")
    if len(posterior.parts) < len(posterior.iterations):
        notes.append("Iterations that kept the state of the one before are shown once.")
    return " ".join(notes)


def _explanations(
    posterior: Viewable, describe: Describe | None, answer: Answer | None, equivalent: Equivalent | None
) -> dict[str, list[str]]:
    """By problem, for a model that gives answers."""
    first = posterior.particle((0,) * (posterior.particles.nesting + 1))
    if answer is None and not callable(getattr(first, "answers", None)):
        return {}
    plates = list(itertools.product(*map(range, posterior.log_weights.shape[1:])))[:MOST_POPULATIONS]
    told = {_key(plate): explain(posterior, plate, describe=describe, answer=answer, equivalent=equivalent) for plate in plates}
    return {key: each.lines for key, each in told.items()}


def _key(plate: tuple[int, ...]) -> str:
    return ",".join(map(str, plate))


def _population(population: Population, describe: Describe | None, answer: Answer | None, equivalent: Equivalent | None) -> dict[str, Any]:
    posterior = population.posterior
    nodes = posterior.num_particles * max(1, len(posterior.history.records))
    if nodes > MOST_NODES:
        raise ValueError(
            f"{posterior.num_particles} particles x {len(posterior.history.records)} steps are too many to draw one by one (at most "
            f"{MOST_NODES} in all); run fewer particles, or use to_dataframe(steps=True)"
        )
    found = Genealogy.of(population, describe, answer).trimmed()
    first = posterior.particle((0, *population.index))
    problem = getattr(first, "problem", None)
    texts: dict[str, int] = {}
    columns = []
    normalized, idle, rows = found.normalized, found.finished_before, found.rows
    for c in range(found.num_columns):
        columns.append(
            {
                "ess": _number(found.ess[c]),
                "resampled": bool(found.resampled[c]),
                "evidence": None if found.log_evidence is None else _number(found.log_evidence[c]),
                "parent": found.parents[c - 1].tolist() if c else None,
                "row": rows[c].tolist(),
                "weight": _numbers(normalized[c]),
                "factor": _numbers(found.log_factors[c]),
                "score": _numbers(found.scores[c]),
                "idle": idle[c].int().tolist(),
                "text": [texts.setdefault(text, len(texts)) for text in found.texts[c]],
            }
        )
    answers, index = _answers(found.answers, found.weights.tolist(), equivalent)
    return {
        "label": population.label,
        "explained": _key(population.plate),
        "problem": problem if isinstance(problem, str) else None,
        "evidence": None if not population.evidence else _number(population.own(posterior.particles.weights.log_mean)),
        "columns": columns,
        "texts": list(texts),
        "answers": answers,
        "last": {
            "column": found.column.tolist(),
            "particle": found.particle.tolist(),
            "row": found.last_rows.tolist(),
            "weight": _numbers(found.weights),
            "answer": index,
            "text": found.last_texts,
        },
    }


def _answers(given: list[Hashable] | None, weights: list[float], equivalent: Equivalent | None) -> tuple[list[Any], list[int]]:
    """The distinct answers with their probabilities, and the number of each particle's."""
    if given is None:
        return [], []
    given = alike(given, equivalent)
    mass = dict.fromkeys(given, 0.0) | DiscreteMarginal(zip(given, weights, strict=True)).probs
    ordered = sorted(mass, key=lambda each: -mass[each])
    number = {each: i for i, each in enumerate(ordered)}
    return [[None if each is None else str(each), _number(mass[each])] for each in ordered], [number[each] for each in given]


def _numbers(tensor: Tensor) -> list[float | None]:
    return [_number(value) for value in tensor.tolist()]


def _number(value: Any) -> float | None:
    """For JSON: a few digits; ``None`` for nan, a very large number for infinity."""
    value = float(value)
    if math.isnan(value):
        return None
    return math.copysign(1e300, value) if math.isinf(value) else float(f"{value:.{_DIGITS}g}")
