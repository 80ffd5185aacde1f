"""Conditional SMC that also renews the ancestry of its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..particles.run_scope import current_scope, run_scope
from ..particles.weights import Weights
from ..resampling.base import invert_cdf, scaled_weights
from .filter_options import FilterOptions
from .reference_messenger import ReferenceMessenger
from .suffix_log_prob import Splice, SuffixLogProb


class AncestorMessenger(ReferenceMessenger):
    """Conditional SMC with ancestor sampling (Lindsten, Jordan & Schön, 2014), for models of any memory.

    Where a population is about to be resampled at barrier t, the particle whose past the reference's future continues is drawn again::

        P(b) ~ w_t^b gamma(x_{1:t}^b, x*_{t+1:T}) / gamma(x_{1:t}^b)

    a Gibbs step on the index alone, after which resampling around particle ``b`` proceeds as always; this is exact for every conditional
    scheme and every rule when to resample. The densities of the spliced trajectories come from one more execution of the model with the
    N particles in a plate, at each barrier that resamples: for T steps a sweep costs O(T^2) scored steps instead of O(T) drawn ones.

    :param program: runs the model, ``lambda: model(*args, **kwargs)``; it must be a function of the values of its sites alone.
    """

    def __init__(self, options: FilterOptions, *, reference: Mapping[str, Tensor], program: Callable[[], Any]) -> None:
        super().__init__(options, reference=reference)
        self.program = program

    def __enter__(self) -> AncestorMessenger:
        self.scope = current_scope()
        super().__enter__()
        return self

    def draw_ancestors(self, chosen: Tensor, selection: Weights) -> Tensor:
        if self.options.num_particles > 1:
            self.redraw_reference(chosen)
        return super().draw_ancestors(chosen, selection)

    def redraw_reference(self, chosen: Tensor) -> None:
        """``b ~ w_b gamma(spliced_b) / gamma(prefix_b)`` in the populations ``chosen [*plates]``."""
        here, share = self.slot.to(chosen.device).expand(chosen.shape), self.system.share
        self.system.bridge_to(1.0)  # the density of a whole trajectory has the whole power
        weights = self.ancestor_weights(self.system.weights, self.suffix_log_density(here, chosen))
        self.system.bridge_to(share)
        drawn = self.draw_reference(weights)
        # Rounding must not lose a reference that no particle, not even its own, can continue.
        self.slot = torch.where(chosen & (weights.log_mean > -torch.inf), drawn, here)

    def ancestor_weights(self, weights: Weights, log_density: Tensor) -> Weights:
        """:param Tensor log_density: ``[N, *plates]`` of the reference's future after each particle's past."""
        return weights.add(log_density)

    def draw_reference(self, weights: Weights) -> Tensor:
        """One index ``[*plates]`` by weight."""
        return invert_cdf(scaled_weights(weights.to_draw_by), self.draw_uniforms(1).movedim(0, -1))[..., 0]

    def suffix_log_density(self, slot: Tensor, chosen: Tensor) -> Tensor:
        """``[N, *plates]``: log gamma(x_{1:t}^i, x*_{t+1:T}) - log gamma(x_{1:t}^i) for every particle i."""
        system = self.system
        assert system.plates is not None
        splice = Splice(self.posterior(system.snapshot(None)).sites, self.reference, slot, len(system.records))
        score = SuffixLogProb(system.num_particles, system.max_plate_nesting, system.plates, splice, chosen)
        with run_scope(self.scope):
            log_density = score.run(self.program)
        # Populations whose weights are still those of one population move together.
        shared = [dim for dim in range(1 - log_density.dim(), 0) if system.weights.log_weights.shape[dim] == 1 < log_density.shape[dim]]
        return log_density.sum(shared, keepdim=True) if shared else log_density
