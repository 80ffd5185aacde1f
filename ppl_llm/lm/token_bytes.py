"""The bytes that each token id stands for."""

from __future__ import annotations

import json
import re
from typing import Any

_HEX_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any, vocab_size: int) -> list[bytes]:
    """Bytes of each token id; empty for special tokens and for ids that the tokenizer does not know.

    Byte-level vocabularies (GPT-2, Qwen, Llama 3) and sentencepiece ones with a word-boundary mark and byte tokens (Llama 2, Mistral) are
    understood.

    :param tokenizer: a fast transformers tokenizer.
    :param int vocab_size: length of the list, the width of the model's logits.
    :raises ValueError: for any other kind of vocabulary.
    """
    byte_level = is_byte_level(tokenizer)
    alphabet = _byte_alphabet()
    added = tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    table = [b""] * vocab_size
    for text, i in tokenizer.get_vocab().items():
        if i >= vocab_size or i in special:
            continue
        if i in added:
            table[i] = text.encode()
        elif byte_level:
            table[i] = bytes(alphabet[char] for char in text)
        else:
            byte = _HEX_BYTE.fullmatch(text)
            table[i] = bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode()
    return table


def is_byte_level(tokenizer: Any) -> bool:
    """Whether a vocabulary writes bytes as characters of their own; otherwise it is a sentencepiece one.

    :raises ValueError: for any other kind of vocabulary.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{type(tokenizer).__name__} is a slow tokenizer; convert it to a tokenizer.json, which lists its decoder")
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if "type" in part}
    if "ByteLevel" in kinds:
        return True
    if kinds & {"ByteFallback", "Metaspace"} or any("▁" in text for text in tokenizer.get_vocab()):
        return False
    raise ValueError(
        f"cannot tell the bytes of the tokens of {type(tokenizer).__name__} (decoder {sorted(kinds)}): "
        "stop strings need a byte-level or a sentencepiece vocabulary"
    )


def _byte_alphabet() -> dict[str, int]:
    """Byte-level vocabularies write each byte as one printable character: itself, or the next unused one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}
