"""The best of the frequent answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..handlers.candidate_messenger import CandidateMessenger
from ..posterior.equivalence_classes import Equivalent
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from ..util.checked import checked
from ..util.validation import check_count
from .base import Search
from .by_answer import answer_function, only, with_weights_of_answers

_REASON = "it keeps the best candidates of frequent answers, whose weights do not estimate the evidence"


class BestOfMajority(Search):
    """N independent executions; of the answers that are frequent enough, the k with the highest rewards [1].

    The reward of an answer is the highest product of the model's factors among its candidates. Only the best candidate of each of the k
    answers has a weight, its reward: ``list(posterior.answers())`` are the answers, best first. Where none is frequent enough all are
    taken.

    :param model: as for :class:`SMC`; barriers do nothing.
    :param int num_particles: N.
    :param int k: answers that may be submitted.
    :param float frequency: least share of the candidates that an answer must have (alpha).
    :param answer: of what the model returned for a particle; by default what its method ``answers()`` gives.
    :param equivalent: pools answers that count as the same.
    :param int max_plate_nesting: as for :class:`SMC`.
    :param callback: called with the posterior so far after each barrier, in which every candidate has its own weight.
    :raises ValueError: for arguments out of range.

    References

    [1] *Best-of-Majority: Minimax-Optimal Strategy for Pass@k Inference Scaling*, Qiwei Di et al. (2025).
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        k: int = 1,
        frequency: float = 0.1,
        *,
        answer: Callable[[Any], Hashable] | None = None,
        equivalent: Equivalent | None = None,
        max_plate_nesting: int = 0,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        super().__init__(model, num_particles, max_plate_nesting=max_plate_nesting, callback=callback)
        check_count("k", k)
        if not 0 <= frequency <= 1:
            raise ValueError(f"frequency must lie in [0, 1], got {frequency!r}")
        self.k, self.frequency, self.answer, self.equivalent = k, float(frequency), answer_function(answer, equivalent), equivalent

    def messenger(self) -> CandidateMessenger:
        return WeightedMessenger(self.options)

    def conclude(self, messenger: Any, ended: ParticlePosterior, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SearchPosterior:
        scores = ended.particles.weights.log_weights

        def rule(given: Sequence[Hashable], index: tuple[int, ...]) -> Tensor:
            at: tuple[Any, ...] = (slice(None), *index)
            return only(best_of_frequent(given, scores[at].tolist(), self.k, self.frequency), scores[at])

        return with_weights_of_answers(ended, self.answer, self.equivalent, rule, scores=scores, method="best-of-majority", reason=_REASON)


def best_of_frequent(given: Sequence[Hashable], scores: Sequence[float], k: int, frequency: float) -> list[int]:
    """The best candidate of each of the k best frequent answers, best first (ties: the first).

    :param given: answer of each candidate, ``None`` for none.
    :param scores: of each; a candidate of ``-inf`` is ruled out, and still counts among those that an answer is a share of.
    """
    best: dict[Hashable, int] = {}
    for n, (answer, score) in enumerate(zip(given, scores, strict=True)):
        if answer is not None and score > -torch.inf and (answer not in best or score > scores[best[answer]]):
            best[answer] = n
    counts = {answer: sum(each == answer for each in given) for answer in best}
    # Divided, not multiplied: 0.28 * 25 is more than 7.
    frequent = [answer for answer in best if counts[answer] / len(given) >= frequency] or list(best)
    return sorted((best[answer] for answer in frequent), key=lambda n: -scores[n])[:k]


class WeightedMessenger(CandidateMessenger):
    """A sweep without resampling whose candidates keep their weights."""

    def as_search(self, found: ParticlePosterior) -> SearchPosterior:
        scores = found.particles.weights.log_weights
        return SearchPosterior.of(found, scores=scores, method="best-of-majority", reason=_REASON)
