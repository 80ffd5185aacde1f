"""How the RLHFlow PRMs read a trace: a conversation in which the user says the steps and the assistant grades them."""

from __future__ import annotations

from typing import Any

from .base import ids_with_specials, one_block, plain_ids, single_id

_PROBE = "first words"
_SECOND = "second words"


class RLHFlowFormat:
    """Turns ``user: problem step_1``, ``assistant: +``, ``user: step_2``, ... (a :class:`~ppl_llm.reward.prm.formats.base.PRMFormat`).

    A step is scored where the assistant's grade is predicted; the conversation continues as if it had been good.

    :param tokenizer: the model's tokenizer, with its chat template.
    :param str good_token: the assistant's word for a good step.
    :param str bad_token: its word for a bad step.
    :raises ValueError: if there is no chat template, it does not fit, or a word is not a single token.
    """

    def __init__(self, tokenizer: Any, good_token: str = "+", bad_token: str = "-") -> None:
        if tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template, which an RLHFlow PRM needs; use the tokenizer of its directory")
        self._tokenizer = tokenizer
        self.good_id = single_id(tokenizer, good_token, "the grade of a good step")
        self.bad_id = single_id(tokenizer, bad_token, "the grade of a bad step")
        self.ids = {good_token: self.good_id, bad_token: self.bad_id}
        # What the template puts around the turns, from a conversation of two steps.
        text, turn = self._conversation(good_token, _PROBE, _SECOND), self._conversation(good_token, _PROBE)
        whole, first = ids_with_specials(tokenizer, text), ids_with_specials(tokenizer, turn)
        opening, found, rest = text.partition(_PROBE)
        between, found_second, closing = rest.partition(_SECOND)
        header, graded, next_turn = between.rpartition(good_token)
        if not (found and found_second and graded and text.startswith(turn) and whole[: len(first)] == first):
            raise ValueError("the chat template does not write a conversation turn by turn, as an RLHFlow PRM needs")
        self._opening = ids_with_specials(tokenizer, opening)
        self._grade = ids_with_specials(tokenizer, header)  # the end of a user turn and the head of the assistant's
        self._next = ids_with_specials(tokenizer, good_token + next_turn)
        grade_again = ids_with_specials(tokenizer, closing.rpartition(good_token)[0])
        probe = self.prompt(_PROBE.split()[0]) + self.step(_PROBE.split()[1], 0) + self.step(_SECOND, 1)
        if grade_again != self._grade or [*probe, self.good_id] != whole[: len(probe) + 1]:
            raise ValueError(
                "the chat template joins the tokens of a turn to those around it; an RLHFlow PRM needs special tokens between turns"
            )

    def prompt(self, problem: str) -> list[int]:
        return self._opening + plain_ids(self._tokenizer, problem.strip())

    def step(self, text: str, index: int) -> list[int]:
        text = text.strip()
        if index == 0:
            return plain_ids(self._tokenizer, f" {text}" if text else "") + self._grade
        return self._next + plain_ids(self._tokenizer, text) + self._grade

    def answer(self, text: str) -> list[int]:
        return self.step(one_block(text), 0)

    def _conversation(self, grade: str, *turns: str) -> str:
        chat = [said for turn in turns for said in ({"role": "user", "content": turn}, {"role": "assistant", "content": grade})]
        return str(self._tokenizer.apply_chat_template(chat, tokenize=False))
