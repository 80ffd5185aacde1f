"""What ``ppl-llm check`` tries on a process reward model."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from .findings import Findings
from .plain_text import PlainText


class Pair(NamedTuple):
    """A problem with right first steps, a right and a wrong step after them, and a right one after that."""

    problem: str
    before: tuple[str, ...]
    good: str
    bad: str
    then: str


PAIRS = (
    Pair(
        "What is 12 + 30?",
        (),
        "To add 12 and 30, add the tens and then the ones: 12 + 30 = 42.",
        "To add 12 and 30, add the tens and then the ones: 12 + 30 = 52.",
        "The final answer is \\boxed{42}.",
    ),
    Pair(
        "Start with 10. First: increase it by 8. Second: take away 5. Third: take away 3. What is the final number?",
        ("First: 10 + 8 = 18",),
        "Second: 18 - 5 = 13",
        "Second: 18 * 5 = 90",
        "Third: 13 - 3 = 10",
    ),
)
"""Ordinary arithmetic, and what the models in this package know."""

_TOLERANCES = {"float32": 0.05, "float64": 0.05, "float16": 0.2, "bfloat16": 0.5}
"""Of log-odds that two ways through a model of this number format give."""
_MARGIN = 0.02
"""Of the probabilities of a right and a wrong step."""


class PRMChecks:
    """Tries a process reward model on known steps.

    :param prm: of any kind.
    :param Findings findings: where results go.
    """

    def __init__(self, prm: Any, findings: Findings) -> None:
        self.prm, self.findings = prm, findings
        self.remote = hasattr(prm, "client")

    def run(self) -> None:
        """All checks."""
        prm, form = self.prm, self.prm.format if self.remote else self.prm._format
        self.findings.add(
            "model", True, f"{prm!r}" if self.remote else f"{type(prm.model).__name__} with contexts of {prm.max_length} tokens"
        )
        ids = ", ".join(f"{text!r} is {i}" for text, i in form.ids.items())
        served = f", asked by /{prm.endpoint}" if self.remote else ""
        self.findings.add("family", True, f"{prm.family}{served}; token ids: {ids}")
        with self.findings.trying("scores"):
            self._known_steps()
            self._append_only()
            if self.remote:
                self._precision()

    def _known_steps(self) -> None:
        found = []
        for pair in PAIRS:
            began = time.perf_counter()
            scores = self.prm.step_log_odds(PlainText().context(pair.problem, [[*pair.before, pair.good], [*pair.before, pair.bad]]))[:, -1]
            good, bad = scores.sigmoid().tolist()
            found.append((good - bad, f"{good:.2f} for {pair.good!r}, {bad:.2f} for {pair.bad!r} ({time.perf_counter() - began:.2f} s)"))
        margin, detail = max(found)
        remedy = "a reward model prefers right steps: wrong family or token ids (--family), a wrong tokenizer, or no reward model"
        self.findings.add("known steps", margin > _MARGIN, detail, "" if margin > _MARGIN else remedy)

    def _append_only(self) -> None:
        """The score of a step must not change when another one follows."""
        pair = PAIRS[0]
        alone = self.prm.step_log_odds(PlainText().context(pair.problem, [[pair.good]]))[0, 0]
        followed = self.prm.step_log_odds(PlainText().context(pair.problem, [[pair.good, pair.then]]))[0, 0]
        gap = abs(float(alone - followed))
        dtype = "" if self.remote else str(next(self.prm.model.parameters()).dtype).removeprefix("torch.")
        kept = gap < _TOLERANCES.get(dtype, _TOLERANCES["bfloat16"])
        remedy = "" if kept else "the model looks ahead or the format changes what was written; its scores cannot be kept"
        self.findings.add("earlier scores", kept, f"change by {gap:.1e} when a step follows", remedy)

    def _precision(self) -> None:
        probabilities = getattr(self.prm.scorer, "gives_probabilities", None)
        if probabilities is None:
            self.findings.add("precision", True, "log-odds from log-probabilities of the two tokens")
        elif probabilities:
            remedy = "vLLM gives raw outputs for use_activation=false; beyond log-odds of 16 probabilities are 0 or 1"
            self.findings.add("precision", None, "log-odds from probabilities", remedy)
        else:
            self.findings.add("precision", True, "log-odds from raw outputs")
