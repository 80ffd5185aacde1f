"""What searches share: arguments, cost, and the partial posterior of an interrupted run."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.poutine.messenger import Messenger

from ..cost import CostMeter
from ..errors import attach_partial
from ..handlers.candidate_messenger import CandidateMessenger
from ..handlers.filter_options import FilterOptions
from ..handlers.sweep import sweep
from ..particles.run_scope import RunScope, run_scope
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from ..util.checked import checked


class Search(ABC):
    """A search over executions of a model by the scores of their prefixes.

    :param model: as for :class:`SMC`.
    :param int num_particles: particles.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem is searched on its own.
    :param bool audit: keep the log-probabilities that an audit compares.
    :param callback: called with the :class:`SearchPosterior` of the present particles after each barrier.
    :cvar bool replays: whether the model is run again along the candidates.
    """

    replays: ClassVar[bool] = False

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        max_plate_nesting: int = 0,
        audit: bool = False,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        self.model = model
        self.options = FilterOptions(num_particles, max_plate_nesting, ess_threshold=0.0, record_log_probs=audit)
        self.audit = audit
        self.callback = callback

    @abstractmethod
    def messenger(self) -> CandidateMessenger:
        """The handler of one run."""

    def prepared(self, scope: RunScope, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CandidateMessenger:
        """The handler of one run, told what it needs of the run."""
        return self.messenger()

    def conclude(self, messenger: Any, ended: ParticlePosterior, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SearchPosterior:
        """The result, given the posterior of the particles with which the model ended."""
        assert isinstance(ended, SearchPosterior)
        return ended

    def salvage(self, messenger: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SearchPosterior | None:
        """What a run that was interrupted has found so far."""
        partial: SearchPosterior | None = getattr(messenger, "partial", None)
        return partial

    @torch.no_grad()
    def run(self, *args: Any, **kwargs: Any) -> SearchPosterior:
        """Search ``model(*args, **kwargs)``.

        An exception in the middle, Ctrl-C included, carries what was found so far as ``partial_posterior``.

        :raises SMCFailed: if all particles of all populations have score minus infinity.
        :raises AuditError: if an audit was asked for and fails.
        """
        start = time.perf_counter()
        scope = RunScope(replays=self.replays)
        messenger = self.prepared(scope, args, kwargs)
        report = None if self.callback is None else _Report(messenger, self.callback)
        with CostMeter() as meter, run_scope(scope):
            try:
                result = self.conclude(messenger, sweep(self.model, messenger, args, kwargs, outside=report), args, kwargs)
            except BaseException as error:
                attach_partial(error, lambda: self.salvage(messenger, args, kwargs))
                if error.partial_posterior is not None:  # type: ignore[attr-defined]
                    error.partial_posterior.cost = {**meter.totals, "seconds": time.perf_counter() - start}  # type: ignore[attr-defined]
                raise
        result.cost = {**meter.totals, "seconds": time.perf_counter() - start}
        return result


class _Report(Messenger):
    """Calls back after each barrier. The messenger does not refer to it: a circle would keep every particle in memory."""

    def __init__(self, messenger: CandidateMessenger, callback: Callable[[ParticlePosterior], None]) -> None:
        super().__init__()
        self.messenger, self.callback = messenger, callback

    def _pyro_barrier(self, msg: Any) -> None:
        partial = self.messenger.partial
        assert partial is not None
        self.callback(partial)
