"""Waste-free sequential Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .mcmc.replicate import Kernel
from .mcmc.suffix_mh import SuffixMH
from .particles.history import ResamplingRecord
from .particles.pytree import concatenate
from .particles.trajectory import Trajectory
from .particles.weights import Weights
from .posterior.tempered_posterior import TemperedPosterior
from .resampling import Resampler
from .tempered_smc import TemperedSMC
from .util.checked import checked
from .util.validation import check_count


class WasteFreeSMC(TemperedSMC):
    """Tempered SMC that keeps every state of the chains that move its particles.

    As :class:`TemperedSMC` it carries whole executions from the prior to the posterior while the likelihood's power rises from 0 to 1.
    Where that runs several moves of every particle and keeps the last state, each stage here resamples only M of the ``N = M k``
    particles, runs ``k - 1`` moves of the kernel from each of the M, and keeps all N states with equal weights [1]::

        b       <- next power
        w^n     <- w^n L(x^n)^(b - b_before)                    n = 1 .. N
        A^m     ~ r(. | W)                                      m = 1 .. M
        x^{m,1} <- x^{A^m},  x^{m,j+1} ~ K_b(x^{m,j})           j = 1 .. k - 1
        w       <- mean of w,  x <- all x^{m,j}

    A stage costs ``N - M`` moves. The k states of a chain are dependent, yet each has the same distribution, so that evidence and
    expectations are unbiased for a given ladder as those of :class:`TemperedSMC` are; an adaptive ladder has a bias that vanishes with M.

    Example::

        posterior = WasteFreeSMC(model, num_particles=64, chain_length=8, betas=[0.1, 0.4, 1.0]).run(data)
        posterior.log_evidence, posterior.betas, posterior.ess, posterior.move_rates

    :param model: as for :class:`SMC`; barriers matter only to the kernel.
    :param int num_particles: N, a multiple of ``chain_length``.
    :param int chain_length: k, states of each chain, the resampled particle included; at least 2. The paper advises few long chains,
        i.e. M much smaller than N.
    :param betas: as for :class:`TemperedSMC`.
    :param kernel: as for :class:`TemperedSMC`.
    :param float ess_threshold: what an adaptive ladder aims at; every stage resamples, whatever its effective sample size.
    :param resampler: as for :class:`SMC`; M of the N ancestors it draws are used.
    :param int max_plate_nesting: as for :class:`SMC`.
    :param callback: called with the :class:`TemperedPosterior` so far after each stage.
    :raises ValueError: for arguments out of range, or a kernel whose state is more than a trajectory.

    References

    [1] *Waste-free sequential Monte Carlo*, Hai-Dang Dau, Nicolas Chopin (2022).
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        chain_length: int = 4,
        betas: str | Sequence[float] = "adaptive",
        kernel: Kernel = SuffixMH,
        ess_threshold: float = 0.5,
        resampler: str | Resampler = "systematic",
        max_plate_nesting: int = 0,
        callback: Callable[[TemperedPosterior], None] | None = None,
    ) -> None:
        check_count("num_particles", num_particles)
        check_count("chain_length", chain_length, 2)
        if num_particles % chain_length:
            nearest = max(1, round(num_particles / chain_length)) * chain_length
            raise ValueError(
                f"num_particles must be a multiple of chain_length, the states of each chain: got {num_particles} and {chain_length}; "
                f"take num_particles={nearest}, or another chain_length"
            )
        super().__init__(
            model,
            num_particles,
            betas=betas,
            kernel=kernel,
            num_moves=chain_length - 1,
            ess_threshold=ess_threshold,
            resampler=resampler,
            max_plate_nesting=max_plate_nesting,
            callback=callback,
        )
        self.chain_length = chain_length
        self.num_chains = num_particles // chain_length

    def resample(self, weights: Weights, particles: Trajectory) -> tuple[ResamplingRecord, Weights, Trajectory]:
        """The starts of the chains: ``A^m ~ r(. | W)``, ``x^{m,1} <- x^{A^m}``, ``w <-`` mean of w, in every population."""
        ess, log_w = weights.ess, weights.log_weights
        starts = self.draw_starts(weights.to_draw_by)
        every = ~weights.dead
        # Particle j M + m is state j of chain m: all states of a chain descend from its start.
        record = ResamplingRecord(ess, starts.repeat(self.chain_length, *(1,) * ess.dim()), every, log_w)
        return record, weights.set_to_mean(every), particles.reorder(starts)

    def draw_starts(self, log_weights: Tensor) -> Tensor:
        """``[M, *plates]``: ancestors of which particle n has ``M W^n`` in expectation.

        Of N ancestors that the scheme draws every k-th is taken, from a uniform offset: the first M of them would be biased, since most
        schemes give them in order. Of a systematic comb this leaves the comb of M points.
        """
        n, plates, device = self.num_particles, log_weights.shape[1:], log_weights.device
        u = torch.rand(self.resampler.num_uniforms(n), *plates, dtype=torch.float64, device=device)
        ancestors = self.resampler(log_weights, u)
        slots = torch.arange(0, n, self.chain_length, device=device).view(-1, *(1,) * len(plates))
        return ancestors.gather(0, (slots + self.draw_offset(plates, device)).expand(-1, *plates))

    def draw_offset(self, plates: torch.Size, device: torch.device) -> Tensor:
        """``[*plates]``: uniform on 0 .. k - 1."""
        return torch.randint(self.chain_length, plates, device=device)

    def move(self, particles: Trajectory, beta: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Trajectory, Tensor]:
        """All states of the M chains, and the fraction of moves that changed a particle."""
        states, rate = self.chains(particles, self.num_chains, beta, args, kwargs)
        return _joined(states), rate


def _joined(states: list[Trajectory]) -> Trajectory:
    """All states of all chains: those after the j-th move from ``j M`` on."""

    def cat(tensors: list[Tensor | None]) -> Tensor | None:
        known = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(known) if len(known) == len(states) else None

    return Trajectory(
        {name: torch.cat([state[name] for state in states]) for name in states[0]},
        length=cat([state.length for state in states]),
        log_likelihood=cat([state.log_likelihood for state in states]),
        value=concatenate([state.value for state in states]),
    )
