"""Sequential Monte Carlo."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .cost import CostMeter
from .errors import attach_partial
from .handlers.audit_messenger import Audited
from .handlers.audit_messenger import audit as replay_audit
from .handlers.filter_options import FilterOptions
from .handlers.particle_messenger import ParticleMessenger
from .handlers.pause_messenger import Paused, PauseMessenger
from .handlers.proposal_messenger import Proposals
from .handlers.resume_messenger import ResumeMessenger
from .handlers.sweep import sweep
from .mcmc.rejuvenation import Rejuvenation
from .mcmc.replicate import Kernel, replicate
from .particles.checkpoint import Checkpoint
from .particles.run_scope import RunScope, run_scope
from .particles.snapshot import Snapshot
from .posterior.island_posterior import IslandPosterior
from .posterior.particle_posterior import ParticlePosterior
from .resampling import Resampler, get_resampler
from .resampling.selection import Selection
from .util.checked import checked
from .util.fingerprint import name_of, of_model
from .util.process_state import rng_state
from .util.validation import check_count, check_optional_count

TOKENS = "tokens_sampled"
"""The counter that ``max_tokens_total`` bounds."""


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

        for state in SMC(model, num_particles=100).iterate(observations): state.save("run.checkpoint")  # the same, barrier by barrier
        SMC(model, num_particles=100).resume("run.checkpoint")                                          # the same, in another process

    The evidence estimate is unbiased for every resampling scheme and ESS threshold. The object never changes: many runs of it may be
    under way at a time, also inside of each other.

    :param model: a function with ``pyro.sample`` sites, run once with all particles in one plate on the left of its own plates.
    :param int num_particles: N.
    :param resampler: ``"systematic"``, ``"stratified"``, ``"residual"``, ``"ssp"``, ``"multinomial"``, or a scheme of your own.
    :param float ess_threshold: resample where ESS <= threshold * N: 1 at every barrier, 0 never.
    :param proposals: per-site proposals, see :class:`ProposalMessenger`; the prior where there is none.
    :param int max_plate_nesting: number of nested plates in the model; those that every site lies in are independent problems, each
        with its own weights, ESS and ancestors.
    :param int islands: K independent filters of N particles in one batch, pooled by their evidence: the result is an
        :class:`~ppl_llm.inference.posterior.island_posterior.IslandPosterior` of K N particles.
    :param int max_tokens_total: stop at the first barrier at which so many tokens have been sampled (the counter ``tokens_sampled``); the
        posterior is then that of this barrier, with ``complete = False``.
    :param bool audit: replay the genealogy afterwards and compare every log-probability and what the model returned, see
        :class:`AuditMessenger`.
    :param bool record_log_probs: keep every site's log-probability, also of latent sites, in ``site_log_probs`` (``audit`` does so, too).
    :param bool resample_finished: resample also where the state says that every particle is done.
    :param Selection selection: resample in proportion to other weights than the particles' own, e.g. annealed ones or a look-ahead;
        residual weights keep every estimate unbiased.
    :param rejuvenate: moves all unfinished particles after barriers: ``kernel(model, max_plate_nesting=...)``, e.g. :class:`SuffixMH` or
        ``functools.partial(ParticleGibbs, num_particles=4)``, with the filter's proposals unless it has its own; see
        :class:`RejuvenateMessenger`.
    :param int moves: of each particle each time.
    :param int move_every: barriers from one time to the next; a fixed schedule keeps every estimate unbiased.
    :param callback: called with the :class:`ParticlePosterior` so far after each barrier.
    :raises ValueError: for arguments out of range.

    References

    [1] *An Introduction to Sequential Monte Carlo*, Nicolas Chopin, Omiros Papaspiliopoulos (2020), Algorithm 10.1.
    [2] *A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using Particle-Based Monte Carlo Methods*,
    Isha Puri et al. (2025).
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        resampler: str | Resampler = "systematic",
        ess_threshold: float = 0.5,
        proposals: Proposals | None = None,
        max_plate_nesting: int = 0,
        islands: int = 1,
        max_tokens_total: int | None = None,
        audit: bool = False,
        record_log_probs: bool = False,
        resample_finished: bool = False,
        selection: Selection | None = None,
        rejuvenate: Kernel | None = None,
        moves: int = 1,
        move_every: int = 1,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        check_count("islands", islands)
        check_optional_count("max_tokens_total", max_tokens_total)
        self.model, self.islands, self.max_tokens_total, self.audit = model, islands, max_tokens_total, audit
        self.callback = callback
        self.options = FilterOptions(
            num_particles,
            max_plate_nesting,
            get_resampler(resampler),
            ess_threshold,
            proposals,
            resample_finished=resample_finished,
            record_log_probs=audit or record_log_probs,
            selection=selection,
        )
        self.rejuvenation = Rejuvenation.of(rejuvenate, moves, move_every, model, self.options)

    def messenger(self) -> ParticleMessenger:
        """The handler of one run; islands are one more plate for it."""
        options = self.options
        return ParticleMessenger(options if self.islands == 1 else replace(options, max_plate_nesting=options.max_plate_nesting + 1))

    def run(self, *args: Any, **kwargs: Any) -> ParticlePosterior:
        """One sweep over ``model(*args, **kwargs)``.

        An exception in the middle, Ctrl-C included, carries the posterior of the last barrier as ``partial_posterior``.

        :raises SMCFailed: if all particles of all populations have weight zero; where some live, the others are ``posterior.dead``.
        :raises AuditError: if the audit was asked for and fails.
        """
        return _Run(self, None, args, kwargs).run()

    def iterate(self, *args: Any, **kwargs: Any) -> Iterator[ParticlePosterior]:
        """The sweep of :meth:`run` in slices, with the same results: yields the posterior after each barrier, and at last the final one.

        The caller may stop at any time, and save a state. No handler of this package is active between slices. A slice runs the model
        from its start, with the values of the slices before: language and reward models do no work again, but the model's Python code
        does, 0.03 s in all for 40 steps of two sites, 0.4 s for 160 (``benchmarks/sweep.py``). What it computes outside of its sites is
        computed again, and must depend on its arguments and sites only.

        :raises ValueError: if the model does not run again as it did.
        """
        return self._slices(None, args, kwargs)

    def resume(self, path: str | Path, *args: Any, **kwargs: Any) -> ParticlePosterior:
        """Continue to the end from a file of :meth:`ParticlePosterior.save`, which brings torch's random numbers along.

        On the CPU, and with the same number of threads, the result is bit for bit that of a run without the interruption. Reward models
        without cache entries on contexts score earlier steps again.

        :param args: what the model was called with, where it is not in the file since it is not plain values (or to have it compared).
        :raises FileNotFoundError: if there is no such file.
        :raises ValueError: for a damaged file, one of other settings or arguments, or one that used up ``max_tokens_total`` already.
        """
        start = self._load(path, args, kwargs)
        assert start.args is not None
        return _Run(self, start, start.args, start.kwargs).run()

    def iterate_from(self, path: str | Path, *args: Any, **kwargs: Any) -> Iterator[ParticlePosterior]:
        """As :meth:`resume`, in the slices of :meth:`iterate`."""
        start = self._load(path, args, kwargs)
        assert start.args is not None
        return self._slices(start, start.args, start.kwargs)

    @property
    def settings(self) -> dict[str, Any]:
        """What a run depends on, as plain values: a resumed run must have the same."""
        return {
            "algorithm": type(self).__name__,
            "model": name_of(self.model),
            **of_model(self.model),
            **self.options.settings(islands=self.islands, audit=self.audit),
            "rejuvenation": self.rejuvenation and self.rejuvenation.described,
        }

    def _slices(self, start: Checkpoint | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[ParticlePosterior]:
        while True:
            current = _Run(self, start, args, kwargs, one_step=True)
            posterior = current.run()
            start = posterior.checkpoint
            yield posterior
            if posterior.complete or current.over_budget:
                return

    def _load(self, path: str | Path, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Checkpoint:
        start = Checkpoint.load(Path(path))
        start.require_settings(self.settings)
        if not start.complete and self.max_tokens_total is not None and start.cost.get(TOKENS, 0) >= self.max_tokens_total:
            raise ValueError(
                f"{path} has sampled {int(start.cost[TOKENS])} tokens already, max_tokens_total is {self.max_tokens_total}; give more"
            )
        return start.with_arguments(args, kwargs)


class _Run(PauseMessenger):
    """One pass over the model: all of it, or from one barrier to the next. Everything that changes meanwhile belongs to it.
    It is itself the handler that hears of barriers. A handler apart from it would refer to it and be referred to, and such a circle keeps
    every particle and the language model's caches in memory until Python looks for circles.

    :param Checkpoint start: where to continue; ``None`` for the beginning. One that was read from a file brings the state of the random
        number generators, others continue with the present one.
    :param bool one_step: stop at the next barrier.
    """

    def __init__(
        self, smc: SMC, start: Checkpoint | None, args: tuple[Any, ...], kwargs: dict[str, Any], *, one_step: bool = False
    ) -> None:
        super().__init__()
        self.scope = RunScope({} if start is None else dict(start.subsamples), replays=smc.rejuvenation is not None)
        self.smc, self.start, self.args, self.kwargs, self.one_step = smc, start, args, kwargs, one_step
        self.model = smc.model if smc.islands == 1 else replicate(smc.model, smc.islands, smc.options.max_plate_nesting)
        self.messenger = smc.messenger()
        if smc.rejuvenation is not None:
            self.messenger = smc.rejuvenation.messenger(self.messenger.options, (self.model, args, kwargs))
        self.meter, self.began = CostMeter(), time.perf_counter()
        self.latest: ParticlePosterior | None = None  # of the last barrier, once it was asked for

    @torch.no_grad()
    def run(self) -> ParticlePosterior:
        """The posterior at the end of the pass. An exception carries that of the last barrier as ``partial_posterior``."""
        resume = None
        if self.start is not None:
            self.rng = self.start.rng if self.start.caches is not None else rng_state()
            resume = ResumeMessenger(self.messenger, self.start, self.rng)
        with self.meter, run_scope(self.scope):
            try:
                joint = sweep(self.model, self.messenger, self.args, self.kwargs, outside=self, resume=resume)
                if self.smc.audit:
                    n, nesting = joint.num_particles, joint.particles.nesting
                    joint.audit = replay_audit(self.model, Audited.of(joint), n, nesting, self.args, self.kwargs)
                self._describe(joint, self.messenger.system.snapshot(joint.value), rng_state(), complete=True)
                return joint if self.smc.islands == 1 else IslandPosterior(joint)
            except Paused:
                posterior = self.partial()
                assert posterior is not None
                return posterior
            except BaseException as error:
                attach_partial(error, self.partial)
                raise

    def partial(self) -> ParticlePosterior | None:
        """The posterior of the last barrier, with the cost so far; that of the start if there was none since."""
        last, start = self.messenger.system.last, self.start
        if self.latest is None:
            snapshot = last if last is not None or start is None else start.snapshot
            if snapshot is None:
                return None
            joint = self.messenger.posterior(snapshot)
            self._describe(joint, snapshot, self.rng, complete=False)
            if last is None:
                joint.checkpoint = start
            self.latest = joint if self.smc.islands == 1 else IslandPosterior(joint)
        self.latest.cost = self._cost()
        return self.latest

    def leaves(self) -> bool:
        self.latest = None
        if self.smc.callback is not None:
            posterior = self.partial()
            assert posterior is not None
            self.smc.callback(posterior)
        return self.one_step or self.over_budget

    @property
    def over_budget(self) -> bool:
        """Whether the run ends at this barrier. Particles that are all done sample nothing more."""
        budget = self.smc.max_tokens_total
        if budget is None or (self.start.cost if self.start is not None else {}).get(TOKENS, 0) + self.meter.totals[TOKENS] < budget:
            return False
        done = self.messenger.system.done
        return done is None or not bool(done.all())

    def _cost(self) -> dict[str, float]:
        totals: Counter[str] = Counter(self.start.cost if self.start is not None else {})
        totals.update(self.meter.totals)
        totals["seconds"] += time.perf_counter() - self.began  # type: ignore[assignment]
        return dict(totals)

    def _describe(self, joint: ParticlePosterior, snapshot: Snapshot, rng: dict[str, Any], complete: bool) -> None:
        """Say what the posterior cost, and how to continue from it."""
        joint.complete, joint.cost = complete, self._cost()
        known = dict(self.scope.subsamples), dict(joint.cost)
        joint.checkpoint = Checkpoint(self.smc.settings, self.args, self.kwargs, snapshot, rng, *known, complete)
