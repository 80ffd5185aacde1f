"""Posteriors for ArviZ (extra ``arviz``)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..particles.pytree import take
from ..resampling import systematic
from .viewable import Viewable

_STATS = {"length": "length", "observed_log_prob": "log_likelihood"}
"""Sample statistics by the name of what a trajectory has. ``log_likelihood`` would be a separate group, pointwise."""


def inference_data(posterior: Viewable, resample: bool) -> Any:
    """See :meth:`~ppl_llm.inference.ParticlePosterior.to_arviz`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it announces its next version on import
            import arviz
    except ImportError as error:
        raise ImportError("to_arviz needs arviz; install it with: pip install 'ppl-llm[arviz]'") from error
    if posterior.iterations:
        if not resample:
            raise ValueError("resample=False keeps the weights of particles; a Markov chain has draws, one of each iteration")
        sites, stats = _of_chain(posterior.iterations)
    else:
        sites, stats = _of_particles(posterior, resample)
    if not sites:
        raise ValueError("no latent site is there in every draw with the same shape; there is nothing for ArviZ to show")
    return arviz.from_dict(posterior=_arrays(sites), sample_stats=_arrays(stats))


def _arrays(values: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.cpu().numpy() for name, value in values.items()}


def _of_chain(iterations: Sequence[Viewable]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``[chain, draw, *plates, *event]``: a draw of each iteration; filters that ran side by side are chains of their own."""
    side_by_side = [iteration.parts or [iteration] for iteration in iterations]
    chains = [[parts[k].draw() for parts in side_by_side] for k in range(len(side_by_side[0]))]
    every = [state for chain in chains for state in chain]

    def stacked(values: list[list[Tensor]]) -> Tensor:
        return torch.stack([torch.stack(row) for row in values])

    def everywhere(name: str) -> bool:
        return all(name in state and state[name].shape == every[0][name].shape for state in every)

    sites = {name: stacked([[state[name] for state in chain] for chain in chains]) for name in every[0] if everywhere(name)}
    stats = {}
    for name, attribute in _STATS.items():
        if all(getattr(state, attribute) is not None for state in every):
            stats[name] = stacked([[getattr(state, attribute) for state in chain] for chain in chains])
    return sites, stats


def _of_particles(posterior: Viewable, resample: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``[1, draw, *plates, *event]``: particles by weight, or as they are."""
    log_weights = posterior.particles.weights.log_weights
    stats = {"log_weight": log_weights, "weight": posterior.particles.weights.normalized}
    known = dict(zip(_STATS, (posterior.particles.lengths, posterior.particles.log_likelihood), strict=True))
    stats |= {name: value for name, value in known.items() if value is not None}
    sites = dict(posterior.sites)
    if resample:
        posterior.require_alive()
        u = torch.rand(systematic.num_uniforms(len(log_weights)), *log_weights.shape[1:], dtype=torch.float64, device=log_weights.device)
        # Systematic resampling gives copies side by side, which ArviZ would take for autocorrelation.
        drawn = systematic(log_weights, u)[torch.randperm(len(log_weights), device=log_weights.device)]
        sites = {name: take(value, drawn) for name, value in sites.items()}
        stats = {name: take(value, drawn) for name, value in stats.items() if name not in ("log_weight", "weight")}
    return {name: value[None] for name, value in sites.items()}, {name: value[None] for name, value in stats.items()}
