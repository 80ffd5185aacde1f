"""A majority within each group of candidates, and one among the winners."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..posterior.equivalence_classes import Equivalent, alike
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from ..util.checked import checked
from .by_answer import answer_function, answers_at, with_weights_of_answers
from .votes import SelfConsistency

_REASON = "it does not evaluate what the model observes"


class TwoStageVote(SelfConsistency):
    """N independent draws from the model's prior in groups: a majority vote within each group, then one among the winners, each of which
    counts with its share of the group's votes. With the temperature as the site that tells groups apart it is the multi-temperature vote
    [1]; :func:`ppl_llm.multi_temperature` makes that model.

    Only candidates with their group's answer have a weight, one over the size of the group, so that ``posterior.answers()`` are the shares
    of the second vote. Put into :class:`Adaptive` with :class:`GroupAgreement` it stops early where the groups agree.

    :param model: as for :class:`SMC`; barriers do nothing.
    :param int num_particles: N.
    :param str site: latent site by whose value candidates are grouped; ``None`` for a single group.
    :param answer: of what the model returned for a particle; by default what its method ``answers()`` gives.
    :param equivalent: pools answers that count as the same.
    :param int max_plate_nesting: as for :class:`SMC`.
    :param callback: called with the posterior so far after each barrier, in which all candidates count alike.
    :raises ValueError: for arguments out of range; when run, for a model without the site.

    References

    [1] *On the Role of Temperature Sampling in Test-Time Scaling*, Yuheng Wu, Azalia Mirhoseini, Thierry Tambe (2025).
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        site: str | None = None,
        *,
        answer: Callable[[Any], Hashable] | None = None,
        equivalent: Equivalent | None = None,
        max_plate_nesting: int = 0,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        super().__init__(model, num_particles, max_plate_nesting=max_plate_nesting, callback=callback)
        self.site, self.answer, self.equivalent = site, answer_function(answer, equivalent), equivalent

    def conclude(self, messenger: Any, ended: ParticlePosterior, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SearchPosterior:
        groups = self.groups(ended)

        def rule(given: Sequence[Hashable], index: tuple[int, ...]) -> Tensor:
            at: tuple[Any, ...] = (slice(None), *index)
            return self.log_weights(given, groups[at].tolist())

        return with_weights_of_answers(ended, self.answer, self.equivalent, rule, method="two-stage vote", reason=_REASON)

    def groups(self, found: ParticlePosterior) -> Tensor:
        """``[N, *plates]``: the value of the site.

        :raises ValueError: for a model without it, or one whose value is no number.
        """
        like = found.particles.weights.log_weights
        if self.site is None:
            return torch.zeros_like(like)
        if self.site not in found.sites:
            raise ValueError(f"the model has no latent site {self.site!r} to group candidates by; its sites are {', '.join(found.sites)}")
        value = found.sites[self.site]
        if value.dim() > like.dim():
            raise ValueError(
                f"site {self.site!r} has values of shape {tuple(value.shape[like.dim() :])}; groups are told apart by a number"
            )
        return value.expand(like.shape) if value.dim() == like.dim() else value.reshape(-1, *(1,) * (like.dim() - 1)).expand(like.shape)

    @staticmethod
    def log_weights(given: Sequence[Hashable], groups: Sequence[float]) -> Tensor:
        """``[N]``: minus the log of the group's size for candidates with the answer that most of the group have (ties: the first)."""
        members: dict[float, list[int]] = {}
        for n, group in enumerate(groups):
            members.setdefault(group, []).append(n)
        weights = torch.full((len(given),), -torch.inf, dtype=torch.float64)
        for own in members.values():
            votes = [given[n] for n in own if given[n] is not None]
            if votes:
                winner = max(dict.fromkeys(votes), key=votes.count)
                weights[[n for n in own if given[n] == winner]] = -math.log(len(own))
        return weights

    def together(self, batches: Sequence[ParticlePosterior]) -> list[Tensor]:
        """The log-weights of several runs on one problem as if they were one."""
        given = [each for found in batches for each in answers_at(found, (0,) * found.particles.nesting, self.answer, None)]
        groups = [group for found in batches for group in self.groups(found).flatten().tolist()]
        like = [found.particles.weights.log_weights for found in batches]
        parts = self.log_weights(alike(given, self.equivalent), groups).split([len(each) for each in like])
        return [part.to(each).reshape(each.shape) for part, each in zip(parts, like, strict=True)]
