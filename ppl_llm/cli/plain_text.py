"""Texts as contexts, for scoring without a language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..context import PAD, Context
from ..lm.stopping import StopAutomaton


class PlainText:
    """Stands in for a language model whose tokens are bytes."""

    vocab_size, max_length, enumerable = 256, 1 << 30, False
    device = torch.device("cpu")
    eos_ids = torch.tensor([], dtype=torch.long)

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode()

    def stop_automaton(self, stop: str | tuple[str, ...]) -> StopAutomaton:
        return StopAutomaton([bytes([i]) for i in range(256)], stop)

    def context(self, problem: str, solutions: list[list[str]]) -> Context:
        """A sequence for each solution; all have the same number of steps."""
        lm: Any = self
        context = Context.root(lm, (problem,), [list(problem.encode())], batched=False).expand((len(solutions),))
        for steps in zip(*solutions, strict=True):
            context = context.extend(_padded([f"{step}\n\n".encode() for step in steps]))
        return context


def _padded(rows: list[bytes]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])
