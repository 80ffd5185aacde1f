"""How math-shepherd reads a trace: plain text in which every numbered step ends in a tag."""

from __future__ import annotations

import re
from typing import Any

from .base import one_block, plain_ids

_NUMBERED = re.compile(r"Step\s+\d+\s*:", re.IGNORECASE)


class MathShepherdFormat:
    """``problem Step 1: ... ки`` and on a new line ``Step 2: ... ки`` (a :class:`~ppl_llm.reward.prm.formats.base.PRMFormat`).

    At a tag the model says whether the step is good or bad, as the next token. Steps that do not begin with their number get it, since the
    model was trained on numbered steps only.

    :param tokenizer: the model's tokenizer, of the sentencepiece kind.
    :param str step_tag: what ends a step.
    :param str good_token: the next token after a good step.
    :param str bad_token: the next token after a bad step.
    :param bool number_steps: whether to write ``Step k:`` before steps that lack it.
    :raises ValueError: if one of them is not a single token after a space.
    """

    def __init__(
        self, tokenizer: Any, step_tag: str = "ки", good_token: str = "+", bad_token: str = "-", number_steps: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._tag = step_tag
        self._number_steps = number_steps
        words = plain_ids(tokenizer, f"{good_token} {bad_token} {step_tag}")
        if len(words) != 3 or len(set(words)) != 3 or tokenizer.unk_token_id in words:
            raise ValueError(
                f"{good_token!r}, {bad_token!r} and the step tag {step_tag!r} must be three known tokens of a math-shepherd tokenizer, "
                f"this one gives {words}; use the tokenizer of its directory, for another model pass good_token=, bad_token= and step_tag="
            )
        self.good_id, self.bad_id, self.step_id = words
        self._anchor = plain_ids(tokenizer, step_tag)
        self.ids = {good_token: self.good_id, bad_token: self.bad_id, step_tag: self.step_id}

    def prompt(self, problem: str) -> list[int]:
        begin = self._tokenizer.bos_token_id
        return ([] if begin is None else [begin]) + plain_ids(self._tokenizer, problem.strip())

    def step(self, text: str, index: int) -> list[int]:
        text = text.strip()
        if self._number_steps and not _NUMBERED.match(text):
            text = f"Step {index + 1}: {text}".rstrip()
        before = "\n" if index else " "
        ids = self._after_word(f"{before}{text} {self._tag}")
        if ids.count(self.step_id) > 1:
            # The tag written in the text, e.g. a Russian syllable: a space inside it makes it another token.
            apart = f"{self._tag[0]} {self._tag[1:]}"
            ids = self._after_word(f"{before}{text.replace(self._tag, apart)} {self._tag}")
        if ids[-1] != self.step_id or ids.count(self.step_id) != 1:
            raise ValueError(f"the tokenizer does not end the step {text!r} in the step tag {self._tag!r} (id {self.step_id}): {ids[-4:]}")
        return ids

    def answer(self, text: str) -> list[int]:
        return self.step(one_block(text), 0)

    def _after_word(self, text: str) -> list[int]:
        """Token ids of a text that follows a word: a sentencepiece vocabulary writes the start of a text differently."""
        ids = plain_ids(self._tokenizer, self._tag + text)
        start = len(self._anchor)
        if ids[:start] != self._anchor:
            raise ValueError(f"the tokenizer joins {text[:1]!r} to the word before it, which no sentencepiece vocabulary does")
        return ids[start:]
