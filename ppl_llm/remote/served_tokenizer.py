"""The tokenizer of a model that lives on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple


class ServedTokenizer(NamedTuple):
    """A tokenizer and what its model's configuration adds to it.

    :ivar set eos_ids: tokens that end the text.
    :ivar int vocab_size: width of the model's logits where the configuration is known, else of the tokenizer.
    """

    tokenizer: Any
    eos_ids: set[int]
    vocab_size: int

    @classmethod
    def load(cls, source: Any) -> ServedTokenizer:
        """
        :param source: a fast transformers tokenizer, a directory that holds one, ``"demo"``, or a name on the Hugging Face Hub. Of a
            directory or name the configuration is read as well, should there be one.
        :raises OSError: if there is no tokenizer.
        """
        from transformers import AutoConfig, GenerationConfig

        from ..lm.loading import load_tokenizer, locate

        if not isinstance(source, (str, Path)):
            return cls(source, _ids(source), len(source))
        name = locate(source, "lm") if str(source) == "demo" else str(Path(source).expanduser() if Path(source).is_absolute() else source)
        tokenizer = load_tokenizer(name)
        eos_ids, vocab_size = _ids(tokenizer), len(tokenizer)
        for kind in (AutoConfig, GenerationConfig):
            try:
                config = kind.from_pretrained(name)
            except (OSError, ValueError):
                continue  # a directory with the tokenizer alone will do
            text = config.get_text_config() if kind is AutoConfig else config
            eos_ids |= _ids(text)
            vocab_size = max(vocab_size, getattr(text, "vocab_size", None) or 0)
        return cls(tokenizer, eos_ids, vocab_size)


def _ids(source: Any) -> set[int]:
    eos = getattr(source, "eos_token_id", None)
    return set(eos) if isinstance(eos, (list, tuple)) else set() if eos is None else {int(eos)}
