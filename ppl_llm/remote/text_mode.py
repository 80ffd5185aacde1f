"""Steps as text, for servers that know no token ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..lm.stopping import is_byte_level
from .completions import Choice


class TextMode:
    """Text both ways: prompts are written out and read again by the server, steps are read again here.

    The server may cut a prefix into other tokens than those that were sampled, so a step is drawn from the model given the text so far,
    and log-probabilities of token sequences have no meaning.

    :param tokenizer: of the model, byte-level.
    :param set eos_ids: tokens that end the text.
    :param bool server_stop: whether stop strings are sent. A server that removes them from its text and does not tell why it stopped
        (no ``stop_reason`` in its choices) leaves open whether the step or the text ended; without them the step is cut here.
    :raises ValueError: for a tokenizer that reads a text differently at its beginning.
    """

    def __init__(self, tokenizer: Any, eos_ids: set[int], server_stop: bool = True) -> None:
        self._tokenizer, self._eos_id, self._server_stop = tokenizer, min(eos_ids), server_stop
        if not is_byte_level(tokenizer):
            raise ValueError("text mode needs a byte-level tokenizer: a sentencepiece one would put spaces between steps")
        added = tokenizer("a")["input_ids"]
        self._added_first = added[0] if added and added[0] in tokenizer.all_special_ids else None

    def prompt(self, ids: list[int]) -> str:
        """What is sent of a sequence. The server adds the token that begins every text, if there is one, by itself."""
        kept = ids[1:] if ids and ids[0] == self._added_first else ids
        return str(self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def fields(self, stops: list[str], top_k: int | None, log_probs: bool, special: Mapping[str, int]) -> dict[str, Any]:
        """See :meth:`TokenMode.fields`; only what every server knows, and ``top_k`` if it is asked for."""
        return {**({"stop": stops} if self._server_stop else {}), **({} if top_k is None else {"top_k": top_k})}

    def tokens(self, choice: Choice, stops: list[str]) -> list[int]:
        """See :meth:`TokenMode.tokens`.

        :raises ValueError: if it cannot be known how the step ended.
        """
        found = [choice.text.index(stop) + len(stop) for stop in stops if stop in choice.text]
        if found:
            return self._encode(choice.text[: min(found)])
        if choice.finish_reason == "length":
            return self._encode(choice.text)
        if choice.stop_reason in stops:
            return self._encode(choice.text + str(choice.stop_reason))
        if stops and self._server_stop and not choice.tells_stop:
            raise ValueError(
                "the server ended a text without its stop string and does not tell why (no stop_reason), so that the end of a step cannot "
                "be told from the end of the text; pass server_stop=False to cut steps here"
            )
        return [*self._encode(choice.text), self._eos_id]

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
