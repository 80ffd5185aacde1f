"""A small network on hidden states that tells whether a solution will be right, and how it is trained."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, silu

_BATCH = 256
_LEARNING_RATE, _DECAY = 1e-3, 0.1
_PATIENCE = 4
"""Passes over the data without progress after which training ends."""


class StateHead(nn.Module):
    """Layer norm and two linear layers.

    :param int size: numbers in a hidden state.
    :param int width: units in between.
    """

    def __init__(self, size: int, width: int = 128) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(size), nn.Linear(size, width), nn.Linear(width, 1)

    @property
    def size(self) -> int:
        """Numbers in a hidden state."""
        return self.inner.in_features

    @property
    def width(self) -> int:
        return self.inner.out_features

    def forward(self, states: Tensor) -> Tensor:
        """Log-odds ``[...]`` from states ``[..., size]``."""
        odds: Tensor = self.outer(silu(self.inner(self.norm(states))))
        return odds[..., 0]

    @classmethod
    def fit(
        cls, states: Tensor, labels: Tensor, groups: Tensor, *, width: int = 128, validation: float = 0.2, epochs: int = 60, seed: int = 0
    ) -> StateHead:
        """Train on labels by AdamW. A share of the groups is kept back, and the head that predicts them best is taken, so that the more it
        could learn by heart the earlier training ends.

        :param Tensor states: ``[M, size]``.
        :param Tensor labels: ``[M]``, 0 or 1.
        :param Tensor groups: ``[M]``, e.g. the problem of each state; a group is trained on as a whole or not at all.
        :param float validation: share of the groups that is kept back.
        :param int epochs: passes over the data at most.
        :param int seed: of the weights and of the order; the generators of the process are left alone.
        :raises ValueError: with one class only, fewer than two groups, or states that are not finite.
        """
        if not torch.isfinite(states).all():
            row = int((~torch.isfinite(states)).any(-1).nonzero()[0, 0])
            raise ValueError(f"the hidden states hold nan or infinite values (number {row} of {len(states)}); load the model in float32")
        if not labels.min() < labels.max():
            raise ValueError(f"all {len(labels)} examples are {'right' if labels.max() > 0 else 'wrong'}; a head needs both kinds")
        names = groups.unique()
        if len(names) < 2:
            raise ValueError("a head needs the solutions of at least two problems, one of which decides when training ends")
        devices = [states.device] if states.is_cuda else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.manual_seed(seed)
            order = names[torch.randperm(len(names)).to(names.device)]
            kept = torch.isin(groups, order[: max(1, round(validation * len(names)))])
            head = cls(states.shape[-1], width).to(states.device)
            return head._trained((states[~kept], labels[~kept].float()), (states[kept], labels[kept].float()), epochs)

    def _trained(self, known: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor], epochs: int) -> StateHead:
        optimizer = torch.optim.AdamW(self.parameters(), lr=_LEARNING_RATE, weight_decay=_DECAY)
        best, least, waited = copy.deepcopy(self.state_dict()), math.inf, 0
        for _ in range(epochs):
            for rows in torch.randperm(len(known[0])).split(_BATCH):
                optimizer.zero_grad()
                binary_cross_entropy_with_logits(self(known[0][rows]), known[1][rows]).backward()
                optimizer.step()
            with torch.no_grad():
                loss = float(binary_cross_entropy_with_logits(self(kept[0]), kept[1]))
            waited += 1
            if loss < least:
                best, least, waited = copy.deepcopy(self.state_dict()), loss, 0
            if waited >= _PATIENCE:
                break
        self.load_state_dict(best)
        return self.eval().requires_grad_(False)
