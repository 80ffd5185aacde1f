"""A Python function as a reward: a verifier, unit tests, a regular expression."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..inference.util.checked import checked
from ..inference.util.fingerprint import name_of
from ..inference.util.validation import unknown_name
from .answer_reward import AnswerReward

SCALES = ("probability", "log_odds")


class FunctionReward(AnswerReward):
    """Asks a Python function about answers; see :class:`~ppl_llm.reward.answer_reward.AnswerReward` for unfinished ones.

    The function must be deterministic: it is called again when a trajectory is replayed. Wrap an expensive one in
    :func:`functools.cache`. An exception in it ends the run; catch what should count as a wrong answer.

    :param fn: called with the problem's text and the answer's text. Its value is a bool or the probability that the answer is right, and
        an answer it rejects with certainty has weight zero; or log-odds, see ``scale``. The potential ``odds`` needs values short of
        certainty.
    :param str scale: of the function's values, ``probability`` or ``log_odds``.
    :param partial: ask about unfinished answers too; ``word``, ``line`` or a regular expression for the part of them up to the last one.
    :param float pending: log-odds of an unfinished answer otherwise.
    :raises ValueError: for an unknown scale, or, later, a value that is not on it.

    Example::

        verifier = FunctionReward(lambda problem, text: extract_answer(text) == "42")
        SMC(reasoning(lm, verifier, preset="exact"), num_particles=32).run("What is 6 * 7?")
    """

    @checked
    def __init__(
        self,
        fn: Callable[[str, str], float | bool],
        *,
        scale: str = "probability",
        partial: bool | str = False,
        pending: float = math.inf,
    ) -> None:
        super().__init__(partial=partial, pending=pending)
        if scale not in SCALES:
            raise unknown_name("scale", scale, SCALES)
        self.fn, self.scale = fn, scale

    @property
    def label(self) -> str:
        return f"{super().label} of {name_of(self.fn)}, {self.scale}"

    def answer_log_odds(self, answers: Sequence[tuple[str, str]]) -> Tensor:
        return torch.tensor([self._log_odds(problem, text) for problem, text in answers], dtype=torch.float64)

    def _log_odds(self, problem: str, text: str) -> float:
        value = self.fn(problem, text)
        number = float(value) if isinstance(value, (bool, int, float)) or hasattr(value, "__float__") else math.nan
        if self.scale == "log_odds" and not isinstance(value, bool) and not math.isnan(number):
            return number
        if self.scale == "probability" and 0 <= number <= 1:
            return math.log(number) - math.log1p(-number) if 0 < number < 1 else math.copysign(math.inf, number - 0.5)
        wanted = "a bool or a probability in [0, 1]" if self.scale == "probability" else "log-odds, a float that is not nan"
        hint = "; for log-odds pass scale='log_odds'" if self.scale == "probability" and math.isfinite(number) else ""
        raise ValueError(
            f"the reward function {name_of(self.fn)} must return {wanted}{hint}; it returned {value!r} for the answer {text[-80:]!r}"
        )
