"""What a user should know before a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    if reward is None and not asked and settings.lm != "demo":
        what = "prefers what the language model finds probable as a whole" if settings.named.method.power != 1 else "takes a majority vote"
        yield (
            f"no reward model was given: {name} {what}. Methods with scores need --prm, or --reward judge, confidence, "
            "self-certainty or verifier"
        )
    longest, limit = settings.max_tokens_completion, getattr(reward, "max_length", None)
    if longest is not None and limit is not None and longest >= limit and settings.lm != "demo":
        yield (
            f"solutions may have {longest} tokens, and the reward model reads {limit} at most: a longer one gets weight zero; "
            "set --max-tokens-completion"
        )
