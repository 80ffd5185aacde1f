"""The networks of the study, loaded once in each process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ppl_llm import reasoning
from ppl_llm.demo.problems import held_out
from ppl_llm.inference import Importance
from ppl_llm.programs.models import ReasoningModel
from ppl_llm.reward.base import RewardModel
from ppl_llm.reward.calibration import CalibratedReward, Calibration

from .cached_reward import CachedReward
from .settings import Setting
from .synthetic import Errors, SyntheticReward, labels
from .table_lm import TableLM
from .table_prm import TablePRM

LIMITS = {"max_steps": 16, "max_tokens": 64}
_SAMPLES = 8
"""Solutions of each problem that calibrations are fitted on, and that reward models are measured on."""


class Networks:
    """The language model and every reward model asked for, each with what it has computed so far."""

    def __init__(self) -> None:
        self.lm = TableLM.from_pretrained("demo")
        self._prms: dict[str | Errors, CachedReward] = {}
        self._fitted: dict[str | Errors, Calibration] = {}

    def forget(self) -> None:
        """Free the memory that earlier problems took."""
        self.lm.forget()
        for prm in self._prms.values():
            prm.forget()

    def model(self, setting: Setting) -> ReasoningModel:
        """The Pyro program of a setting."""
        if setting.prm is None:
            return reasoning(self.lm, None, temperature=setting.temperature, **LIMITS)  # type: ignore[arg-type]
        prm: RewardModel = self._prm(setting.prm)
        if setting.calibration == "fitted":
            prm = CalibratedReward(prm, self.calibration(setting.prm))
        elif setting.calibration is not None:
            prm = CalibratedReward(prm, Calibration(*setting.calibration))  # type: ignore[misc]
        return reasoning(self.lm, prm, temperature=setting.temperature, **LIMITS)  # type: ignore[arg-type]

    def calibration(self, prm: str | Errors) -> Calibration:
        """Fitted on steps of solutions to problems of the validation split."""
        if prm not in self._fitted:
            problems = [problem.text for problem in held_out(60, split="validation")]
            scored = steps_and_scores(reasoning(self.lm, self._prm(prm), **LIMITS), problems)  # type: ignore[arg-type]
            flat = [(z, right) for solutions in scored for rights, log_odds in solutions for z, right in zip(log_odds, rights, strict=True)]
            self._fitted[prm] = Calibration.fit(torch.tensor([z for z, _ in flat]), torch.tensor([float(right) for _, right in flat]))
        return self._fitted[prm]

    def _prm(self, which: str | Errors) -> CachedReward:
        if which not in self._prms:
            inner: Any = SyntheticReward(which) if isinstance(which, Errors) else TablePRM.from_pretrained(which)
            self._prms[which] = CachedReward(inner)
        return self._prms[which]


@torch.no_grad()
def steps_and_scores(model: ReasoningModel, problems: Sequence[str]) -> list[list[tuple[list[bool], list[float]]]]:
    """Of each problem, for some independent solutions: the labels of their steps by the checker, and their log-odds.

    Draws from torch's generator.
    """
    context = Importance(model, _SAMPLES, max_plate_nesting=1).run(list(problems)).value
    scores = model.prm.step_log_odds(context)
    found = []
    for p, problem in enumerate(problems):
        particles = context.select_plate(1, p)
        found.append([(labels(problem, steps), scores[n, p, : len(steps)].tolist()) for n, steps in enumerate(particles.steps)])
    return found
