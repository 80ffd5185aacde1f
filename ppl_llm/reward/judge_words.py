"""The words of a judge as tokens."""

from __future__ import annotations

from ..lm.base import LanguageModel
from .prm.formats.base import single_id


def token_id(lm: LanguageModel, word: str | int) -> int:
    """The single token of a word, or the id itself.

    :raises ValueError: for a word of another number of tokens, with the remedy, or an id out of range.
    """
    if isinstance(word, int):
        if not 0 <= word < lm.vocab_size:
            raise ValueError(f"the judge's vocabulary has {lm.vocab_size} tokens, none has the id {word}")
        return word
    tokenizer = getattr(lm, "tokenizer", None)
    if tokenizer is not None:
        try:
            return single_id(tokenizer, word, "a word of the judge")
        except ValueError as error:
            remedy = "take another language model as the judge (judge:DIR), or words of this one (yes=..., no=...; --yes and --no)"
            raise ValueError(f"{error}: {remedy}") from error
    ids = [i for i in range(lm.vocab_size) if lm.decode([i]) == word]
    if len(ids) != 1:
        raise ValueError(f"{len(ids)} tokens of the judge say {word!r}, it must be one; give its id instead")
    return ids[0]


def token_behind_colon(lm: LanguageModel, word: str | int, known: int) -> int:
    """The token of a word behind a colon: the one with a space before it, where there is one."""
    tokenizer = getattr(lm, "tokenizer", None)
    if isinstance(word, int) or tokenizer is None:
        return known
    ids = tokenizer.encode(f" {word}", add_special_tokens=False)
    return int(ids[0]) if len(ids) == 1 else known


def says_neither(mass: float) -> str:
    """What to know about a judge whose two words have little probability together, with the remedies."""
    return (
        f"the judge says its two words with probability {mass:.2g} only, so that its scores mean little: take another language model as "
        "the judge, one that follows instructions (judge:DIR), or words that this one says (yes=..., no=..., and in Python prompt=...; "
        "--yes and --no)"
    )
