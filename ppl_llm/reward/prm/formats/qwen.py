"""How Qwen2.5-Math-PRM reads a trace: a chat whose answer has a step token after each step."""

from __future__ import annotations

from typing import Any

from .base import ids_with_specials, one_block, without_token

DEFAULT_SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."


class QwenFormat:
    """Chat prompt, then each step's text followed by the step token (a :class:`~ppl_llm.reward.prm.formats.base.PRMFormat`).

    :param tokenizer: a tokenizer with a chat template and the step token.
    :param str system_prompt: system turn of the PRM's own prompt, whatever the language model was told; ``None`` for the template's own.
    :param str step_token: the special token that ends a step and at which it is scored.
    :raises ValueError: if the tokenizer lacks the step token or a chat template.
    """

    def __init__(self, tokenizer: Any, system_prompt: str | None = DEFAULT_SYSTEM_PROMPT, step_token: str = "<extra_0>") -> None:
        vocabulary = tokenizer.get_vocab()
        if step_token not in vocabulary:
            raise ValueError(
                f"the tokenizer has no step token {step_token!r}; that of a Qwen2.5-Math-PRM has '<extra_0>', "
                "for another model pass step_token=..."
            )
        if tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template, which a Qwen2.5-Math-PRM needs; use the tokenizer of its directory")
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        self._step_token = step_token
        self.step_id: int = vocabulary[step_token]
        self.ids = {step_token: self.step_id}

    def prompt(self, problem: str) -> list[int]:
        system = [] if self._system_prompt is None else [{"role": "system", "content": self._system_prompt}]
        chat = [*system, {"role": "user", "content": problem}, {"role": "assistant", "content": self._step_token}]
        text = self._tokenizer.apply_chat_template(chat, tokenize=False)
        return ids_with_specials(self._tokenizer, text[: text.rindex(self._step_token)])

    def step(self, text: str, index: int = 0) -> list[int]:
        """The step's text and the step token; the delimiter between them is dropped."""
        return [*without_token(self._tokenizer, text.rstrip(), self._step_token, self.step_id), self.step_id]

    def answer(self, text: str) -> list[int]:
        return self.step(one_block(text))
