"""What a process reward model offers to the distributions."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ..context import Context
from ..inference.util.checked import describe
from ..stop_reason import StopReason


@runtime_checkable
class RewardModel(Protocol):
    """Scores every step of a context. Scores are log-odds in float32, computed from logits and never from probabilities."""

    def step_log_odds(self, context: Context) -> Tensor:
        """Log-odds that each step is right.

        :returns: ``[*batch, T]`` float32; a sequence that had finished before a step repeats its last score there.
        :raises ValueError: if a log-odds is nan, naming the sequence.
        """
        ...


describe("RewardModel", "a reward model, e.g. TransformersPRM.from_pretrained('demo'), or any object with step_log_odds(context)")


@runtime_checkable
class Certainty(Protocol):
    """What tells how sure the language model is of whole solutions, as :class:`~ppl_llm.Confidence` does."""

    def prepare(self, context: Context) -> None:
        """Have what is needed of the tokens taken while steps are sampled from here on."""
        ...

    def note(self, context: Context) -> None:
        """Take it of the last step, while it is at hand."""
        ...

    def of(self, context: Context) -> Tensor:
        """``[*batch]`` in float64, at least 0, larger the surer."""
        ...

    def cutting(self, threshold: Any) -> RewardModel:
        """The reward that is certain of a solution, or certain of the contrary where it falls below a threshold."""
        ...


describe("Certainty", "a confidence, e.g. Confidence('top-k', window=64, over='bottom')")


def prepare(reward: RewardModel, context: Context) -> None:
    """Tell a reward which context the steps begin from, before the first one: it may ask for what sampling knows of their tokens."""
    own: Any = getattr(reward, "prepare", None)
    if own is not None:
        own(context)


def is_estimated(reward: Any) -> bool:
    """Whether scores are unbiased estimates of probabilities, drawn at random, as a judge's that thinks."""
    return bool(getattr(reward, "estimated", False))


def is_of_prefixes(reward: Any) -> bool:
    """Whether a score is the value of all steps so far, and not of one step: that of a solution is then the last."""
    return bool(getattr(reward, "of_prefixes", False))


def waits_for_the_end(reward: Any) -> bool:
    """Whether unfinished answers count as certainly right, as they do for a reward of whole answers by default."""
    return getattr(reward, "pending", None) == math.inf and not getattr(reward, "partial", True)


def no_odds(reward: str) -> ValueError:
    """For the potential ``odds`` with a reward that waits for the end.

    :param str reward: as it is named.
    """
    return ValueError(
        f"potential 'odds' (presets as_paper, its_hub and entropic) weighs unfinished solutions by their odds, and {reward} judges "
        "finished ones only: take preset exact or twisted, or have beginnings judged too (--every; in Python partial=True)"
    )


def step_scores(reward: RewardModel, context: Context, last_step: bool = False) -> Tensor:
    """Log-odds of all steps ``[*batch, T]``.

    :param bool last_step: whether no step comes after the last one: a reward of whole answers then has no score to wait for, and gives
        an answer that has not come to its end -inf. Other rewards are as always.
    """
    concluded: Any = getattr(reward, "concluded_log_odds", None)
    scores: Tensor = concluded(context) if last_step and concluded is not None else reward.step_log_odds(context)
    return scores


def scored_steps(reward: RewardModel, context: Context) -> Tensor:
    """Which steps a reward scores, ``[*batch, T]``: as a rule those that were taken; a process reward model reads no step without text.

    A step that is not scored has the score before it, and no factor of its own.
    """
    own: Any = getattr(reward, "scored_steps", None)
    taken = context.reasons != StopReason.FINISHED
    return taken if own is None else taken & own(context).to(taken.device)
