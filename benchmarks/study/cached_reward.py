"""Scores of solutions so far, each asked for once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_llm.context import Context
from ppl_llm.inference.cost import count
from ppl_llm.reward.base import RewardModel

from .memory import ENTRY, PROCESS, Memory
from .prefix_table import Ints, digest


class CachedReward:
    """A reward model that remembers the scores of every solution it was asked about, by the tokens of prompt and solution.

    The counter ``prm_calls`` counts scores asked for, as without the cache. Scores that were not asked for for long are forgotten where
    the tables of ``memory`` hold too much; :meth:`forget` forgets all.

    :param RewardModel prm: asked about new solutions only.
    :param Memory memory: what bounds this table and others.
    """

    def __init__(self, prm: RewardModel, memory: Memory = PROCESS) -> None:
        self.prm, self.memory = prm, memory
        self.forget()
        memory.join(self)

    def forget(self) -> None:
        """Forget all scores."""
        if callable(forget := getattr(self.prm, "forget", None)):
            forget()
        self._place: dict[bytes, int] = {}
        self._scores, self._used = np.empty((0, 0), dtype=np.float32), np.empty(0, dtype=np.int64)

    def release_caches(self) -> None:
        """Nothing: later work is likely to ask for the same scores."""

    @property
    def held(self) -> int:
        """Bytes."""
        return len(self._place) * ENTRY + self._scores.nbytes + self._used.nbytes

    def last_uses(self) -> Ints:
        """See :class:`~benchmarks.study.memory.Table`."""
        return self._used[: len(self._place)]

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """See :class:`~benchmarks.study.memory.Table`."""
        places = [key for key, place in self._place.items() if kept[place]]  # in the order of their places
        self._scores, self._used = self._scores[: len(kept)][kept], self._used[: len(kept)][kept]
        self._place = {key: place for place, key in enumerate(places)}

    @torch.no_grad()
    def step_log_odds(self, context: Context) -> Tensor:
        """Log-odds ``[*batch, T]``; see :class:`~ppl_llm.RewardModel`."""
        sequences, steps = context.lengths.numel(), context.num_steps
        tokens, lengths = context.tokens.reshape(sequences, -1).numpy(), context.lengths.flatten().tolist()
        found: dict[bytes, NDArray[np.float32]] = {}
        new: dict[bytes, int] = {}
        keys = [digest(row[:length]) for row, length in zip(tokens, lengths, strict=True)]
        for sequence, key in enumerate(keys):
            if (place := self._place.get(key)) is None:
                new.setdefault(key, sequence)
            else:
                found[key], self._used[place] = self._scores[place, :steps], self.memory.now
        if new:
            found |= self._learn(context, new)
        if context.num_steps:
            count(prm_calls=int(context.advanced.sum()))
        scores = np.array([found[key] for key in keys], dtype=np.float32).reshape(sequences, steps)
        return torch.from_numpy(scores).view(*context.batch_shape, steps)

    def _learn(self, context: Context, new: dict[bytes, int]) -> dict[bytes, NDArray[np.float32]]:
        """The scores of some sequences, which may make others forgotten."""
        flat = torch.tensor(list(new.values()))
        scores = self.prm.step_log_odds(select_sequences(context, flat)).numpy()
        width = max(scores.shape[1], self._scores.shape[1])
        used = len(self._place)
        if used + len(new) > len(self._scores) or width > self._scores.shape[1]:
            grown = np.zeros((max(1024, 2 * (used + len(new))), max(16, width)), dtype=np.float32)
            grown[:used, : self._scores.shape[1]] = self._scores[:used]
            self._scores = grown
            self._used = np.concatenate([self._used[:used], np.zeros(len(grown) - used, dtype=np.int64)])
        # A finished sequence repeats its last score, however many steps the others take.
        self._scores[used : used + len(new)] = np.pad(scores, ((0, 0), (0, self._scores.shape[1] - scores.shape[1])), mode="edge")
        self._used[used : used + len(new)] = self.memory.now
        self._place.update((key, used + i) for i, key in enumerate(new))
        return dict(zip(new, scores, strict=True))


def select_sequences(context: Context, sequences: Tensor) -> Context:
    """Some sequences of a context as a batch of one dimension, without cache entries.

    :param Tensor sequences: ``[A]`` numbers of sequences, counted over the whole batch shape.
    """
    ndim = len(context.batch_shape)
    return replace(context, cache_entries={})._map(lambda tensor: tensor.reshape(-1, *tensor.shape[ndim:])[sequences])
