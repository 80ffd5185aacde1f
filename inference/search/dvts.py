"""Diverse verifier tree search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..handlers.filter_options import FilterOptions
from ..handlers.search_messenger import Candidates, SearchMessenger
from ..posterior.particle_posterior import ParticlePosterior
from ..util.checked import checked
from ..util.validation import check_count
from .tree_search import TreeSearch


class SubtreeMessenger(SearchMessenger):
    """Greedy selection within groups of ``expand`` neighbouring particles, each group a subtree."""

    def __init__(self, options: FilterOptions, expand: int, *, filter_duplicates: bool = False) -> None:
        super().__init__(options, "DVTS")
        self.filter_duplicates = filter_duplicates
        self.groups = (options.num_particles // expand, expand)

    def __enter__(self) -> SubtreeMessenger:
        self.stopped: Tensor | None = None  # [N, *plates] particles of subtrees that have stopped
        self.final: list[Candidates] = []
        self.active: Candidates | None = None
        super().__enter__()
        return self

    def select(self, log_weights: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        if self.stopped is None:
            self.stopped = torch.zeros_like(done)
        best, score = self.best_of_subtree(log_weights)
        dead = score == -torch.inf
        stopping = ~self.stopped & (done.gather(0, best) | dead)
        going = ~self.stopped & ~stopping
        own = self.system.numbers
        # An unfinished sibling of a finished best candidate has no vote; its particle repeats the best, so that it makes no more work.
        left = stopping & ~dead & (~done | (self.cut & ~self.cut.gather(0, best)))
        ancestors = torch.where(going | left, best, own)
        weights = torch.where(left, -torch.inf, log_weights.gather(0, ancestors))
        votes = torch.ones_like(done)
        if self.filter_duplicates:
            votes = self.first_of_equals(log_weights, own // self.groups[1]) == own
        self.final.append(self.candidates(stopping, ancestors, torch.where(votes, weights, -torch.inf)))
        self.active = self.candidates(going, log_weights=torch.where(votes, self.system.weights.log_weights, -torch.inf))
        self.stopped = self.stopped | stopping
        return ancestors, weights

    def best_of_subtree(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, *plates]``: for each particle, the best particle of its subtree (ties: the first), and its score."""
        num_subtrees, expand = self.groups
        score, place = log_weights.unflatten(0, self.groups).max(1, keepdim=True)
        first = torch.arange(num_subtrees, device=log_weights.device).view(-1, *(1,) * log_weights.dim()) * expand
        shape = (num_subtrees, expand, *log_weights.shape[1:])
        return (first + place).expand(shape).flatten(0, 1), score.expand(shape).flatten(0, 1)

    def finalists(self) -> Candidates:
        assert self.active is not None
        return self.each_once([*self.final, self.active])  # every particle of every subtree is a last candidate


class DVTS(TreeSearch):
    """Diverse verifier tree search: independent greedy searches.

    Each of ``num_subtrees`` subtrees draws ``expand`` candidates for its next step and continues with the best (ties: the first). It stops
    when its best candidate has finished, or with the model. The result holds the last candidates of all subtrees, subtree by subtree:
    ``num_subtrees * expand`` particles, weighted by their scores. Where a subtree has stopped, siblings that are not finished have weight
    zero (the released code [1] lets half-written solutions vote), and their particles repeat the best candidate.

    Scores are as for :class:`BeamSearch`; there is no evidence.

    :param model: as for :class:`SMC`.
    :param int num_subtrees: independent searches.
    :param int expand: candidates for each step.
    :param bool filter_duplicates: of the last candidates of a subtree with equal values of all latent sites the first has a vote.
    :param int lookahead: as for :class:`BeamSearch`.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has its own subtrees.
    :param bool audit: as for :class:`SMC`.
    :param callback: called with the posterior of the present particles after each barrier.
    :raises ValueError: for arguments out of range.

    References

    [1] *Scaling test-time compute with open models*, Edward Beeching, Lewis Tunstall, Sasha Rush (2024).
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_subtrees: int,
        expand: int,
        *,
        filter_duplicates: bool = False,
        lookahead: int = 0,
        max_plate_nesting: int = 0,
        audit: bool = False,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        check_count("num_subtrees", num_subtrees)
        check_count("expand", expand)
        keywords = {"max_plate_nesting": max_plate_nesting, "audit": audit, "callback": callback}
        super().__init__(model, num_subtrees * expand, lookahead=lookahead, **keywords)  # type: ignore[arg-type]
        self.num_subtrees, self.expand, self.filter_duplicates = num_subtrees, expand, filter_duplicates

    def messenger(self) -> SubtreeMessenger:
        return SubtreeMessenger(self.options, self.expand, filter_duplicates=self.filter_duplicates)
