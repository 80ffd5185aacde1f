"""What a client is told of a run that is under way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .asked import Asked
from .settled import SettledText, particles_of, past_drafts

if TYPE_CHECKING:
    from ..context import Context
    from ..inference import ParticlePosterior

ANSWERS = 100
"""Answers that a reply tells of."""
_STEP_CHARACTERS = 200
"""Of each particle's step that progress tells of."""

Tell = Callable[[Any], None]


class Progress(NamedTuple):
    """A step of a run that is under way.

    :ivar str settled: text that is certain now.
    :ivar dict told: what has happened.
    """

    settled: str
    told: dict[str, Any]


class Watch:
    """The callback of a run that is streamed."""

    def __init__(self, asked: Asked, tell: Tell) -> None:
        self._asked, self._tell, self._count = asked, tell, 0
        choice = asked.choice
        self._unit = choice.method.unit_under(choice.options)
        self._settled = SettledText(asked.options.get("final_stop", ())) if choice.method.settles_under(choice.options) else None

    def __call__(self, posterior: ParticlePosterior) -> None:
        self._count += 1
        context: Context = posterior.value
        settled = ""
        if self._settled and past_drafts(self._asked.rounds, posterior.sites):
            settled = self._settled.advance(particles_of(context))
        told: dict[str, Any] = {
            self._unit: self._count,
            "particles": posterior.num_particles,
            "finished": int(context.finished.sum()),
        }
        if self._asked.details:
            told |= self._details(posterior)
        self._tell(Progress(settled, {name: plain(value) for name, value in told.items()}))

    def _details(self, posterior: ParticlePosterior) -> dict[str, Any]:
        """To draw the run from: parents, weights and steps of the particles."""
        context: Context = posterior.value
        answers = list(posterior.answers().probs.items())[:ANSWERS]
        told: dict[str, Any] = {
            "weights": posterior.weights.tolist(),
            "done": context.done.tolist(),
            "answers": [[answer, probability] for answer, probability in answers],
        }
        records = posterior.particles.records
        if records and self._unit == "step":
            told["parents"] = records[-1].ancestors[posterior.particles.public].tolist()
            told["ess"] = float(records[-1].ess[posterior.particles.public])
            told["resampled"] = bool(records[-1].resampled.any())
            told["found"] = context.answers()
            told["steps"] = [(steps[-1] if steps else "")[:_STEP_CHARACTERS] for steps in context.steps]
        return told


def plain(value: Any) -> Any:
    """For JSON, which has no infinity."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
