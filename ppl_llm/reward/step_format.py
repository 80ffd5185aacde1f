"""How a reasoning trace is written for a step-token process reward model: token ids of the prompt and of each step."""

from __future__ import annotations

from typing import Any

DEFAULT_SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."


class StepFormat:
    """Chat prompt, then each step's text followed by the step token.

    :param tokenizer: a tokenizer with a chat template and the step token.
    :param str system_prompt: system turn; ``None`` for the template's own.
    :param str step_token: the special token that ends a step and at which it is scored.
    :raises ValueError: if the tokenizer lacks the step token or a chat template.
    """

    def __init__(self, tokenizer: Any, system_prompt: str | None, step_token: str) -> None:
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

    def prompt(self, problem: str) -> list[int]:
        """Token ids of everything before the first step."""
        system = [] if self._system_prompt is None else [{"role": "system", "content": self._system_prompt}]
        chat = [*system, {"role": "user", "content": problem}, {"role": "assistant", "content": self._step_token}]
        text = self._tokenizer.apply_chat_template(chat, tokenize=False)
        return list(self._tokenizer(text[: text.rindex(self._step_token)], add_special_tokens=False)["input_ids"])

    def step(self, text: str) -> list[int]:
        """Token ids of a step, step token included; the delimiter after it is dropped.

        Special tokens written out in the text stay text: a step must not be able to end itself.
        """
        return [*self._plain(text.rstrip()), self.step_id]

    def _plain(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
        if self.step_id not in ids:
            return ids
        # A vocabulary in which the step token is an ordinary added token matches it all the same: cut the text inside every occurrence.
        pieces = text.split(self._step_token)
        cut = len(self._step_token) // 2
        heads = [piece + self._step_token[:cut] for piece in pieces[:-1]] + [pieces[-1]]
        tails = ["", *([self._step_token[cut:]] * (len(pieces) - 1))]
        parts = [tail + head for tail, head in zip(tails, heads, strict=True)]
        return [i for part in parts for i in self._tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"]]
