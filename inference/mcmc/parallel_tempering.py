"""Parallel tempering."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..handlers.temper_messenger import TemperMessenger
from ..particles.trajectory import ChainRecord, Trajectory
from ..posterior.chain_posterior import ChainPosterior
from ..posterior.particle_posterior import ParticlePosterior
from ..util.checked import checked
from .replicate import Kernel, replica_kernel
from .suffix_mh import SuffixMH
from .trajectory_kernel import TrajectoryKernel


class ParallelTemperingPosterior(ChainPosterior):
    """The chain of the replica at power 1.

    :ivar tuple betas: powers of the K replicas.
    :ivar Tensor swap_rates: ``[K - 1, *P]``: mean probability, over the iterations, of accepting a swap between replicas k and k + 1.
    """

    def __init__(self, iterations: list[ParticlePosterior], cost: dict[str, float], betas: tuple[float, ...], swap_rates: Tensor) -> None:
        super().__init__(iterations, cost)
        self.betas = betas
        self.swap_rates = swap_rates[self.particles.public]

    def diagnostics(self) -> dict[str, Any]:
        """As for every chain, and the ``betas`` of the replicas and the ``swap_rates`` between neighbours."""
        return {**super().diagnostics(), "betas": list(self.betas), "swap_rates": self.swap_rates.tolist()}

    def __repr__(self) -> str:
        rates = ", ".join(f"{rate:.2f}" for rate in self.swap_rates.reshape(len(self.swap_rates), -1).mean(1).tolist())
        return f"ParallelTemperingPosterior({len(self.iterations)} iterations, {len(self.betas)} replicas, swap rates {rates})"


class ParallelTempering(TrajectoryKernel):
    """Markov chains at several powers of the likelihood that swap states: those at low powers cross between modes for the one at power 1.

    Replica k has the target ``p(x) p(y | x)^b_k``. Each iteration moves all replicas by the kernel, in one batch, and then proposes to
    swap neighbours, pairs (0, 1), (2, 3), .. and (1, 2), (3, 4), .. in turn, with the probability ::

        min(1, exp((b_i - b_j) (l_j - l_i)))        l = log p(y | x), not tempered

    The posterior is that of the replica at power 1: all its trajectories of all iterations (Rao-Blackwellised). Evidence needs
    :class:`TemperedSMC`.

    Example::

        posterior = ParallelTempering(model, betas=[0.0, 0.3, 1.0]).run(500, data, warmup_steps=50)
        posterior.answers(), posterior.swap_rates

    With ``pyro.infer.MCMC`` the state is that of all replicas: samples are ``{name: [num_samples, K, *plates, *event]}``.

    :param model: as for :class:`SMC`. Wrap it with ``TemperMessenger(prior=alpha)`` for power posteriors.
    :param betas: K >= 2 powers, increasing or decreasing, the largest of which is 1.
    :param kernel: as for :class:`TemperedSMC`.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has its own replicas.
    :raises ValueError: for other betas, or a kernel whose state is more than a trajectory.

    References

    [1] *Markov chain Monte Carlo maximum likelihood*, Charles Geyer (1991).
    [2] *Non-reversible parallel tempering: a scalable highly parallel MCMC scheme*, Saifuddin Syed, Alexandre Bouchard-Côté,
    George Deligiannidis, Arnaud Doucet (2022).
    """

    extended_state: ClassVar[bool] = True

    @checked
    def __init__(self, model: Callable[..., Any], betas: Sequence[float], kernel: Kernel = SuffixMH, *, max_plate_nesting: int = 0) -> None:
        super().__init__(model, max_plate_nesting=max_plate_nesting)
        self.betas = _check_powers(betas)
        self.cold = self.betas.index(1.0)
        self._powers = torch.tensor(self.betas, dtype=torch.float64).view(-1, *(1,) * max_plate_nesting)
        self.kernel = replica_kernel(kernel, TemperMessenger(likelihood=self._powers)(model), len(self.betas), max_plate_nesting)

    def first_state(self, *args: Any, **kwargs: Any) -> Trajectory:
        """A first state of every replica."""
        return self.kernel.start(*args, **kwargs)

    def sweep(self, reference: Trajectory, *args: Any, **kwargs: Any) -> ParticlePosterior:
        """Weighted trajectories of every replica before the swaps: ``[M, K, *plates]``.

        :param Trajectory reference: the present states ``{name: [K, *plates, *event]}``.
        """
        return self.kernel.sweep(reference, *args, **kwargs)

    def transition(self, state: Trajectory, *args: Any, **kwargs: Any) -> tuple[ParticlePosterior, Trajectory]:
        posterior = self.sweep(state, *args, **kwargs)
        moved = posterior.draw(dead=True)
        assert moved.log_likelihood is not None
        acceptance = self.acceptance(moved.log_likelihood)
        accepted = torch.rand(acceptance.shape, dtype=acceptance.dtype, device=acceptance.device) < acceptance
        swapped = moved.reorder(self.exchange(accepted, state.chain.num_steps % 2))
        swapped.chain = state.chain.after(acceptance)
        return ParticlePosterior(posterior.particles.of_leftmost(self.cold)), swapped

    def acceptance(self, log_likelihood: Tensor) -> Tensor:
        """``[K - 1, *plates]``: probability of accepting the swap of each pair of neighbours.

        :param Tensor log_likelihood: ``[K, *plates]``, not tempered.
        """
        powers = self._powers.to(log_likelihood.device)
        log_ratio = (powers[:-1] - powers[1:]) * (log_likelihood[1:] - log_likelihood[:-1])
        # Two states of likelihood zero, as first draws may be, stay where they are.
        return log_ratio.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).clamp(max=0.0).exp()

    def exchange(self, accepted: Tensor, turn: int) -> Tensor:
        """``[K, *plates]``: which replica's state each replica gets.

        :param Tensor accepted: ``[K - 1, *plates]``.
        :param int turn: 0 for the pairs (0, 1), (2, 3), ..; 1 for (1, 2), (3, 4), ...
        """
        swap = accepted.long()
        swap[1 - turn :: 2] = 0
        none = torch.zeros_like(swap[:1])
        replicas = torch.arange(len(self.betas), device=swap.device).view(-1, *(1,) * (swap.dim() - 1))
        return replicas + torch.cat([swap, none]) - torch.cat([none, swap])

    def run(
        self,
        num_samples: int,
        *args: Any,
        warmup_steps: int = 0,
        callback: Callable[[ParticlePosterior], None] | None = None,
        **kwargs: Any,
    ) -> ParallelTemperingPosterior:
        """As for every :class:`TrajectoryKernel`; the posteriors are those of the replica at power 1, the pooled one has the swap rates."""
        posterior = super().run(num_samples, *args, warmup_steps=warmup_steps, callback=callback, **kwargs)
        assert isinstance(posterior, ParallelTemperingPosterior)
        return posterior

    def pooled(self, kept: list[ParticlePosterior], chain: ChainRecord, cost: dict[str, float]) -> ParallelTemperingPosterior:
        assert chain.acceptance_rate is not None
        return ParallelTemperingPosterior(kept, cost, self.betas, chain.acceptance_rate)

    def logging(self) -> dict[str, str]:
        rate = self._chain.acceptance_rate
        return {} if rate is None else {"swap rate": f"{float(rate.mean()):.3f}"}

    def diagnostics(self) -> dict[str, Any]:
        rate = self._chain.acceptance_rate
        return {"swap rates": [] if rate is None else rate.tolist()}


def _check_powers(betas: Any) -> tuple[float, ...]:
    numbers = isinstance(betas, Iterable) and all(isinstance(beta, int | float) for beta in betas)
    powers = tuple(float(beta) for beta in betas) if numbers else ()
    steps = [b - a for a, b in itertools.pairwise(powers)]
    monotone = all(step > 0 for step in steps) or all(step < 0 for step in steps)
    if not steps or not monotone or min(powers) < 0 or max(powers) != 1.0:
        raise ValueError(f"betas must be at least two increasing or decreasing powers from [0, 1], 1 among them, got {betas!r}")
    return powers
