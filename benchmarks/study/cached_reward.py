"""Scores of solutions so far, each asked for once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ppl_llm.context import Context
from ppl_llm.inference.cost import count
from ppl_llm.reward.base import RewardModel


class CachedReward:
    """A reward model that remembers the scores of every solution it was asked about, by the tokens of prompt and solution.

    The counter ``prm_calls`` counts scores asked for, as without the cache. :meth:`forget` empties it.

    :param RewardModel prm: asked about new solutions only.
    """

    def __init__(self, prm: RewardModel) -> None:
        self.prm = prm
        self.forget()

    def forget(self) -> None:
        """Forget all scores."""
        if callable(forget := getattr(self.prm, "forget", None)):
            forget()
        self._place: dict[bytes, int] = {}
        self._scores = np.empty((0, 0), dtype=np.float32)

    def release_caches(self) -> None:
        """Nothing: later work is sure to ask for the same scores."""

    @torch.no_grad()
    def step_log_odds(self, context: Context) -> Tensor:
        """Log-odds ``[*batch, T]``; see :class:`~ppl_llm.RewardModel`."""
        sequences, steps = context.lengths.numel(), context.num_steps
        tokens, lengths = context.tokens.reshape(sequences, -1).numpy(), context.lengths.flatten().tolist()
        keys = [row[:length].tobytes() for row, length in zip(tokens, lengths, strict=True)]
        new: dict[bytes, int] = {}
        for sequence, key in enumerate(keys):
            if key not in self._place and key not in new:
                new[key] = sequence
        if new:
            self._learn(context, new)
        places = np.fromiter((self._place[key] for key in keys), dtype=np.int64, count=sequences)
        if context.num_steps:
            count(prm_calls=int(context.advanced.sum()))
        return torch.from_numpy(self._scores[places, :steps]).view(*context.batch_shape, steps)

    def _learn(self, context: Context, new: dict[bytes, int]) -> None:
        flat = torch.tensor(list(new.values()))
        scores = self.prm.step_log_odds(select_sequences(context, flat)).numpy()
        width = max(scores.shape[1], self._scores.shape[1])
        used = len(self._place)
        if used + len(new) > len(self._scores) or width > self._scores.shape[1]:
            grown = np.zeros((max(1024, 2 * (used + len(new))), max(16, width)), dtype=np.float32)
            grown[:used, : self._scores.shape[1]] = self._scores[:used]
            self._scores = grown
        # A finished sequence repeats its last score, however many steps the others take.
        self._scores[used : used + len(new)] = np.pad(scores, ((0, 0), (0, self._scores.shape[1] - scores.shape[1])), mode="edge")
        self._place.update((key, used + i) for i, key in enumerate(new))


def select_sequences(context: Context, sequences: Tensor) -> Context:
    """Some sequences of a context as a batch of one dimension, without cache entries.

    :param Tensor sequences: ``[A]`` numbers of sequences, counted over the whole batch shape.
    """
    ndim = len(context.batch_shape)
    return replace(context, cache_entries={})._map(lambda tensor: tensor.reshape(-1, *tensor.shape[ndim:])[sequences])
