"""Beam search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..handlers.filter_options import FilterOptions
from ..handlers.search_messenger import Candidates, SearchMessenger
from ..particles.weights import Weights
from ..posterior.particle_posterior import ParticlePosterior
from ..util.checked import checked
from ..util.validation import check_count
from .tree_search import TreeSearch


class BeamMessenger(SearchMessenger):
    """Keeps the best unfinished particles of each population and copies them; finished ones are put aside, and those that were cut."""

    def __init__(self, options: FilterOptions, beam_width: int, *, sort_completed: bool = False, filter_duplicates: bool = False) -> None:
        super().__init__(options, "beam search")
        self.beam_width, self.sort_completed, self.filter_duplicates = beam_width, sort_completed, filter_duplicates

    def __enter__(self) -> BeamMessenger:
        self.completed: list[Candidates] = []
        self.cut_off: list[Candidates] = []
        self.active: Candidates | None = None
        self.over: Tensor | None = None  # [*plates] populations without an unfinished particle
        self.has_completed: Tensor | None = None  # [*plates]
        self.has_candidates: Tensor | None = None  # [*plates] those, or particles that were cut
        super().__enter__()
        return self

    def select(self, log_weights: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        if self.over is None:
            self.over = self.has_completed = self.has_candidates = torch.zeros_like(done[0])
        assert self.has_completed is not None and self.has_candidates is not None
        in_play = (log_weights > -torch.inf) & ~self.over
        completed, cut, active = in_play & done & ~self.cut, in_play & self.cut, in_play & ~done
        if self.filter_duplicates:
            active = active & (self.first_of_equals(log_weights) == self.system.numbers)
        self.completed.append(self.candidates(completed))
        self.cut_off.append(self.candidates(cut))
        self.active = self.candidates(active)
        self.has_completed = self.has_completed | completed.any(0)
        self.has_candidates = self.has_candidates | (completed | cut).any(0)
        # The best, in the order of their particles; particle i becomes a copy of the (i mod kept)-th of them.
        best_first = torch.where(active, log_weights, -torch.inf).argsort(dim=0, descending=True, stable=True)
        rank = best_first.argsort(dim=0)
        kept = active & (rank < self.beam_width)
        num_kept = kept.sum(0)
        self.over = self.over | (num_kept == 0)
        kept_first = (~kept).to(torch.uint8).argsort(dim=0, stable=True)
        own = self.system.numbers
        ancestors = torch.where(self.over, own, kept_first.gather(0, own % num_kept.clamp(min=1)))
        return ancestors, log_weights.gather(0, ancestors)

    def finalists(self) -> Candidates:
        assert self.active is not None
        return self._first(Candidates.joined([self._completed(), self.active]))

    def finished(self) -> Candidates | None:
        if self.has_completed is None or self.over is None or not bool((self.has_completed | self.over).all()):
            return None
        return self._first(self._completed())

    def _completed(self) -> Candidates:
        """What was put aside: finished candidates, then those that were cut."""
        completed = Candidates.joined(self.completed)
        if self.sort_completed:
            completed = completed.take(completed.scores.argsort(dim=0, descending=True, stable=True))
        return Candidates.joined([completed, *self.cut_off])

    def _first(self, pool: Candidates) -> Candidates:
        """The first ``N`` that are eligible, repeated where there are fewer; of a dead population the last ``N``, without weight."""
        eligible_first = (~pool.eligible).to(torch.uint8).argsort(dim=0, stable=True)
        count, own = pool.eligible.sum(0), self.system.numbers
        first = eligible_first.gather(0, own % count.clamp(min=1))
        found = pool.take(torch.where(count > 0, first, len(pool.eligible) - len(own) + own))
        return found._replace(
            log_weights=torch.where(count > 0, found.log_weights, -torch.inf), scores=torch.where(count > 0, found.scores, -torch.inf)
        )

    def check_alive(self) -> None:
        """A population that has put a particle aside may lose all others."""
        if self.has_candidates is not None:
            spared = [(site, self._spared(weights, self.has_candidates)) for site, weights in self.system.unchecked]
            self.system.unchecked = spared
        super().check_alive()

    @staticmethod
    def _spared(weights: Weights, populations: Tensor) -> Weights:
        return Weights(torch.where(populations & (weights.log_mean == -torch.inf), 0.0, weights.log_weights))


class BeamSearch(TreeSearch):
    """Step-level beam search guided by scores.

    ``beam_width * expand`` particles take a step each; those that finish are put aside; of the others the best ``beam_width`` are kept and
    copied until all particles are filled again (ties go to the first). The search of a problem ends when all of its particles have
    finished, or with the model. Its result holds the first ``beam_width * expand`` finished candidates, topped up with those that were cut
    before their ends (``max_tokens_completion``), and then with the particles of the last step.

    The score of a particle is its cumulative log-weight, which no selection resets: with a potential that telescopes (preset ``twisted``)
    it is the aggregated score of the prefix, with the likelihood the product over all steps. The weights of the result are those scores, so
    that ``posterior.answers()`` is the weighted vote over the candidates. A deterministic selection gives no evidence.

    :param model: as for :class:`SMC`.
    :param int beam_width: particles kept at each barrier. (In [1] this is n / M, and M, here ``expand``, is called the beam width.)
    :param int expand: continuations drawn of each kept particle.
    :param bool sort_completed: return the best finished candidates instead of the first.
    :param bool filter_duplicates: of unfinished particles with equal values of all latent sites keep the first, as [1] can by their texts;
        copies of a prefix often draw the same step.
    :param int lookahead: select by the scores that prefixes have after so many more steps, which continue them greedily (each latent site
        at its mode) and are then forgotten, as [1] and [2] can. It costs as many more steps of every unfinished particle.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has its own beams.
    :param bool audit: as for :class:`SMC`.
    :param callback: called with the posterior of the present particles after each barrier.
    :raises ValueError: for arguments out of range.

    References

    [1] *Scaling test-time compute with open models*, Edward Beeching, Lewis Tunstall, Sasha Rush (2024).
    [2] *Scaling LLM Test-Time Compute Optimally can be More Effective than Scaling Model Parameters*, Charlie Snell et al. (2024).
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        beam_width: int,
        expand: int,
        *,
        sort_completed: bool = False,
        filter_duplicates: bool = False,
        lookahead: int = 0,
        max_plate_nesting: int = 0,
        audit: bool = False,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        check_count("beam_width", beam_width)
        check_count("expand", expand)
        keywords = {"max_plate_nesting": max_plate_nesting, "audit": audit, "callback": callback}
        super().__init__(model, beam_width * expand, lookahead=lookahead, **keywords)  # type: ignore[arg-type]
        self.beam_width, self.expand = beam_width, expand
        self.sort_completed, self.filter_duplicates = sort_completed, filter_duplicates

    def messenger(self) -> BeamMessenger:
        options = {"sort_completed": self.sort_completed, "filter_duplicates": self.filter_duplicates}
        return BeamMessenger(self.options, self.beam_width, **options)
