"""The demo language model with a table of all next-token distributions it was ever asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_llm.context import PAD, Context
from ppl_llm.lm.decoding.decoder import StepTask
from ppl_llm.lm.decoding.sampling import warp
from ppl_llm.lm.transformers_lm import TransformersLM

from .prefix_table import SEQUENCES, Ints, PrefixTable

_ROWS = 256
"""Sequences whose given steps are scored, or whose states are read, at a time."""


class TableLM(TransformersLM):
    """Every prefix is run once, whatever method, budget and seed asks for it; see :class:`PrefixTable`.

    The distribution is that of :class:`~ppl_llm.TransformersLM`, and so are the tokens drawn from the same uniforms, up to the last bits
    of logits.
    """

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        tables = PrefixTable(model.model, model.lm_head), PrefixTable(model.model, lambda states: states)
        self._table_sampler = self._source = self._sampler = TableSampler(*tables)

    @property
    def table(self) -> PrefixTable:
        return self._table_sampler.table

    @table.setter
    def table(self, table: PrefixTable) -> None:
        self._table_sampler.table = table

    @property
    def hidden_size(self) -> int:
        """Numbers in a hidden state."""
        return int(self.model.config.hidden_size)

    def forget(self) -> None:
        """Empty the tables."""
        self._table_sampler.table.forget()
        self._table_sampler.states.forget()


class TableSampler:
    """Samples and scores steps by a table.

    :param PrefixTable table: of logits.
    :param PrefixTable states: of hidden states, for embeddings of steps; most methods never ask it.
    """

    batches_programs = False

    def __init__(self, table: PrefixTable, states: PrefixTable) -> None:
        self.table, self.states = table, states

    def release(self) -> None:
        """Nothing: the table holds what later work is sure to ask for."""

    def sample(self, task: StepTask) -> None:
        for active in task.active.split(SEQUENCES):
            self._sample(task, active)

    def _sample(self, task: StepTask, active: Tensor) -> None:
        rows, options, automaton = active.numpy(), task.options, task.automaton
        nodes = self.table.find(self._rows(task.context, active), len(rows) * options.max_tokens)
        table, eos = automaton.table.numpy(), task.eos_ids.numpy()
        room, uniforms, drawn = task.room[active].numpy(), task.uniforms.numpy(), task.tokens.numpy()
        totals = np.zeros(len(rows))
        state, alive = np.zeros(len(rows), dtype=np.int64), np.arange(len(rows))
        for k in range(options.max_tokens):
            distinct, which = np.unique(nodes[alive], return_inverse=True)
            token, log_prob = _draw(warp(self.table.outputs(distinct), options), which, uniforms[rows[alive], k])
            drawn[rows[alive], k] = token
            totals[alive] += log_prob
            nodes[alive] = self.table.children(nodes[alive], token)
            state[alive] = table[state[alive], token]
            ended = (state[alive] == automaton.accept) | np.isin(token, eos) | (k + 1 >= room[alive])
            alive = alive[~ended]
            if len(alive) == 0:
                break
        task.log_probs[active] = torch.from_numpy(totals).to(task.log_probs)

    def step_logits(self, context: Context, active: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.arange(len(active)).split(_ROWS):
            node = self.table.find(self._rows(context, active[rows]), tokens[rows].numel())
            columns = []
            for token in tokens[rows].numpy().T:
                distinct, which = np.unique(node, return_inverse=True)
                columns.append(self.table.outputs(distinct)[torch.from_numpy(which)])
                taken = token != PAD
                node[taken] = self.table.children(node[taken], token[taken])
            yield rows, torch.stack(columns, 1)

    def hidden_states(self, context: Context, active: Tensor, positions: Tensor) -> Tensor:
        """States ``[A, K, H]`` at positions ``[A, K]``; 0 where a position is negative."""
        found = torch.zeros(*positions.shape, self.states.width)
        for rows in torch.arange(len(active)).split(_ROWS):
            wanted = positions[rows] >= 0
            ends = [row[wants].tolist() for row, wants in zip(positions[rows], wanted, strict=True)]
            paths = [row[: end + 1] for row, own in zip(self._rows(context, active[rows]), ends, strict=True) for end in own]
            part = torch.zeros(*wanted.shape, self.states.width)
            part[wanted] = self.states.outputs(self.states.find(paths))
            found[rows] = part
        return found

    @staticmethod
    def _rows(context: Context, active: Tensor) -> list[Ints]:
        tokens = context.tokens.reshape(-1, context.tokens.shape[-1])[active].numpy()
        return [row[:length] for row, length in zip(tokens, context.lengths.flatten()[active].tolist(), strict=True)]


def _draw(logits: Tensor, which: Ints, u: NDArray[np.float64]) -> tuple[Ints, NDArray[np.float64]]:
    """Tokens ``[A]`` and their log-probabilities: row ``which[i]`` of ``logits [D, V]`` at the uniform ``u[i]``.

    The arithmetic of :func:`~ppl_llm.lm.decoding.sampling.inverse_cdf`, done once for sequences that stand at one prefix.
    """
    top = logits.amax(-1, keepdim=True)
    cdf = (logits - top).exp_().cumsum(-1, dtype=torch.float64)
    last = torch.searchsorted(cdf, cdf[:, -1:].contiguous())[:, 0].numpy()
    first = torch.searchsorted(cdf, torch.zeros_like(cdf[:, :1]), right=True)[:, 0].numpy()
    table, flat = cdf.numpy(), logits.numpy()
    target = u * table[which, -1]
    low, high = np.zeros(len(which), dtype=np.int64), np.full(len(which), table.shape[1])
    for _ in range(table.shape[1].bit_length()):  # bisection: the first entry above the target
        middle = np.minimum((low + high) // 2, table.shape[1] - 1)
        above = table[which, middle] > target
        open_ = low < high
        high, low = np.where(open_ & above, middle, high), np.where(open_ & ~above, middle + 1, low)
    token = np.minimum(np.maximum(low, first[which]), last[which])
    normaliser = top[:, 0].numpy() + np.log(table[:, -1])
    return token, flat[which, token] - normaliser[which]
