"""What a user should know before and after a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..reward.choice import context_note

if TYPE_CHECKING:
    from ..inference import ParticlePosterior
    from ..reward.base import RewardModel
    from .settings import Settings


def notes(settings: Settings, reward: RewardModel | None, asked: bool) -> Iterator[str]:
    """What a user should know before a run.

    :param RewardModel reward: that will be asked.
    :param bool asked: whether a reward was asked for.
    """
    name = settings.named.method.name
    if reward is None and asked and settings.reward.kind != "none":
        yield f"--method {name} asks no reward: {settings.reward} is not loaded"
    if reward is None and settings.constraint is not None:
        yield "no reward model was given: solutions are weighed by the constraint alone"
    elif reward is None and not asked and settings.lm != "demo":
        what = "prefers what the language model finds probable as a whole" if settings.named.method.power != 1 else "takes a majority vote"
        yield (
            f"no reward model was given: {name} {what}. Methods with scores need --prm, or --reward judge, orm, "
            "confidence, self-certainty or verifier"
        )
    if reward is not None and settings.every is not None and settings.reward.kind == "prm":
        yield (
            f"--every {settings.every} puts pieces of a line to {settings.reward.name} as steps, which reads whole steps best; "
            "--reward verifier:FILE.py:function judges any text"
        )
    note = context_note(settings.max_tokens_completion, getattr(reward, "max_length", None))
    if note is not None and settings.lm != "demo":
        yield note


def weightless_note(settings: Settings, failed: Exception) -> str | None:
    """What a user should know of a run without a solution of any weight under a reward of whole answers."""
    from ..inference import SMCFailed

    if not isinstance(failed, SMCFailed) or not settings.reward.of_finished or settings.every is not None:
        return None
    bound = f"--max-tokens-completion ({settings.max_tokens_completion})"
    return f"Solutions that {bound} or --max-steps ({settings.max_steps}) cuts have none under this reward: give them more room."


def unfinished_note(settings: Settings, posterior: ParticlePosterior) -> str | None:
    """What a user should know after a run whose texts have hardly come to the ends of a constraint, or of their thinking."""
    thinking = posterior.value.thinking
    if thinking is not None and (share := float(posterior.weights[posterior.value.inside].sum())) >= 0.5:
        return (
            f"{share:.0%} of the weight lies on solutions that never closed their thinking with {thinking.close!r}, and so have no answer. "
            "Close it for them (--max-thinking), give the model's own tag (--close), or leave these options out if it does not think first"
        )
    if settings.constraint is None:
        return None
    open_share = float(posterior.weights[~posterior.value.finished].sum())
    if open_share < 0.5:
        return None
    return (
        f"{open_share:.0%} of the weight lies on solutions that were cut off before they had come to the end of a text of the constraint. "
        "Give them more room (--max-steps, --max-tokens-completion), bound the texts (maxLength, maxItems and additionalProperties in a "
        "schema), or take a model that knows such texts"
    )
