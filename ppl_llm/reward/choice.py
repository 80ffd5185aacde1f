"""Rewards by name, as ``--reward`` of the command line and :class:`~ppl_llm.evaluation.Models` take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .judge_options import JudgeOptions

if TYPE_CHECKING:  # the command line must not wait for torch to show its help
    from ..lm.base import LanguageModel
    from .base import RewardModel

REWARD_KINDS: dict[str, str] = {
    "prm": "prm:DIR, a process reward model: demo, demo-weak, a directory, a hub name or an address",
    "orm": "orm:DIR, a sequence classifier that scores the finished answer: a directory or a hub name",
    "judge": "judge or judge:DIR, the language model itself or another one is asked whether the answer is right",
    "confidence": "confidence, the mean probability of the tokens of a step under the language model, or confidence:KIND:WINDOW:OVER, "
    "such as top-k:64 (kinds log-prob, entropy, top-k, kl and margin; over least, bottom or tail of the windows, mean or answer)",
    "self-certainty": "self-certainty, the mean divergence of its next-token distributions from the uniform one",
    "verifier": "verifier:FILE.py:function, a Python function of the problem and the solution",
    "hidden": "hidden:FILE, a head on the language model's own hidden states that fit-reward trained",
    "none": "none, no reward, for methods that need no scores",
}
"""What ``--reward`` takes."""

_PLAIN_JUDGE = JudgeOptions()
_NAMED = ("orm", "hidden")
"""Kinds that are nothing without a name."""
_OWN = ("demo",)
"""Language models that the reward models of this package were trained for."""


def no_reward(method: str, option: str = "") -> ValueError:
    """For a method that needs a reward where there is none.

    :param str method: as it was named.
    :param str option: what options begin with.
    """
    return ValueError(
        f"{method} needs a reward, and there is none (the demo reward model scores the demo language model only): give {option}prm DIR or "
        f"{option}reward judge, orm:DIR, confidence, self-certainty or verifier:FILE.py:function, or take {option}method power-smc "
        "or self-consistency"
    )


def context_note(tokens: int | None, limit: int | None) -> str | None:
    """What to know before a run whose solutions may be longer than its process reward model reads; ``None`` where none can be.

    :param int tokens: of a solution at most.
    :param int limit: tokens that the reward model reads.
    """
    if tokens is None or limit is None or tokens < limit:
        return None
    return (
        f"solutions may have {tokens} tokens, and the reward model reads {limit} at most: a longer one gets weight zero; "
        "set --max-tokens-completion"
    )


@dataclass(frozen=True)
class RewardChoice:
    """A reward by name.

    :ivar str kind: a key of :data:`REWARD_KINDS`.
    :ivar str name: of a model, or ``FILE.py:function``; ``None`` for kinds without.
    :ivar JudgeOptions judge: of a judge.
    """

    kind: str
    name: str | None = None
    judge: JudgeOptions = _PLAIN_JUDGE

    @classmethod
    def of(cls, lm: str, prm: str | None = None, reward: str | None = None, judge: JudgeOptions = _PLAIN_JUDGE) -> RewardChoice:
        """What was asked for; without a word the demo reward model for the demo language model, and none for any other.

        :param str lm: name of the language model.
        :param str prm: name of a process reward model, the same as ``reward="prm:NAME"``.
        :param str reward: one of :data:`REWARD_KINDS`.
        :param JudgeOptions judge: of a judge.
        :raises ValueError: for an unknown kind, a name that is missing or too much, two rewards at once, or options of a judge for another.
        """
        chosen = cls._of(lm, prm, reward)
        if chosen.kind != "judge" and (given := judge.given()):
            raise ValueError(f"{next(iter(given))} is for a judge, and the reward is {chosen}: give reward judge or judge:DIR")
        return replace(chosen, judge=judge)

    @classmethod
    def _of(cls, lm: str, prm: str | None, reward: str | None) -> RewardChoice:
        if prm is not None and not prm.strip():
            raise ValueError("--prm is empty: give demo, demo-weak, a directory, a hub name or an address")
        if reward is None:
            return cls("prm", prm) if prm is not None else cls("prm", "demo") if lm in _OWN else cls("none")
        chosen = cls.parse(reward)
        if prm is not None:
            if chosen.kind != "prm" or chosen.name not in (None, prm):
                raise ValueError(f"--prm {prm} and --reward {reward} are two rewards; give one")
            return cls("prm", prm)
        if chosen.kind == "prm" and chosen.name is None:
            raise ValueError("--reward prm needs a model, such as prm:DIR or --prm DIR")
        return chosen

    @classmethod
    def parse(cls, text: str, what: str = "reward") -> RewardChoice:
        """
        :param str what: was named so, for messages.
        :raises ValueError: for an unknown kind, or a name that is missing or too much.
        """
        kind, colon, name = text.partition(":")
        if kind not in REWARD_KINDS:
            from ..inference.util.validation import unknown_name

            raise unknown_name(what, kind, REWARD_KINDS)
        if ((colon or kind in _NAMED) and not name.strip()) or (kind == "verifier" and name.rpartition(":")[0] == ""):
            raise ValueError(f"{what} {text!r} lacks a name: {REWARD_KINDS[kind]}")
        if colon and kind in ("self-certainty", "none"):
            raise ValueError(f"{what} {kind!r} takes no name, got {text!r}")
        return cls(kind, name if colon else None)

    def __str__(self) -> str:
        name = self.kind if self.name is None else f"{self.kind}:{self.name}"
        return f"{name} ({self.judge})" if self.judge.given() else name

    def check(self) -> None:
        """Everything that can be known before a model is loaded.

        :raises ValueError: if a verifier's file does not hold its function, or the file of a head no head, or for a classifier on a server.
        :raises OSError: if there is no such file or directory.
        """
        if self.kind == "verifier":
            self.verifier()
        self.judge.check()
        if self.kind == "orm":
            from .transformers_orm import locate_classifier

            locate_classifier(self.name or "")
        if self.kind == "hidden":
            from .hidden_state_reward import saved_head

            saved_head(self.name or "")
        if self.kind == "confidence":
            from .confidence import Confidence

            Confidence.parse(self.name or "log-prob")

    @property
    def of_finished(self) -> bool:
        """Whether it scores finished answers only, where there is no score at other positions (``every``)."""
        return self.kind in ("orm", "judge", "verifier") and not self.judge.each_step

    def check_potential(self, potential: str, max_steps: int, every: str | None) -> None:
        """
        :param str every: as for :meth:`load`.
        :raises ValueError: for the potential ``odds`` with a reward that scores finished answers only.
        """
        if potential == "odds" and max_steps > 1 and self.of_finished and every is None:
            from .base import no_odds

            raise no_odds(str(self))

    def load(
        self,
        lm: LanguageModel,
        load_lm: Callable[[str], LanguageModel],
        load_prm: Callable[[str], RewardModel],
        load_orm: Callable[[str, bool | str], RewardModel],
        every: str | None = None,
    ) -> RewardModel | None:
        """The reward, ``None`` for none.

        :param LanguageModel lm: that reasons.
        :param load_lm: gives a language model by name, for a judge.
        :param load_prm: gives a process reward model by name.
        :param load_orm: gives a sequence classifier by name, with what it judges of unfinished answers.
        :param str every: the positions of a text at which there is a score: of the text so far then, by a judge, a verifier or a
            classifier.
        """
        if self.kind == "none":
            return None
        if self.kind == "prm":
            assert self.name is not None
            return load_prm(self.name)
        if self.kind == "orm":
            return load_orm(self.name or "", every or False)
        if self.kind == "judge":
            from .judge_reward import JudgeReward

            return JudgeReward(lm if self.name is None else load_lm(self.name), partial=every or False, **self.judge.keywords())
        if self.kind == "verifier":
            from .function_reward import FunctionReward

            return FunctionReward(self.verifier(), partial=every or False)
        if self.kind == "hidden":
            from .hidden_state_reward import HiddenStateReward

            return HiddenStateReward.load(self.name or "", lm)
        from .confidence import Confidence

        return Confidence.parse("kl" if self.kind == "self-certainty" else self.name or "log-prob")

    def verifier(self) -> Callable[[str, str], Any]:
        """The function of a verifier, called in a process of its own.

        :raises OSError: if there is no such file.
        :raises ValueError: if it does not hold the function.
        """
        from .python_file import or_wrong, python_function

        found: Callable[[str, str], Any] = or_wrong(python_function(self.name or "", "verifier"))
        return found
