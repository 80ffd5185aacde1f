"""A language model as a judge of answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..lm.base import LanguageModel, StepOptions
from .answer_reward import AnswerReward
from .prm.formats.base import single_id

_TEMPLATE = "Problem:\n{problem}\n\nProposed solution:\n{answer}\n\n{question} Answer with one word, Yes or No."
_LEAST_MASS = 0.5
_log = logging.getLogger(__name__)
_ONE_TOKEN = StepOptions(max_tokens=1)


class JudgeReward(AnswerReward):
    """Asks a language model whether an answer is right; see :class:`~ppl_llm.reward.answer_reward.AnswerReward` for unfinished ones.

    The score is log p(yes) - log p(no) of the judge's first word: nothing is sampled. A judge that says neither has not understood the
    question; a warning is logged where p(yes) + p(no) is less than a half.

    :param LanguageModel lm: the judge; it need not be the model that reasons.
    :param prompt: makes what the judge is asked, a string or chat messages, from the problem and the answer.
    :param yes: the judge's word for a right answer, a single token of its vocabulary or its id.
    :param no: its word for a wrong one.
    :param str system_prompt: system turn before the judge's own question, which never has that of ``lm``; not for ``prompt``.
    :param bool partial: ask about unfinished answers too.
    :param float pending: log-odds of an unfinished answer otherwise.
    :raises ValueError: if a word is not a single token, or both are the same.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        prompt: Callable[[str, str], Any] | None = None,
        yes: str | int = "Yes",
        no: str | int = "No",
        system_prompt: str | None = None,
        partial: bool = False,
        pending: float = math.inf,
    ) -> None:
        super().__init__(partial=partial, pending=pending)
        self.lm, self.system_prompt, self._warned = lm, system_prompt, False
        self._prompt = prompt or self._default_prompt
        self.yes_id, self.no_id = _token_id(lm, yes), _token_id(lm, no)
        if self.yes_id == self.no_id:
            raise ValueError(f"yes and no must be different tokens, {yes!r} and {no!r} are both {self.yes_id}")

    def answer_log_odds(self, answers: Sequence[tuple[str, str]]) -> Tensor:
        asked = self.lm.start([self._prompt(problem, answer) for problem, answer in answers])
        words = torch.tensor([self.yes_id, self.no_id], device=self.lm.device)
        yes, no = self.lm.step_log_prob(asked, words[:, None, None].expand(2, len(answers), 1), _ONE_TOKEN)
        self._check(float(torch.logaddexp(yes, no).exp().mean()))
        return yes - no

    def _check(self, mass: float) -> None:
        """:param float mass: p(yes) + p(no), the mean over the questions."""
        if mass < _LEAST_MASS and not self._warned:
            self._warned = True
            _log.warning(
                "the judge says yes or no with probability %.2g only, so that its scores mean little: take a model that follows "
                "instructions, or give JudgeReward a prompt, and the words yes and no, that fit this one",
                mass,
            )

    def _default_prompt(self, problem: str, answer: str) -> Any:
        question = "Are all steps of the solution so far correct?" if self.partial else "Is the final answer of the solution correct?"
        text = _TEMPLATE.format(problem=problem, answer=answer.strip(), question=question)
        if getattr(getattr(self.lm, "tokenizer", None), "chat_template", None) is None:
            return text if self.system_prompt is None else f"{self.system_prompt}\n\n{text}"
        # Messages go without the system prompt that the language model has for problems.
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": text}]


def _token_id(lm: LanguageModel, word: str | int) -> int:
    if isinstance(word, int):
        if not 0 <= word < lm.vocab_size:
            raise ValueError(f"the judge's vocabulary has {lm.vocab_size} tokens, none has the id {word}")
        return word
    tokenizer = getattr(lm, "tokenizer", None)
    if tokenizer is not None:
        try:
            return single_id(tokenizer, word, "a word of the judge")
        except ValueError as error:
            remedy = "take another language model as the judge (--reward judge:DIR), or words of this one (JudgeReward(yes=..., no=...))"
            raise ValueError(f"{error}: {remedy}") from error
    ids = [i for i in range(lm.vocab_size) if lm.decode([i]) == word]
    if len(ids) != 1:
        raise ValueError(f"{len(ids)} tokens of the judge say {word!r}, it must be one; give its id instead")
    return ids[0]
