"""Sequential Monte Carlo."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import torch

from .audit_messenger import AuditMessenger, AuditReport
from .cost import CostMeter
from .particle_messenger import ParticleMessenger
from .particle_posterior import ParticlePosterior
from .proposal_messenger import Proposals
from .resampling import Resampler, get_resampler
from .selection import Selection
from .sweep import particle_plate, sweep


def check_particles(model: Any, num_particles: int, ess_threshold: float, max_plate_nesting: int) -> None:
    """The arguments that all particle algorithms share.

    :raises ValueError: for one out of range, naming its value.
    """
    if not callable(model):
        raise ValueError(f"model must be a function with pyro.sample sites, got {model!r}")
    if isinstance(num_particles, bool) or not isinstance(num_particles, int) or num_particles < 1:
        raise ValueError(f"num_particles must be an integer of at least 1, got {num_particles!r}")
    if not 0.0 <= ess_threshold <= 1.0:
        raise ValueError(f"ess_threshold must lie in [0, 1] (0 never resamples, 1 at every barrier), got {ess_threshold!r}")
    if isinstance(max_plate_nesting, bool) or not isinstance(max_plate_nesting, int) or max_plate_nesting < 0:
        raise ValueError(f"max_plate_nesting must be an integer of at least 0, got {max_plate_nesting!r}")


class SMC:
    """A particle filter over any Pyro model that marks its time steps with ``barrier``.

    Example::

        def model(observations):
            z = torch.zeros(())
            for t, y in enumerate(observations):
                z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 1.0))
                pyro.sample(f"y_{t}", dist.Normal(z, 0.5), obs=y)
                z = barrier(z)
            return z

        posterior = SMC(model, num_particles=100).run(observations)
        posterior.log_evidence, posterior.sites["z_0"], posterior.weights

    The evidence estimate is unbiased for every resampling scheme and ESS threshold.

    :param model: a function with ``pyro.sample`` sites, run once with all particles in one plate on the left of its own plates.
    :param int num_particles: N.
    :param resampler: ``"systematic"``, ``"stratified"``, ``"residual"``, ``"ssp"``, ``"multinomial"``, or a scheme of your own.
    :param float ess_threshold: resample where ESS <= threshold * N: 1 at every barrier, 0 never.
    :param proposals: per-site proposals, see :class:`ProposalMessenger`; the prior where there is none.
    :param int max_plate_nesting: number of nested plates in the model; those that every site lies in are independent problems, each
        with its own weights, ESS and ancestors.
    :param bool audit: replay the genealogy afterwards and compare every log-probability, see :class:`AuditMessenger`.
    :param bool resample_finished: resample also where the state says that every lane is done.
    :param Selection selection: resample in proportion to other weights than the particles' own, e.g. annealed ones or a look-ahead;
        residual weights keep every estimate unbiased.
    :param callback: called with the :class:`ParticlePosterior` so far after each barrier.
    :raises ValueError: for arguments out of range.

    References

    [1] *An Introduction to Sequential Monte Carlo*, Nicolas Chopin, Omiros Papaspiliopoulos (2020), Algorithm 10.1.
    [2] *A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using Particle-Based Monte Carlo Methods*,
    Isha Puri et al. (2025).
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        resampler: str | Resampler = "systematic",
        ess_threshold: float = 0.5,
        proposals: Proposals | None = None,
        max_plate_nesting: int = 0,
        audit: bool = False,
        resample_finished: bool = False,
        selection: Selection | None = None,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        check_particles(model, num_particles, ess_threshold, max_plate_nesting)
        self.model = model
        self.num_particles = num_particles
        self.max_plate_nesting = max_plate_nesting
        self.proposals = proposals
        self.audit = audit
        self._messenger = ParticleMessenger(
            num_particles,
            max_plate_nesting,
            get_resampler(resampler),
            ess_threshold,
            resample_finished=resample_finished,
            record_log_probs=audit,
            selection=selection,
            callback=callback,
        )

    @torch.no_grad()
    def run(self, *args: Any, **kwargs: Any) -> ParticlePosterior:
        """One sweep over ``model(*args, **kwargs)``.

        An exception in the middle, Ctrl-C included, carries the posterior of the last barrier as ``partial_posterior``.

        :raises SMCFailed: if all particles of a population have weight zero.
        :raises AuditError: if the audit was asked for and fails.
        """
        start = time.perf_counter()
        messenger = self._messenger
        with CostMeter() as meter:
            try:
                posterior = sweep(self.model, messenger, self.proposals, args, kwargs)
                posterior.audit = self._audit(posterior, args, kwargs) if self.audit else None
            except BaseException as error:
                error.partial_posterior = messenger.partial  # type: ignore[attr-defined]
                if messenger.partial is not None:
                    messenger.partial.cost = {**meter.totals, "seconds": time.perf_counter() - start}
                raise
        posterior.cost = {**meter.totals, "seconds": time.perf_counter() - start}
        return posterior

    def _audit(self, posterior: ParticlePosterior, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AuditReport:
        auditor = AuditMessenger(posterior.sites, posterior.site_log_probs)
        with poutine.block(), auditor, particle_plate(self.num_particles, self.max_plate_nesting):
            self.model(*args, **kwargs)
        return auditor.report()
