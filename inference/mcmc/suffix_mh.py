"""Metropolis-Hastings that draws the end of a trajectory again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..errors import SMCFailed
from ..handlers.filter_options import FilterOptions
from ..handlers.proposal_messenger import Proposals
from ..handlers.reference_messenger import ReferenceMessenger
from ..handlers.sweep import sweep
from ..particles.trajectory import Trajectory
from ..particles.weights import Weights
from ..posterior.particle_posterior import ParticlePosterior
from .trajectory_kernel import TrajectoryKernel

_CURRENT, _PROPOSED = 0, 1


class SuffixMessenger(ReferenceMessenger):
    """Two particles: the present trajectory, and one that leaves it at a step drawn for each population.

    :param Tensor cut: ``[*plates]``, the first step that is drawn again.
    """

    def __init__(self, max_plate_nesting: int, *, reference: Mapping[str, Tensor], cut: Tensor, proposals: Proposals | None = None) -> None:
        super().__init__(FilterOptions(2, max_plate_nesting, ess_threshold=0.0, proposals=proposals), reference=reference)
        self.cut = cut

    def pinned(self, device: torch.device) -> Tensor:
        follows = self.system.segment < self.cut.to(device)
        return torch.stack([torch.ones_like(follows), follows])

    def check_alive(self) -> None:
        """A proposal may be impossible, and so may be the draw that a chain starts from."""
        with suppress(SMCFailed):
            super().check_alive()


class SuffixMH(TrajectoryKernel):
    """Keep a random number of steps, draw the rest from the proposals, accept or reject.

    For trajectories x and x' of ``|x|`` and ``|x'|`` steps that share the first k, k uniform on 0 .. ``|x|`` - 1::

        log A = log gamma(x') - log gamma(x) + log q(x_{k+1:}) - log q(x'_{k+1:}) + log |x| - log |x'|

    Steps are the segments between barriers; without barriers this is the independence sampler. With
    ``TemperMessenger(likelihood=0, prior=alpha)`` and proposals at temperature ``1 / alpha`` it draws from the power posterior
    ``p(x)^alpha`` of [1], with the ratio of lengths that [1] leaves out. Each iteration's posterior has the two trajectories with weights
    1 - A and A, so that rejected work is not lost (waste recycling).

    :param model: as for :class:`SMC`.
    :param proposals: per-site proposals; the prior where there is none.
    :param int max_plate_nesting: as for :class:`SMC`.

    References

    [1] *Reasoning with Sampling: Your Base Model is Smarter Than You Think*, Aayush Karan, Yilun Du (2025).
    """

    @torch.no_grad()
    def sweep(self, reference: Trajectory, *args: Any, **kwargs: Any) -> ParticlePosterior:
        length = reference.length if reference.length is not None else self._length(reference, args, kwargs)
        cut = self.draw_cut(length)
        cut = cut if reference.staying is None else torch.where(reference.staying, length, cut)
        messenger = self.messenger(reference, cut)
        posterior = sweep(self.model, messenger, args, kwargs)
        self._check_length(length, posterior)
        # A trajectory of density zero has no weight, whatever the chain does where both are such.
        impossible = posterior.particles.weights.log_weights == -torch.inf
        probabilities = self.accept(posterior)
        if reference.unfinished and messenger.system.done is not None:
            finishes = messenger.system.done[_PROPOSED]
            probabilities = torch.stack([torch.where(finishes, 1.0, probabilities[0]), torch.where(finishes, 0.0, probabilities[1])])
        return posterior.reweighted(Weights(torch.where(impossible, -torch.inf, probabilities.log())))

    def acceptance_probability(self, posterior: ParticlePosterior) -> Tensor:
        return posterior.particles.weights.normalized[_PROPOSED]

    def messenger(self, reference: Mapping[str, Tensor], cut: Tensor) -> SuffixMessenger:
        return SuffixMessenger(self.max_plate_nesting, reference=reference, cut=cut, proposals=self.proposals)

    def draw_cut(self, length: Tensor) -> Tensor:
        """``[*plates]``: steps to keep, uniform on 0 .. length - 1."""
        return (torch.rand(length.shape, device=length.device, dtype=torch.float64) * length).long()

    def accept(self, posterior: ParticlePosterior) -> Tensor:
        """``[2, *plates]``: probabilities of the present and the proposed trajectory."""
        assert posterior.particles.lengths is not None
        log_gamma = posterior.particles.weights.log_weights
        # Without a latent site, as where all are given, there is one trajectory, of no step.
        lengths = posterior.particles.lengths.to(log_gamma).clamp(min=1)
        log_ratio = (log_gamma - lengths.log()).diff(dim=0)[0]
        # A present state of density zero (a first draw) is left whatever the proposal.
        log_ratio = torch.where(log_gamma[_CURRENT] == -torch.inf, 0.0, log_ratio)
        acceptance = log_ratio.clamp(max=0.0).exp()
        return torch.stack([1 - acceptance, acceptance])

    def _length(self, reference: Trajectory, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Steps of a state that came without its length: one replay."""
        never = torch.full((1,) * self.max_plate_nesting, torch.iinfo(torch.long).max)
        posterior = sweep(self.model, self.messenger(reference, never), args, kwargs)
        assert posterior.particles.lengths is not None
        return posterior.particles.lengths[_CURRENT]

    @staticmethod
    def _check_length(length: Tensor, posterior: ParticlePosterior) -> None:
        """The number of steps must be a property of the trajectory alone, or the ratio of lengths would be wrong.

        :raises ValueError: if the same trajectory now took another number of steps.
        """
        assert posterior.particles.lengths is not None
        now = posterior.particles.lengths[_CURRENT]
        if bool((now != length).any()):
            before, after = (int(tensor[now != length][0]) for tensor in torch.broadcast_tensors(length, now))
            raise ValueError(
                f"a trajectory of {before} steps took {after} when it was run again: the model stops early, but barrier() does not see "
                "which particles are done. Pass barrier() an object with reorder(index) and a done tensor, such as a Context, or always "
                "take the same number of steps"
            )
