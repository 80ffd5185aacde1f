"""How a reasoning trace is written for a process reward model."""

from __future__ import annotations

import re
from typing import Any, Protocol


class PRMFormat(Protocol):
    """Token ids of a problem and of the steps after it, as the model was trained to read them.

    The ids of a trace are ``prompt(problem) + step(first, 0) + step(second, 1) + ...``, and each step is scored at the last of its ids.
    What a step looks like therefore must not depend on the steps after it.

    :ivar dict ids: the token ids that the format relies on, by their text; checked against the published ones.
    """

    ids: dict[str, int]

    def prompt(self, problem: str) -> list[int]:
        """Everything before the first step."""
        ...

    def step(self, text: str, index: int) -> list[int]:
        """The step number ``index``, from 0. Nothing that its text says can end it."""
        ...

    def answer(self, text: str) -> list[int]:
        """All steps so far as a single one."""
        ...


def one_block(text: str) -> str:
    """An answer without blank lines, which separate steps."""
    return re.sub(r"\s*\n\s*", "\n", text.strip())


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which special tokens that are written out stay text."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]) if text else []


def ids_with_specials(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which special tokens count as such, and to which none is added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def without_token(tokenizer: Any, text: str, token: str, token_id: int) -> list[int]:
    """Token ids of a text none of which is ``token_id``, even if the text says ``token``.

    A vocabulary in which it is an ordinary added token matches it all the same: then the text is cut inside every occurrence.
    """
    ids = plain_ids(tokenizer, text)
    if token_id not in ids:
        return ids
    pieces = text.split(token)
    cut = len(token) // 2
    heads = [piece + token[:cut] for piece in pieces[:-1]] + [pieces[-1]]
    tails = ["", *([token[cut:]] * (len(pieces) - 1))]
    return [i for tail, head in zip(tails, heads, strict=True) for i in plain_ids(tokenizer, tail + head)]


def neutralised(tokenizer: Any, text: str) -> str:
    """The text with a space inside every special token that is written out in it, for templates that are tokenized as a whole."""
    for token in tokenizer.all_special_tokens:
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def single_id(tokenizer: Any, text: str, purpose: str) -> int:
    """The id of a text that is one token.

    :param str purpose: what the token is for, for the error.
    :raises ValueError: if the tokenizer does not know it as one token.
    """
    ids = plain_ids(tokenizer, text)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ValueError(f"{text!r}, {purpose}, is {len(ids)} tokens {ids} of this tokenizer; it must be a single one that is known")
    return ids[0]
