"""Turns that are asked for on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..answers.extraction import answer_forms
from ..reward.choice import RewardChoice
from ..reward.judge_options import JudgeOptions

if TYPE_CHECKING:
    from ..lm.base import LanguageModel
    from .models import ReasoningModel

MOST_TURNS = 1000
"""More than any solution is better for; each costs a completion of every particle."""

FEEDBACK = ("verifier", "judge", "tests")
"""What ``--feedback`` may begin with."""


@dataclass(frozen=True)
class TurnOptions:
    """How often a solution is written, and what is said about each draft.

    :param int rounds: solutions written one after another; 1 for no draft.
    :param str feedback: ``verifier:FILE.py:function``, ``judge``, ``judge:DIR``, or ``tests`` for problems that have their own; ``None``
        for a request to check the draft.
    :param JudgeOptions judge: of a judge.
    """

    rounds: int = 1
    feedback: str | None = None
    judge: JudgeOptions = JudgeOptions()  # noqa: RUF009 - frozen

    def judge_of_reward(self, reward: str | None) -> JudgeOptions:
        """The judge's options as far as they are the reward's: where it is no judge, they may be those of the feedback."""
        feedback_only = self.feedback is not None and self.feedback.startswith("judge") and not (reward or "").startswith("judge")
        return JudgeOptions() if feedback_only else self.judge

    @property
    def _chosen(self) -> RewardChoice:
        return RewardChoice.parse(str(self.feedback), "feedback")

    def check(self, tests: bool = False) -> None:
        """
        :param bool tests: whether problems may have tests.
        :raises ValueError: for what cannot be, before a model is loaded.
        :raises OSError: if there is no file of a verifier.
        """
        from ..inference.util.validation import check_count  # not when the command line shows its help

        check_count("rounds", self.rounds)
        if self.rounds > MOST_TURNS:
            raise ValueError(f"rounds must be at most {MOST_TURNS}, each writes every solution once more; got {self.rounds}")
        if self.feedback is None:
            return
        if self.rounds == 1:
            raise ValueError("feedback is about drafts, and with rounds=1 there are none: give rounds=2 or more")
        kind = self.feedback.partition(":")[0]
        if kind not in FEEDBACK or (kind == "tests" and self.feedback != kind):
            raise ValueError(f"feedback must be verifier:FILE.py:function, judge, judge:DIR or tests, got {self.feedback!r}")
        if kind == "tests":
            if not tests:
                raise ValueError("feedback from tests is for problems that have them: evaluate code:FILE")
            return
        self._chosen.check()

    def check_problems(self, problems: Iterable[Any]) -> None:
        """
        :param problems: with a ``text`` and a ``critic``, ``None`` where there are no tests.
        :raises ValueError: for feedback from tests about a problem that has none.
        """
        bare = next((p for p in problems if p.critic is None), None) if self.feedback == "tests" else None
        if bare is not None:
            raise ValueError(f"feedback from tests needs problems that have them, and {bare.text[:60]!r} has none; give verifier or judge")

    def around(self, model: ReasoningModel, prompt: Any = None) -> ReasoningModel:
        """The model with its turns.

        :param prompt: from :meth:`prompt`.
        """
        if self.rounds == 1:
            return model
        from .revision import RevisionModel, ask_again

        return RevisionModel(model, self.rounds, prompt or ask_again)

    def prompt(self, lm: LanguageModel, load_lm: Callable[[str], LanguageModel], answer_fallback: str | None = None) -> Any:
        """What a draft is followed by; ``None`` for a request to check it.

        :param load_lm: gives a language model by name, for a judge.
        :param str answer_fallback: of the model, by which answers are found in drafts.
        """
        if self.feedback is None:
            return None
        from .feedback import Feedback, ProblemCritics

        if self.feedback == "tests":
            return Feedback(ProblemCritics(answer_forms(answer_fallback)))
        chosen = self._chosen
        if chosen.kind == "judge":
            own = replace(self.judge, thoughts=self.judge.thoughts or 1, agree=None, each_step=False)
            return Feedback(replace(chosen, judge=own).load(lm, load_lm, _none_such, _none_such))
        return Feedback(chosen.verifier())


def _none_such(*names: Any) -> Any:
    raise AssertionError(names)
