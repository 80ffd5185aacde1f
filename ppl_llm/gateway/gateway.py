"""What the routes of the server stand on: from a request's body to its answer."""

from __future__ import annotations

import logging
import secrets
import traceback
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from ..inference import SMCFailed
from .asked import Asked, read
from .catalogue import Catalogue, Choice
from .dispatch import Dispatcher, Runs
from .errors import ApiError, DeadlinePassed, ShuttingDown, draining
from .limits import Limits
from .metrics import Metrics
from .pages import Pages
from .progress import Progress
from .reply import DONE, Reply, comment, data
from .settled import SettledText
from .solver import Outcome, Served, Solver

_log = logging.getLogger(__name__)

_SEEDS = 2**32
_SILENCE = 10.0
"""Seconds after which a stream says that it is alive: proxies close connections that say nothing."""


class Gateway:
    """Models behind an OpenAI-compatible interface.

    :param Served served: the models.
    :param Choice default: the method of requests that name none; by default ``smc`` where there is a reward, else ``self-consistency``.
    :param Limits limits: what requests may ask for.
    :raises ValueError: for a default method that cannot be run.
    """

    def __init__(self, served: Served, default: Choice | None = None, limits: Limits | None = None) -> None:
        from ..methods import METHODS

        self.limits, self.metrics = limits or Limits(), Metrics()
        if default is None:
            default = Choice(METHODS["smc" if served.prm is not None else "self-consistency"], {}, {})
        self._solver = Solver(served, pages=self.limits.runs > 0)
        self.catalogue = Catalogue(served.name, default, served.prm is not None, self.limits.particles)
        self.catalogue.check_default()
        self._solver.model(default, {}, loaded=False)
        self._names = [name for name in self.catalogue.names() if self._solver.works(self.catalogue.find(name))]
        self.pages = Pages(self.limits.runs, self.limits.run_seconds)
        self.dispatcher = Dispatcher(self.limits, self.metrics)

    def models(self) -> list[str]:
        """Names for clients to choose from."""
        return self._names

    def read(self, body: Any, chat: bool) -> Asked:
        """
        :raises ApiError: for what cannot be honoured.
        """
        asked = read(body, chat, self.catalogue, self.limits)
        self._solver.check(asked)
        return asked

    def start(self, asked: Asked) -> Runs:
        """A program for each prompt.

        :raises ApiError: where there is no room for them.
        """
        seed = secrets.randbelow(_SEEDS) if asked.seed is None else asked.seed % _SEEDS
        programs = [partial(self._solver.program, asked, problem, seed) for problem in asked.problems]
        return self.dispatcher.start(programs, [seed] * len(programs), asked.deadline)

    async def answer(self, asked: Asked, runs: Runs) -> dict[str, Any]:
        """The reply, as JSON.

        :raises ApiError: if a run fails.
        """
        try:
            outcomes = await runs.outcomes()
        except BaseException as error:
            raise refusal(error) from None
        return Reply(asked).whole(outcomes, [self._kept(asked, outcome) for outcome in outcomes])

    async def stream(self, asked: Asked, runs: Runs) -> AsyncIterator[bytes]:
        """The reply as server-sent events. Until there is one, nothing is given out.

        :raises ApiError: if a run fails before anything was given out; later failures are events.
        """
        reply, begun = Reply(asked), False
        sent = [SettledText() for _ in asked.problems]
        outcomes: dict[int, Outcome] = {}
        try:
            async for event in runs.events(_SILENCE):
                if not begun:
                    begun = True
                    for chunk in reply.begin():
                        yield chunk
                if event is None:
                    yield comment("waiting")
                elif isinstance(event.what, Progress):
                    sent[event.number].sent += event.what.settled
                    for chunk in reply.text(event.number, event.what.settled):
                        yield chunk
                    yield comment({"prompt": event.number, **event.what.told})
                elif isinstance(event.what, Outcome):
                    outcome = outcomes[event.number] = event.what
                    rests = [sent[event.number].rest(solution.text) for solution in outcome.solutions]
                    for chunk in reply.end(event.number, rests, outcome, self._kept(asked, outcome)):
                        yield chunk
        except Exception as error:
            failure = refusal(error)
        except (DeadlinePassed, ShuttingDown) as error:
            failure = refusal(error)
        else:
            if asked.usage:
                yield reply.usage([outcomes[number] for number in range(len(outcomes))])
            yield DONE
            return
        if not begun:
            raise failure
        yield data(failure.body)

    def _kept(self, asked: Asked, outcome: Outcome) -> str | None:
        """Count a run, and keep its page: the link to it."""
        self.metrics.runs.labels(asked.choice.method.name).inc()
        self.metrics.tokens.inc(outcome.reasons["cost"].get("tokens_sampled", 0))
        self.metrics.answered.inc(sum(solution.tokens for solution in outcome.solutions))
        number = None if outcome.page is None else self.pages.put(outcome.page)
        return None if number is None else f"/runs/{number}"


def refusal(error: BaseException) -> ApiError:
    """What a client is told of a run that failed, and the log where: no text of the request is in either."""
    from ..remote.errors import ServerError

    if isinstance(error, ApiError):
        return error
    if isinstance(error, DeadlinePassed):
        message = "the deadline passed before there was an answer; see ppl.deadline, or choose a smaller method"
        return ApiError(504, message, code="deadline_exceeded", kind="server_error")
    if isinstance(error, ShuttingDown):
        return draining()
    if isinstance(error, SMCFailed):
        return ApiError(422, str(error), code="no_solution", kind="inference_error")
    if not isinstance(error, Exception):
        raise error
    log_failure(error)
    if isinstance(error, ServerError):
        return ApiError(502, "a model server behind this one failed", code="upstream_failed", kind="server_error")
    return ApiError(500, f"the run failed: {type(error).__name__}", code="run_failed", kind="server_error")


def log_failure(error: BaseException) -> None:
    """Where an exception came from. Its message may quote the request, and is told at level DEBUG only."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames[-6:]))
    _log.error("a run failed: %s at %s", type(error).__name__, places)
    _log.debug("a run failed", exc_info=error)
