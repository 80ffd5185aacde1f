"""Stop strings as a finite automaton over bytes, tabulated over the vocabulary: one gather per token."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_HEX_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class StopAutomaton:
    """Recognises the first occurrence of any stop string in a stream of tokens (Aho & Corasick, 1975).

    A stop string may lie inside a merged token or across several. State 0 is the start of a step; the accepting state absorbs.

    :param token_bytes: the bytes of each token id; special tokens have none.
    :param stops: non-empty stop strings; none at all is allowed, and never accepts.
    :param accept_ids: special tokens, without bytes, that are accepted as such.
    :ivar Tensor table: ``[states, vocab]`` int32, next state.
    :ivar int accept: the accepting state.
    """

    def __init__(
        self, token_bytes: Sequence[bytes], stops: str | tuple[str, ...], device: torch.device | str = "cpu", accept_ids: Sequence[int] = ()
    ) -> None:
        patterns = [stop.encode() for stop in ((stops,) if isinstance(stops, str) else stops)]
        delta = _byte_automaton(patterns)
        self.accept = len(delta) - 1
        width = max((len(token) for token in token_bytes), default=0)
        # One column more than any token's length: byte 256 means "no byte here" and keeps the state.
        grid = np.full((len(token_bytes), width), 256, dtype=np.int64)
        for row, token in zip(grid, token_bytes, strict=True):
            row[: len(token)] = list(token)
        delta = np.concatenate([delta, np.arange(len(delta))[:, None]], 1)
        states = np.repeat(np.arange(len(delta))[:, None], len(token_bytes), 1)
        for column in range(width):
            states = delta[states, grid[:, column]]
        states[:, list(accept_ids)] = self.accept
        self.table = torch.from_numpy(states.astype(np.int32)).to(device)

    def step(self, state: Tensor, token: Tensor) -> Tensor:
        """Next state ``[*batch_shape]``."""
        return self.table[state.long(), token]

    def accepts(self, tokens: Tensor) -> Tensor:
        """Whether sequences ``[*batch_shape, M]`` padded with -1 contain a stop string: ``[*batch_shape]``."""
        state = torch.zeros(tokens.shape[:-1], dtype=torch.int32, device=tokens.device)
        if tokens.device.type == "cpu" and tokens.numel() > 0:  # elsewhere the host would have to wait for the longest one
            tokens = tokens[..., : int((tokens >= 0).sum(-1).max())]
        for token in tokens.unbind(-1):
            state = torch.where(token < 0, state, self.step(state, token.clamp(min=0)))
        return state == self.accept


def step_lengths(tokens: Tensor, automaton: StopAutomaton, eos_ids: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths of the steps that sequences begin with.

    :param Tensor tokens: ``[A, M]``, padded with -1 on the right.
    :param Tensor room: ``[A]``, longest step of each.
    :returns: lengths ``[A]``, and whether the step is over there ``[A]``: by a delimiter, the end of the text or for want of room.
    """
    state = torch.zeros(tokens.shape[0], dtype=torch.int32, device=tokens.device)
    length = torch.zeros(tokens.shape[0], dtype=torch.long, device=tokens.device)
    over = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
    open_ = ~over
    for k, token in enumerate(tokens.unbind(-1)):
        open_ = open_ & (token >= 0)
        state = automaton.step(state, token.clamp(min=0))
        length += open_
        ends = (state == automaton.accept) | torch.isin(token, eos_ids) | (k + 1 >= room)
        over |= open_ & ends
        open_ = open_ & ~ends
    return length, over


def _byte_automaton(patterns: list[bytes]) -> np.ndarray:
    """``[states, 256]`` next state; the last state accepts and absorbs."""
    children: list[dict[int, int]] = [{}]
    accepting: set[int] = set()
    for pattern in patterns:
        node = 0
        for byte in pattern:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
            node = children[node][byte]
        accepting.add(node)
    delta = np.zeros((len(children), 256), dtype=np.int64)
    fail = [0] * len(children)
    queue = list(children[0].values())
    for byte, child in children[0].items():
        delta[0, byte] = child
    for node in queue:  # breadth first: the failure link of a node is shallower than the node
        if fail[node] in accepting:
            accepting.add(node)
        delta[node] = delta[fail[node]]
        for byte, child in children[node].items():
            fail[child] = int(delta[fail[node], byte])
            delta[node, byte] = child
            queue.append(child)
    # Renumber: states that are left, then one absorbing accepting state.
    inner = [node for node in range(len(children)) if node not in accepting]
    number = np.full(len(children), len(inner))
    number[inner] = np.arange(len(inner))
    return np.concatenate([number[delta[inner]], np.full((1, 256), len(inner))])


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
            # A character that stands for no byte is in no merge: the token was added to the vocabulary as it reads.
            known = all(char in alphabet for char in text)
            table[i] = bytes(alphabet[char] for char in text) if known else text.encode()
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
