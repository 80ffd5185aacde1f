"""Where steps end, as a finite automaton over bytes that is tabulated over the vocabulary: one gather per token."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..context import PAD, Context
from ..stop_reason import StopReason
from .markdown import MARKDOWN, markdown_automaton
from .stop_pattern import StopPattern, pattern_automaton

_HEX_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class StopAutomaton:
    """Recognises where a step ends in a stream of tokens: at the first occurrence of any stop string (Aho & Corasick, 1975), the first
    match of a pattern, or where :func:`~ppl_llm.lm.markdown.markdown_automaton` says.

    A delimiter may lie inside a merged token or across several; what follows it inside the same token is not looked at. State 0 is the
    start of a text; the accepting state absorbs.

    :param token_bytes: the bytes of each token id; special tokens have none.
    :param stops: non-empty stop strings, or :class:`~ppl_llm.StopPattern`, ``markdown`` for its blank lines; none at all is allowed, and
        never accepts.
    :param accept_ids: special tokens, without bytes, that are accepted as such.
    :ivar Tensor table: ``[states, vocab]`` int32, next state.
    :ivar int accept: the accepting state.
    """

    def __init__(
        self, token_bytes: Sequence[bytes], stops: str | tuple[str, ...], device: torch.device | str = "cpu", accept_ids: Sequence[int] = ()
    ) -> None:
        stops = (stops,) if isinstance(stops, str) else stops
        delta = _any_of(tuple(stop for stop in stops if stop != MARKDOWN))
        self._remembers = MARKDOWN in stops
        if self._remembers:
            delta = _either(markdown_automaton(), delta)
        self.accept = len(delta) - 1
        self._delta = delta
        states = _after_tokens(delta, token_bytes)
        states[:, list(accept_ids)] = self.accept
        self.table = torch.from_numpy(states).to(device)

    def start(self, context: Context) -> Tensor:
        """The state ``[*batch_shape]`` in which the next step of each sequence begins.

        It is 0 after a delimiter, and with stop strings always. A code fence or display mathematics that is open stays open where
        ``max_tokens`` has cut a step, and behind an answer that the prompt has begun.
        """
        state = torch.zeros(context.batch_shape, dtype=torch.int32, device=context.tokens.device)
        if not self._remembers:
            return state
        cut = (context.reasons == StopReason.LENGTH).flip(-1).cumprod(-1).sum(-1)  # the last so many steps
        if any(context.prefills):
            after = [self._after_text(context.prefill_of(problem)) for problem in range(len(context.problems))]
            begun = torch.tensor(after, dtype=torch.int32, device=state.device)[context.problem_index]
            state = torch.where(cut == context.num_steps, begun, state)
        bounds = torch.cat([context.prompt_lengths[..., None], context.ends], -1)
        begin = bounds.gather(-1, context.num_steps - cut[..., None])
        width = int((context.lengths[..., None] - begin).max()) if begin.numel() else 0
        place = begin + torch.arange(width, device=begin.device)
        tokens = context.tokens.gather(-1, place.clamp(max=context.tokens.shape[-1] - 1))
        return self._read(state, torch.where(place < context.lengths[..., None], tokens, PAD))

    def step(self, state: Tensor, token: Tensor) -> Tensor:
        """Next state ``[*batch_shape]``."""
        return self.table[state.long(), token]

    def accepts(self, tokens: Tensor, state: Tensor | None = None) -> Tensor:
        """Whether steps ``[*batch_shape, M]`` padded with ``PAD`` come to their end: ``[*batch_shape]``.

        :param Tensor state: ``[*batch_shape]`` where they begin, by default the start of a text.
        """
        start = torch.zeros(tokens.shape[:-1], dtype=torch.int32, device=tokens.device) if state is None else state
        return self._read(start, tokens) == self.accept

    def _read(self, state: Tensor, tokens: Tensor) -> Tensor:
        if tokens.device.type == "cpu" and tokens.numel() > 0:  # elsewhere the host would have to wait for the longest one
            tokens = tokens[..., : int((tokens >= 0).sum(-1).max())]
        for token in tokens.unbind(-1):
            state = torch.where(token < 0, state, self.step(state, token.clamp(min=0)))
        return state

    def _after_text(self, text: str) -> int:
        """The state after a text, of which each step begins where the one before it ends."""
        state = 0
        for byte in text.encode():
            state = int(self._delta[state, byte])
            state = 0 if state == self.accept else state
        return state


def step_lengths(tokens: Tensor, automaton: StopAutomaton, state: Tensor, eos_ids: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths of the steps that sequences begin with.

    :param Tensor tokens: ``[A, M]``, padded with -1 on the right.
    :param Tensor state: ``[A]``, of the automaton where the steps begin.
    :param Tensor room: ``[A]``, longest step of each.
    :returns: lengths ``[A]``, and whether the step is over there ``[A]``: by a delimiter, the end of the text or for want of room.
    """
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


def _any_of(stops: tuple[str, ...]) -> NDArray[np.int64]:
    """``[states, 256]`` next state; the last state, where some delimiter has ended, accepts and absorbs."""
    if not any(isinstance(stop, StopPattern) for stop in stops):
        return _byte_automaton([stop.encode() for stop in stops])
    return pattern_automaton("|".join(f"(?:{stop})" if isinstance(stop, StopPattern) else re.escape(stop) for stop in stops))


def _after_tokens(delta: NDArray[np.int64], token_bytes: Sequence[bytes]) -> NDArray[np.int32]:
    """``[states, vocab]``: the state after each token."""
    lengths = np.array([len(token) for token in token_bytes], dtype=np.int64)
    text = np.frombuffer(b"".join(token_bytes), dtype=np.uint8)
    order = np.argsort(-lengths, kind="stable")  # the longest first: those that have a byte at a place are the first so many
    begins = (np.cumsum(lengths) - lengths)[order]
    after = delta.astype(np.int32)
    states = np.repeat(np.arange(len(delta), dtype=np.int32)[:, None], len(token_bytes), 1)
    for place in range(int(lengths.max(initial=0))):
        some = begins[: int((lengths > place).sum())] + place
        states[:, : len(some)] = after[states[:, : len(some)], text[some]]
    table = np.empty_like(states)
    table[:, order] = states
    return table


def _either(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """The automaton that accepts where one of two does, each ``[states, 256]`` with its accepting state at the end."""
    accept = len(first) - 1, len(second) - 1
    pairs, rows = [(0, 0)], []
    number = {(0, 0): 0}
    for pair in pairs:
        rows.append(list(zip(first[pair[0]].tolist(), second[pair[1]].tolist(), strict=True)))
        for after in rows[-1]:
            if after not in number and after[0] != accept[0] and after[1] != accept[1]:
                number[after] = len(pairs)
                pairs.append(after)
    table = [[number.get(after, len(number)) for after in row] for row in rows]
    return np.array([*table, [len(number)] * 256])


def _byte_automaton(patterns: list[bytes]) -> NDArray[np.int64]:
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
