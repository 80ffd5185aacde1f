"""Searches that select particles at barriers and may return candidates that were set aside earlier."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from ..handlers.audit_messenger import Audited, audit
from ..handlers.candidate_messenger import CandidateMessenger
from ..handlers.replay_messenger import ReplayMessenger
from ..handlers.search_messenger import Candidates, SearchMessenger
from ..handlers.sweep import sweep
from ..particles.run_scope import RunScope
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from ..util.validation import check_count
from .base import Search
from .lookahead import Lookahead


class TreeSearch(Search):
    """A search whose candidates get their values from one more execution of the model, along their known sites.

    That execution draws and scores nothing: a trajectory ends where it was done.

    :param int num_particles: particles.
    :param int lookahead: select by the scores that prefixes have after so many more steps, see :class:`BeamSearch`.
    :param int max_plate_nesting: as for :class:`SMC`.
    :param bool audit: replay the result once more and compare every log-probability, see :class:`AuditMessenger`.
    :param callback: called with the :class:`SearchPosterior` of the present particles after each barrier.
    """

    replays: ClassVar[bool] = True

    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        lookahead: int = 0,
        max_plate_nesting: int = 0,
        audit: bool = False,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        check_count("lookahead", lookahead, 0)
        super().__init__(model, num_particles, max_plate_nesting=max_plate_nesting, audit=audit, callback=callback)
        self.lookahead = lookahead

    def prepared(self, scope: RunScope, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CandidateMessenger:
        messenger = self.messenger()
        if self.lookahead and isinstance(messenger, SearchMessenger):
            messenger.look = Lookahead(self.model, self.lookahead, scope, args, kwargs)
        return messenger

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
