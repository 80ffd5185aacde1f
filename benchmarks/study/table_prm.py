"""The demo reward models with a table of all solutions so far that they were ever asked about."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppl_llm.context import Context
from ppl_llm.reward.prm.transformers_prm import TransformersPRM

from .prefix_table import PrefixTable


class TablePRM(TransformersPRM):
    """Every step is scored once, whatever method, budget and seed asks for it; see :class:`PrefixTable`.

    The scores are those of :class:`~ppl_llm.TransformersPRM` up to their last bits.
    """

    @property
    def table(self) -> PrefixTable:
        """Made on first use."""
        if not hasattr(self, "_table"):
            score = self.model.score
            self._table = PrefixTable(self.model.model, lambda hidden: score(hidden).diff(dim=-1))
            self._written: dict[tuple[int, bytes], list[int]] = {}
        return self._table

    def forget(self) -> None:
        """Empty the table."""
        self.table.forget()

    def release_caches(self) -> None:
        """Nothing: the table holds what later work is sure to ask for."""

    @torch.no_grad()
    def step_log_odds(self, context: Context) -> Tensor:
        """See :class:`~ppl_llm.TransformersPRM`; for contexts of one batch dimension."""
        prompts = [self.table.extend(-1, self._format.prompt(problem)) for problem in context.problems]
        nodes = np.zeros((len(context), context.num_steps), dtype=np.int64)
        for sequence, (tokens, start, ends, problem) in enumerate(
            zip(context.tokens.numpy(), context.prompt_lengths.tolist(), context.ends.tolist(), context.problem_index.tolist(), strict=True)
        ):
            node, begin = prompts[problem], start
            for t, end in enumerate(ends):
                if end > begin:
                    node = self.table.extend(node, self._step(context, t, tokens[begin:end]))
                nodes[sequence, t], begin = node, end
        scores = self.table.outputs(nodes.reshape(-1))
        return scores.view(len(context), context.num_steps)

    def _step(self, context: Context, index: int, tokens: np.ndarray) -> list[int]:
        key = index, tokens.tobytes()
        if key not in self._written:
            self._written[key] = self._format.step(context.lm.decode(tokens.tolist()), index)
        return self._written[key]
