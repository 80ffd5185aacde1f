"""The tokenizer of a model that lives on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from .served import ServedModel


class ServedTokenizer(NamedTuple):
    """A tokenizer and what its model's configuration adds to it.

    :ivar set eos_ids: tokens that end the text.
    :ivar int vocab_size: width of the model's logits where the configuration is known, else of the tokenizer.
    :ivar str source: the directory or name it was loaded from; ``None`` for an object.
    :ivar int max_length: longest context, where the configuration is known.
    """

    tokenizer: Any
    eos_ids: set[int]
    vocab_size: int
    source: str | None = None
    max_length: int | None = None

    @classmethod
    def of(cls, served: ServedModel, given: Any, kind: str = "lm") -> ServedTokenizer:
        """The tokenizer that was given, or the one that the server's model has by its directory or name.

        :raises OSError: if there is none.
        """
        if given is not None:
            return cls.load(given, kind)
        try:
            return cls.load(served.source, kind)
        except OSError as error:
            raise OSError(f"no tokenizer for {served.name!r}: pass tokenizer=DIRECTORY or the name of its model. {error}") from error

    @classmethod
    def load(cls, source: Any, kind: str = "lm") -> ServedTokenizer:
        """
        :param source: a fast transformers tokenizer, a directory that holds one, ``"demo"``, or a name on the Hugging Face Hub. Of a
            directory or name the configuration is read as well, should there be one.
        :param str kind: of the model, ``lm`` or ``prm``.
        :raises OSError: if there is no tokenizer.
        """
        from transformers import AutoConfig, GenerationConfig

        from ..lm.loading import load_tokenizer, locate

        if not isinstance(source, (str, Path)):
            return cls(source, _ids(source), len(source))
        path = Path(source).expanduser()
        name = str(path) if path.is_dir() else locate(source, kind)
        tokenizer = load_tokenizer(name)
        eos_ids, vocab_size, max_length = _ids(tokenizer), len(tokenizer), None
        for settings in (AutoConfig, GenerationConfig):
            try:
                config = settings.from_pretrained(name)
            except (OSError, ValueError):
                continue  # a directory with the tokenizer alone will do
            text = config.get_text_config() if settings is AutoConfig else config
            eos_ids |= _ids(text)
            max_length = getattr(text, "max_position_embeddings", None) or max_length
            vocab_size = max(vocab_size, getattr(text, "vocab_size", None) or 0)
        return cls(tokenizer, eos_ids, vocab_size, name, max_length)


def _ids(source: Any) -> set[int]:
    eos = getattr(source, "eos_token_id", None)
    return set(eos) if isinstance(eos, (list, tuple)) else set() if eos is None else {int(eos)}
