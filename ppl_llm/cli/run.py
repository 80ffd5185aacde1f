"""One run, started, watched and perhaps interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .notes import weightless_note
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
    :ivar bool partial: whether it was interrupted, or failed.
    :ivar str failure: why no solution was good enough, where that is so.
    """

    model: ReasoningModel
    posterior: ParticlePosterior | None
    partial: bool
    failure: str | None = None


def sweep(settings: Settings, lm: LanguageModel, prm: RewardModel | None, problem: str, progress: Progress, prompt: Any = None) -> Outcome:
    """Seed, run, and on Ctrl-C or a failure keep what was computed up to the last barrier, iteration or stage.

    :param prompt: of the turns.
    :raises ValueError: what the library raises for a problem or models it cannot work with, where nothing was computed.
    """
    import pyro

    model, run = settings.build(lm, prm, callback=progress, prompt=prompt)
    pyro.set_rng_seed(settings.seed)
    try:
        with progress:
            return Outcome(model, run(problem), partial=False)
    except (ValueError, OSError) as failed:  # every particle dead, or a reward or a server that fails in the middle
        partial = getattr(failed, "partial_posterior", None)
        remedy = weightless_note(settings, failed)
        if partial is None and remedy is None:
            raise
        failure = " ".join([*str(failed).split(), *([] if remedy is None else [remedy])])
        if partial is None:
            raise ValueError(failure) from failed
        return Outcome(model, partial, partial=True, failure=failure)
    except KeyboardInterrupt as interrupt:
        return Outcome(model, getattr(interrupt, "partial_posterior", None), partial=True)
