"""How Skywork-o1-Open-PRM reads a trace: plain lines, each scored at its newline."""

from __future__ import annotations

from typing import Any

from .base import ids_with_specials, plain_ids


class SkyworkFormat:
    """Problem and answer as lines, without a chat (a :class:`~ppl_llm.reward.prm.formats.base.PRMFormat`).

    Every line ends in the newline token, tokenized apart from it, and the model gives each line a score. A step of several lines has that
    of its last line, read when all of them are there.

    :param tokenizer: the model's tokenizer.
    :param str step_token: what ends a line; the published models know the newline only.
    """

    def __init__(self, tokenizer: Any, step_token: str = "\n") -> None:
        ids = plain_ids(tokenizer, step_token)
        if not ids:
            raise ValueError(f"step_token {step_token!r} has no token")
        self._tokenizer = tokenizer
        self._step_token = step_token
        self.step_id = ids[-1]
        self.ids = {step_token: self.step_id}

    def prompt(self, problem: str) -> list[int]:
        begin = ids_with_specials(self._tokenizer, self._tokenizer.bos_token or "")
        return begin + plain_ids(self._tokenizer, problem + "\n")

    def step(self, text: str, index: int = 0) -> list[int]:
        """The lines of a step; blank lines around it are the delimiter between steps and dropped, an empty step is an empty line."""
        lines = text.strip("\r\n").rstrip().split(self._step_token)
        return [i for line in lines for i in (*plain_ids(self._tokenizer, line), self.step_id)]

    def answer(self, text: str) -> list[int]:
        """The whole answer as one line: its newlines become spaces."""
        return self.step(" ".join(line.strip() for line in text.split(self._step_token) if line.strip()))
