"""Stop strings as a finite automaton over bytes, tabulated over the vocabulary: one gather per token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


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
        """Next state ``[*lanes]``."""
        return self.table[state.long(), token]

    def accepts(self, tokens: Tensor) -> Tensor:
        """Whether sequences ``[*lanes, M]`` padded with -1 contain a stop string: ``[*lanes]``."""
        state = torch.zeros(tokens.shape[:-1], dtype=torch.int32, device=tokens.device)
        for token in tokens.unbind(-1):
            state = torch.where(token < 0, state, self.step(state, token.clamp(min=0)))
        return state == self.accept


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
