"""Votes by the language model's own confidence, and solutions that are cut where it is lost."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..context import Context
from ..inference import ParticlePosterior, SearchPosterior, SelfConsistency
from ..inference.cost import CostMeter
from ..inference.errors import attach_partial
from ..inference.particles.weights import Weights
from ..inference.posterior.chain_posterior import pooled_particles
from ..inference.util.checked import checked
from ..inference.util.validation import check_count
from .models import ReasoningModel
from .plain import check_plain

_ROUNDING = 1e-5
"""Relative error of a confidence from logits in float32. Solutions often begin alike, and have their least sure window there."""

LEAST = 1e-300
"""The vote of a confidence of 0: of no difference but where nobody is sure at all."""

_REASON = "its votes are the confidences of the surest solutions, which do not estimate the model's posterior"


def surest(confidence: Tensor, eta: float) -> Tensor:
    """The share ``eta`` of the surest of each population, at least one and rounded up, and those that are as sure as the last of them.

    :param Tensor confidence: ``[N, *plates]``.
    """
    number = max(1, math.ceil(eta * len(confidence) - 1e-9))
    return confidence >= confidence.sort(0, descending=True).values[number - 1]


class TwoBatches(SearchPosterior):
    """The initial solutions and the others, each with steps of their own."""

    part_name: ClassVar[str] = "batch"


class CutModel(ReasoningModel):
    """A reasoning model whose solutions are finished where a confidence falls below its threshold.

    :param cutting: a :class:`~ppl_llm.Confidence` with a threshold.
    """

    def __init__(self, model: ReasoningModel, cutting: Any) -> None:
        vars(self).update(vars(model))
        self.cutting = cutting

    def written(self, ctx: Context, name: str) -> Context:
        after = super().written(ctx, name)
        return replace(after, done=after.done | self.cut(after))

    def cut(self, ctx: Context) -> Tensor:
        """``[*batch]``: solutions that were cut."""
        below: Tensor = self.cutting.step_log_odds(ctx)[..., -1] == -torch.inf
        return below


class DeepConf:
    """A vote among the surest of N independent solutions, each with its confidence: *Deep Think with Confidence*, Yichao Fu et al. (2025),
    arXiv 2508.15260.

    Offline, all solutions are written to their ends, and the share ``eta`` of them votes that the language model was surest of. Online,
    with ``initial``, so many are written first; the least confidence of the surest ``eta`` of them is the threshold below which all others
    are cut where they fall below it, and those that are left vote.

    The reward of the model is not asked. The online cut as a target of its own, with an evidence, is the reward
    ``Confidence(..., threshold=...)``.

    :param ReasoningModel model: with a confidence: ``reasoning(lm, confidence=Confidence("top-k", window=2048, over="bottom"))``.
    :param int num_particles: N, the initial ones included.
    :param float eta: share of the solutions that vote; 0.1 and 0.9 in the paper.
    :param int initial: solutions that set the threshold; 0 cuts none.
    :param int max_plate_nesting: 1 for a list of problems, each of which has a threshold of its own.
    :param callback: called with the solutions so far after each step.
    :raises ValueError: for numbers out of range, a model without a confidence or with a power, or, with ``initial``, one that is not of
        :func:`~ppl_llm.reasoning` itself.
    """

    @checked
    def __init__(
        self,
        model: ReasoningModel,
        num_particles: int,
        *,
        eta: float = 0.1,
        initial: int = 0,
        max_plate_nesting: int = 0,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        check_count("num_particles", num_particles)
        check_count("initial", initial, 0)
        check_count("max_plate_nesting", max_plate_nesting, 0)
        if not 0 < eta <= 1:
            raise ValueError(f"eta must lie in (0, 1], got {eta!r}")
        if initial >= num_particles:
            raise ValueError(f"initial must be less than num_particles = {num_particles}, got {initial}: the others are cut by it")
        if model.confidence is None:
            raise ValueError(
                'the model keeps no confidence: give reasoning(..., confidence=Confidence("top-k", window=2048, over="bottom"))'
            )
        if model.power != 1:
            raise ValueError(f"DeepConf votes with solutions as the language model writes them, and the model has the power {model.power}")
        if initial:
            check_plain(model, "DeepConf with initial solutions")
        self.model, self.num_particles, self.eta, self.initial = copy.copy(model), num_particles, eta, initial
        self.model.prm = None
        self.options: dict[str, Any] = {"max_plate_nesting": max_plate_nesting, "callback": callback}

    @torch.no_grad()
    def run(self, problem: Any) -> SearchPosterior:
        """Write and vote. An exception in the middle, Ctrl-C included, carries the votes of the initial solutions, as far as they were
        written, as ``partial_posterior``."""
        began, found = time.perf_counter(), None
        with CostMeter() as meter:
            try:
                found = self._written(problem, self.model, self.initial or self.num_particles)
                result = self._concluded(found) if not self.initial else self._online(problem, found)
            except BaseException as error:
                begun: ParticlePosterior | None = getattr(error, "partial_posterior", None) if found is None else found
                attach_partial(error, lambda: None if begun is None else self._concluded(begun))
                if error.partial_posterior is not None:  # type: ignore[attr-defined]
                    error.partial_posterior.cost = {**meter.totals, "seconds": time.perf_counter() - began}  # type: ignore[attr-defined]
                raise
        result.cost = {**meter.totals, "seconds": time.perf_counter() - began}
        return result

    def _written(self, problem: Any, model: ReasoningModel, number: int) -> ParticlePosterior:
        return SelfConsistency(model, number, **self.options).run(problem)

    def _confidence(self, found: ParticlePosterior) -> Tensor:
        """Of each solution, ``[N, *plates]``."""
        assert self.model.confidence is not None
        weights: Tensor = found.particles.weights.log_weights
        return self.model.confidence.of(found.value).cpu().expand_as(weights)

    def threshold(self, confidence: Tensor) -> Tensor:
        """The least confidence of the surest, ``[*plates]``, less what rounding may take from one that is the same in another batch.

        :param Tensor confidence: ``[N, *plates]`` of the initial solutions.
        """
        return torch.where(surest(confidence, self.eta), confidence, torch.inf).amin(0) * (1 - _ROUNDING)

    def _online(self, problem: Any, first: ParticlePosterior) -> SearchPosterior:
        sure = self._confidence(first)
        threshold = self.threshold(sure)
        model = CutModel(self.model, self.model.confidence.cutting(threshold))  # type: ignore[union-attr]
        rest = self._written(problem, model, self.num_particles - self.initial)
        others = self._confidence(rest)
        log_weights = [
            _votes(sure, sure >= threshold),
            _votes(others, ~model.cut(rest.value).cpu().expand_as(others)),
        ]
        scores = torch.cat([sure, others])
        particles = pooled_particles([first, rest], log_weights)
        result = TwoBatches(particles, scores=scores, method="DeepConf", reason=_REASON, decisive=True)
        result.parts = [first, rest]  # which may have taken another number of steps
        return result

    def _concluded(self, found: ParticlePosterior) -> SearchPosterior:
        sure = self._confidence(found)
        weights = Weights(_votes(sure, surest(sure, self.eta)))
        result = SearchPosterior.of(found, weights, scores=sure, method="DeepConf", reason=_REASON, decisive=True)
        result.additive = False  # one more solution changes which are the surest
        return result


def _votes(confidence: Tensor, kept: Tensor) -> Tensor:
    """Log-weights: the confidence of those that are kept, and none of the others."""
    return torch.where(kept, confidence.clamp(LEAST, 1e300).log(), -torch.inf)
