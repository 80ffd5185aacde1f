"""A language model as a judge of answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..lm.base import LanguageModel, StepOptions
from .answer_reward import AnswerReward
from .prm.formats.base import single_id

_TEMPLATE = "Problem:\n{problem}\n\nProposed solution:\n{answer}\n\n{question} Answer with one word, Yes or No."
_ONE_TOKEN = StepOptions(max_tokens=1)


class JudgeReward(AnswerReward):
    """Asks a language model whether an answer is right; see :class:`~ppl_llm.reward.answer_reward.AnswerReward` for unfinished ones.

    The score is log p(yes) - log p(no) of the judge's first word: nothing is sampled.

    :param LanguageModel lm: the judge; it need not be the model that reasons.
    :param prompt: makes what the judge is asked, a string or chat messages, from the problem and the answer.
    :param yes: the judge's word for a right answer, a single token of its vocabulary or its id.
    :param no: its word for a wrong one.
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
        partial: bool = False,
        pending: float = math.inf,
    ) -> None:
        super().__init__(partial=partial, pending=pending)
        self.lm = lm
        self._prompt = prompt or self._default_prompt
        self.yes_id, self.no_id = _token_id(lm, yes), _token_id(lm, no)
        if self.yes_id == self.no_id:
            raise ValueError(f"yes and no must be different tokens, {yes!r} and {no!r} are both {self.yes_id}")

    def answer_log_odds(self, answers: Sequence[tuple[str, str]]) -> Tensor:
        asked = self.lm.start([self._prompt(problem, answer) for problem, answer in answers])
        words = torch.tensor([self.yes_id, self.no_id], device=self.lm.device)
        yes, no = self.lm.step_log_prob(asked, words[:, None, None].expand(2, len(answers), 1), _ONE_TOKEN)
        return yes - no

    def _default_prompt(self, problem: str, answer: str) -> str:
        question = "Are all steps of the solution so far correct?" if self.partial else "Is the final answer of the solution correct?"
        return _TEMPLATE.format(problem=problem, answer=answer.strip(), question=question)


def _token_id(lm: LanguageModel, word: str | int) -> int:
    if isinstance(word, int):
        if not 0 <= word < lm.vocab_size:
            raise ValueError(f"the judge's vocabulary has {lm.vocab_size} tokens, none has the id {word}")
        return word
    tokenizer = getattr(lm, "tokenizer", None)
    if tokenizer is not None:
        return single_id(tokenizer, word, "a word of the judge")
    ids = [i for i in range(lm.vocab_size) if lm.decode([i]) == word]
    if len(ids) != 1:
        raise ValueError(f"{len(ids)} tokens of the judge say {word!r}, it must be one; give its id instead")
    return ids[0]
