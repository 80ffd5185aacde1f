"""Searches that select particles at barriers and may return candidates that were set aside earlier."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar

from ..handlers.audit_messenger import Audited, audit
from ..handlers.replay_messenger import ReplayMessenger
from ..handlers.search_messenger import Candidates, SearchMessenger
from ..handlers.sweep import sweep
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from .base import Search


class TreeSearch(Search):
    """A search whose candidates get their values from one more execution of the model, along their known sites.

    That execution draws and scores nothing: a trajectory ends where it was done.

    :param int num_particles: particles.
    :param int max_plate_nesting: as for :class:`SMC`.
    :param bool audit: replay the result once more and compare every log-probability, see :class:`AuditMessenger`.
    :param callback: called with the :class:`SearchPosterior` of the present particles after each barrier.
    """

    replays: ClassVar[bool] = True

    def conclude(self, messenger: Any, ended: ParticlePosterior, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SearchPosterior:
        assert isinstance(messenger, SearchMessenger)
        chosen = messenger.end(ended.value)
        replayed = self.replayed(messenger, chosen, args, kwargs)
        result = messenger.result(chosen, replayed)
        if self.audit:
            n, nesting = self.options.num_particles, self.options.max_plate_nesting
            # Candidates may have ended before the search did.
            swept = Audited.of(result, messenger.known_log_probs(chosen), num_barriers=replayed.num_barriers)
            result.audit = audit(self.model, swept, n, nesting, args, kwargs)
        return result

    def replayed(self, messenger: SearchMessenger, chosen: Candidates, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ParticlePosterior:
        """One execution of the model along the candidates."""
        replay = ReplayMessenger(self.options.num_particles, self.options.max_plate_nesting, messenger.known_values(chosen))
        return sweep(self.model, replay, args, kwargs)

    def salvage(self, messenger: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SearchPosterior | None:
        """The finished candidates if every problem has some, else the particles of the last barrier."""
        finished = messenger.finished() if isinstance(messenger, SearchMessenger) else None
        if finished is not None:
            with suppress(Exception, KeyboardInterrupt):  # what stopped the run may stop this, too
                found: SearchPosterior = messenger.result(finished, self.replayed(messenger, finished, args, kwargs))
                return found
        return super().salvage(messenger, args, kwargs)
