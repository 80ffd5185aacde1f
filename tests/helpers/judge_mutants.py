"""Wrong judges; the table of tests/helpers/mutants.py holds them, too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ppl_llm import Context, JudgeReward
from tests.helpers.mutants import mutant

TEST = "tests/ppl_llm/reward/test_judge_exact.py"


@mutant("the best verdicts count instead of the soundest", f"{TEST}::test_rejects_wrong_judges")
class BestVerdicts(JudgeReward):
    """The chains of the highest verdict, not those of the highest meta judgement."""

    def _meta(self, answers: Any, texts: list[list[str]]) -> Tensor:
        found = self._stated(self.score, texts) if self.score is not None else super()._meta(answers, texts)
        return found.nan_to_num(-1.0)


@mutant("the meta judgement upside down", f"{TEST}::test_rejects_wrong_judges")
class LeastSound(JudgeReward):
    """The k_meta worst."""

    def _meta(self, answers: Any, texts: list[list[str]]) -> Tensor:
        return -super()._meta(answers, texts)


@mutant("chains without a score count as wrong", f"{TEST}::test_rejects_wrong_judges")
class NoneIsZero(JudgeReward):
    """What states no probability is taken for the probability 0."""

    def _stated(self, score: Any, texts: list[list[str]]) -> Tensor:
        return super()._stated(score, texts).nan_to_num(0.0)


@mutant("a repeated question is a judgement again", f"{TEST}::test_rejects_wrong_judges")
class AskedAgain(JudgeReward):
    """A step that says nothing new gets the verdict once more: its square is no estimate of the squared mean."""

    def _says_nothing(self, context: Context, sequence: int, step: int, asked: str | None) -> bool:
        return False


WRONG_JUDGES: dict[str, tuple[type[JudgeReward], str]] = {
    "best": (BestVerdicts, "the soundest of two scores in the text"),
    "least": (LeastSound, "the soundest of two"),
    "zero": (NoneIsZero, "scores in the text"),
    "again": (AskedAgain, "two steps, one chain"),
}
"""Each with the case of the test that shows it."""
