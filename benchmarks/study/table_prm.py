"""The demo reward models with a table of all solutions so far that they were ever asked about."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from ppl_llm.context import Context
from ppl_llm.context_lm import ContextLM
from ppl_llm.reward.prm.transformers_prm import TransformersPRM

from .prefix_table import SEQUENCES, Ints, PrefixTable

_STEPS = 20_000
"""Whose tokens are remembered, at most 1 KiB each."""


class TablePRM(TransformersPRM):
    """Every step is scored once, whatever method, budget and seed asks for it; see :class:`PrefixTable`.

    The scores are those of :class:`~ppl_llm.TransformersPRM` up to their last bits.
    """

    @cached_property
    def table(self) -> PrefixTable:
        """Made on first use."""
        score = self.model.score
        return PrefixTable(self.model.model, lambda hidden: score(hidden).diff(dim=-1))

    def forget(self) -> None:
        """Empty the table."""
        self.table.forget()

    def release_caches(self) -> None:
        """Nothing: the table holds what later work is likely to ask for."""

    @torch.no_grad()
    def step_log_odds(self, context: Context) -> Tensor:
        """See :class:`~ppl_llm.TransformersPRM`; for contexts of one batch dimension."""
        prompts = [self._format.prompt(problem) for problem in context.problems]
        scores = torch.zeros(len(context), context.num_steps)
        for sequences in torch.arange(len(context)).split(SEQUENCES):
            nodes = self._nodes(context, prompts, sequences)
            if self.table.make_room(nodes.reshape(-1), 0):
                nodes = self._nodes(context, prompts, sequences)
            scores[sequences] = self.table.outputs(nodes.reshape(-1)).view(nodes.shape)
        return scores

    def _nodes(self, context: Context, prompts: list[list[int]], sequences: Tensor) -> Ints:
        """``[A, T]``, where the score of each step is read."""
        roots = [self.table.extend(-1, prompt) for prompt in prompts]
        nodes = np.zeros((len(sequences), context.num_steps), dtype=np.int64)
        rows = (tensor[sequences] for tensor in (context.tokens, context.prompt_lengths, context.ends, context.problem_index))
        tokens_of, starts, ends_of, problems = rows
        for row, (tokens, start, ends, problem) in enumerate(
            zip(tokens_of.numpy(), starts.tolist(), ends_of.tolist(), problems.tolist(), strict=True)
        ):
            node, begin = roots[problem], start
            for t, end in enumerate(ends):
                if end > begin:
                    node = self.table.extend(node, self._written(context.lm, t, tokens[begin:end].tobytes()))
                nodes[row, t], begin = node, end
        return nodes

    @cached_property
    def _written(self) -> Callable[..., list[int]]:
        """The tokens of a step as the reward model reads it."""

        @lru_cache(maxsize=_STEPS)
        def written(lm: ContextLM, index: int, tokens: bytes) -> list[int]:
            return self._format.step(lm.decode(np.frombuffer(tokens, dtype=np.int64).tolist()), index)

        return written
