"""Reward balanced search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..handlers.filter_options import FilterOptions
from ..handlers.search_messenger import Candidates, SearchMessenger
from ..posterior.particle_posterior import ParticlePosterior
from ..util.checked import checked
from ..util.validation import check_positive
from .tree_search import TreeSearch

_LARGEST_SCORE = 700.0
"""Of log-weights: the exponential of more is no finite number."""
_ROUNDING = 1e-9
"""Of shares: equal scores share equally, whatever the last digits of their exponentials."""


class RebaseMessenger(SearchMessenger):
    """Unfinished particles are continued in numbers that grow with their scores; finished ones stay."""

    def __init__(self, options: FilterOptions, temperature: float) -> None:
        super().__init__(options, "REBASE")
        self.temperature = temperature

    def __enter__(self) -> RebaseMessenger:
        self.present: Candidates | None = None
        super().__enter__()
        return self

    def select(self, log_weights: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        self.present = self.candidates(torch.ones_like(done))
        active = ~done & (log_weights > -torch.inf)
        # A population without a particle to continue stays as it is.
        active, done = torch.broadcast_tensors(active, done | ~active.any(0))
        copies = torch.where(done, 1, self.widths(log_weights, active, (~done).sum(0)))
        ancestors = self.spread(copies)
        return ancestors, log_weights.gather(0, ancestors)

    def widths(self, log_weights: Tensor, active: Tensor, left: Tensor) -> Tensor:
        """``[N, *plates]``: continuations of each active particle.

        :param Tensor left: ``[*plates]``, their sum.
        """
        shares = torch.where(active, self.log_shares(log_weights, active), -torch.inf)
        # The best first, of equal ones the last.
        order = torch.where(active, self.rank_by(log_weights, shares), -torch.inf).flip(0).argsort(dim=0, descending=True, stable=True)
        order = len(order) - 1 - order
        shares = shares.gather(0, order)
        rest = shares.flip(0).logcumsumexp(0).flip(0)  # log sum over this one and those after it
        widths = torch.zeros_like(order)
        for k, share in enumerate(torch.where(shares > -torch.inf, (shares - rest).exp(), 0.0)):
            widths[k] = (left * share - _ROUNDING).ceil().long().clamp(min=0)
            left = left - widths[k]
        return torch.zeros_like(widths).scatter(0, order, widths)

    def log_shares(self, log_weights: Tensor, active: Tensor) -> Tensor:
        """``[N, *plates]``: logs of what the active particles get in proportion to, of others anything."""
        return log_weights.clamp(max=_LARGEST_SCORE).exp() / self.temperature

    def rank_by(self, log_weights: Tensor, shares: Tensor) -> Tensor:
        """``[N, *plates]``: the order in which particles take their places, greatest first."""
        return log_weights

    @staticmethod
    def spread(copies: Tensor) -> Tensor:
        """Ancestors ``[N, *plates]`` of which particle i has ``copies[i]`` descendants, the first of them in its own place."""
        own = torch.arange(len(copies), device=copies.device).view(-1, *(1,) * (copies.dim() - 1)).expand_as(copies)
        free = copies == 0
        further = (copies - 1).clamp(min=0).cumsum(0).movedim(0, -1).contiguous()
        number = (free.cumsum(0) - 1).clamp(min=0).movedim(0, -1).contiguous()
        parents = torch.searchsorted(further, number, right=True).movedim(-1, 0)
        return torch.where(free, parents, own)

    def finalists(self) -> Candidates:
        assert self.present is not None
        return self.present


class REBASE(TreeSearch):
    """Reward balanced search: good prefixes get more continuations, in proportion to the softmax of their scores.

    At each barrier the unfinished particles i of a problem, the best first, share the N places that finished ones have left::

        W_i = ceil(R_i exp(s_i / T) / sum_{j >= i} exp(s_j / T)),    R_i = R - sum_{j < i} W_j

    with s the score of a prefix and R the places left. Particles that get none are dropped; finished ones keep their place. Of equal
    scores the last comes first, as in the released code [1]. The result is all N particles, weighted by their scores: the weighted vote.

    The score is the exponential of the cumulative log-weight: with a potential that telescopes (preset ``twisted``) the aggregated score of
    the prefix, a probability, for which the paper's temperature is meant; with the likelihood the product over all steps. Widths follow
    from scores without randomness, so that weights are not valid for an estimate and there is no evidence.

    :param model: as for :class:`SMC`.
    :param int num_particles: N.
    :param float temperature: T; small values continue the best alone, large ones all alike.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has widths of its own.
    :param bool audit: as for :class:`SMC`.
    :param callback: called with the posterior of the present particles after each barrier.
    :raises ValueError: for arguments out of range.

    References

    [1] *Inference Scaling Laws: An Empirical Analysis of Compute-Optimal Inference for Problem-Solving with Language Models*,
        Yangzhen Wu, Zhiqing Sun, Shanda Li, Sean Welleck, Yiming Yang (2024).
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        temperature: float = 0.2,
        max_plate_nesting: int = 0,
        audit: bool = False,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        check_positive("temperature", temperature)
        super().__init__(model, num_particles, max_plate_nesting=max_plate_nesting, audit=audit, callback=callback)
        self.temperature = temperature

    def messenger(self) -> RebaseMessenger:
        return RebaseMessenger(self.options, self.temperature)
