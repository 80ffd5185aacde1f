"""One run, started, watched and perhaps interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .progress import Progress
from .settings import Settings

if TYPE_CHECKING:
    from ..inference import ParticlePosterior
    from ..lm.base import LanguageModel
    from ..programs.models import ReasoningModel
    from ..reward.base import RewardModel


class Outcome(NamedTuple):
    """What a run left.

    :ivar ParticlePosterior posterior: ``None`` where it was interrupted too early to leave one.
    :ivar bool partial: whether it was interrupted.
    """

    model: ReasoningModel
    posterior: ParticlePosterior | None
    partial: bool


def sweep(settings: Settings, lm: LanguageModel, prm: RewardModel, problem: str, progress: Progress) -> Outcome:
    """Seed, run, and on Ctrl-C keep what was computed up to the last barrier, iteration or stage.

    :raises ValueError: what the library raises for a problem or models it cannot work with.
    """
    import pyro

    model, run = settings.build(lm, prm, callback=progress)
    pyro.set_rng_seed(settings.seed)
    try:
        with progress:
            return Outcome(model, run(problem), partial=False)
    except KeyboardInterrupt as interrupt:
        return Outcome(model, getattr(interrupt, "partial_posterior", None), partial=True)
