"""Steps of models whose state no KV cache can hold, such as recurrent ones: slower, and right for every causal model."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ...context import PAD, Context
from ...inference.cost import count
from ...kv_cache.hidden import HiddenForward
from ...kv_cache.support import agree, cache_keyword
from .decoder import StepTask, with_steps
from .sampling import draw

_log = logging.getLogger(__name__)

_LOGITS_ELEMENTS = 2**24
"""Logits made at a time where whole sequences are run (64 MiB)."""


class UncachedSampler:
    """Sequences in lockstep by position: the rows of a batch always have the same length, so that no model ever sees padding.

    A row that is longer than the shortest one is given its own tokens until they end, and samples from there on. Between the tokens of a
    step the model keeps the state that transformers makes for it, if that can be reordered and gives the right logits when tried; else
    every token costs a pass over the whole sequence. Between steps nothing is kept.

    :param model: a causal language model as transformers loads it.
    :param device: where the token ids live.
    :param bool cached: whether the model's own state is used; also an attribute.
    """

    batches_programs = False

    def __init__(self, model: Any, device: torch.device, cached: bool = False) -> None:
        self._model, self._device, self.cached = model, device, cached
        self.hidden = HiddenForward(model, 1 << 30, device)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cache_name = cache_keyword(model)

    @classmethod
    def tried(cls, model: Any, device: torch.device) -> UncachedSampler:
        """With the model's own state if a trial on a few tokens shows that it can be used."""
        sampler = cls(model, device)
        try:
            sampler.cached = sampler._cache_works()
        except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            _log.info("the state of %s cannot be used: %s", type(model).__name__, error)
        return sampler

    @torch.no_grad()
    def _cache_works(self) -> bool:
        """Try it: exchange two sequences, continue token by token, and compare with passes over their whole texts."""
        ids = (torch.arange(16, device=self._device).view(2, 8) * 5) % 11 + 2
        output = self._model(input_ids=ids[:, :5], use_cache=True)
        state = getattr(output, self._cache_name, None)
        if not isinstance(state, Cache):
            return False
        state.reorder_cache(torch.tensor([1, 0], device=self._device))
        swapped = ids.flip(0)
        steps = []
        for column in range(5, 8):
            logits, state = self._advance(swapped[:, column : column + 1], state)
            steps.append(logits)
        whole = self._model(input_ids=swapped, use_cache=False).logits[:, 5:].to(self._device)
        return agree(torch.stack(steps, 1), whole)

    def sample(self, task: StepTask) -> None:
        """Fill in the tokens and log-probabilities of a step."""
        context, active, options, automaton, eos_ids = task.context, task.active, task.options, task.automaton, task.eos_ids
        texts, lengths = context.tokens.reshape(-1, context.tokens.shape[-1])[active], context.lengths.flatten()[active]
        room, u = task.room[active], task.uniforms[active]
        tokens, log_probs = torch.full(u.shape, PAD, device=self._device), torch.zeros(len(u), dtype=torch.float64, device=self._device)
        rows = torch.arange(len(u), device=self._device)
        grown = torch.nn.functional.pad(texts, (0, u.shape[1]), value=PAD)
        watch, values = task.watch[active], task.values[active]
        position = int(lengths.min())
        logits, state = self._prefill(grown[:, :position])
        while True:
            k = position - lengths[rows]
            given = k < 0
            drawn, log_prob, figures = draw(logits, u[rows, k.clamp(min=0)], options, task.figures)
            token = torch.where(given, grown[rows, position], drawn)
            grown[rows, position] = token
            tokens[rows[~given], k[~given]] = token[~given]
            log_probs[rows[~given]] += log_prob[~given]
            values[rows[~given], k[~given]] = figures[~given]
            watch = torch.where(given, watch, automaton.step(watch, token))
            ended = (watch == automaton.accept) | torch.isin(token, eos_ids) | (k + 1 >= room[rows])
            keep = (given | ~ended).nonzero()[:, 0]
            position += 1
            if len(keep) == 0:
                break
            count(tokens_prefilled=int(given.sum()))
            if len(keep) < len(rows):
                rows, token, watch = rows[keep], token[keep], watch[keep]
                if state is not None:
                    state.reorder_cache(keep)
            if state is not None:
                logits, state = self._advance(token[:, None], state)
            else:
                logits = self._last(grown[rows, :position])
        task.tokens[active], task.log_probs[active], task.values[active] = tokens, log_probs, values

    def step_logits(self, context: Context, active: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Teacher-forced logits; padding on the right does not reach back to the tokens before it."""
        whole, first, ends = with_steps(context, active, tokens)
        sequences, width = whole[:, : int(ends.max())], tokens.shape[1]
        count(tokens_prefilled=int((sequences != PAD).sum()))
        start = int(first.min()) - 1
        columns = (first[:, None] - 1 - start + torch.arange(width, device=self._device)).clamp(max=sequences.shape[1] - 1 - start)
        extra = {"logits_to_keep": sequences.shape[1] - start} if self._keeps else {}
        for rows in torch.arange(len(sequences), device=self._device).split(self._rows_at_once(sequences.shape[1] - start)):
            output = self._timed(input_ids=sequences[rows].clamp(min=0), use_cache=False, **extra)
            logits = output.logits[:, start - sequences.shape[1] :].to(self._device)
            yield rows, logits.gather(1, columns[rows][..., None].expand(-1, -1, logits.shape[-1]))

    def hidden_states(self, context: Context, active: Tensor, positions: Tensor) -> Tensor:
        """As :class:`~ppl_llm.lm.decoding.decoder.StatesSource` says; every prefix is run again."""
        width, began = int(positions.max()) + 1, time.perf_counter()
        ids = context.tokens.reshape(-1, context.tokens.shape[-1])[active, :width]
        parts = [self.hidden.whole(part.clamp(min=0)) for part in ids.split(max(1, _LOGITS_ELEMENTS // (width * self.hidden.size)))]
        count(tokens_prefilled=int((ids != PAD).sum()), lm_forwards=len(parts), lm_seconds=time.perf_counter() - began)
        return torch.cat(parts).take_along_dim(positions.clamp(min=0)[..., None], 1).float()

    def _prefill(self, ids: Tensor) -> tuple[Tensor, Cache | None]:
        """Run each distinct prefix once."""
        distinct, which = torch.unique(ids, dim=0, return_inverse=True)
        count(tokens_prefilled=distinct.numel())
        if not self.cached:
            return self._last(distinct)[which], None
        output = self._timed(input_ids=distinct, use_cache=True, **self._one)
        state = getattr(output, self._cache_name)
        state.reorder_cache(which)
        return output.logits[:, -1].to(self._device)[which], state

    def _advance(self, ids: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        output = self._timed(input_ids=ids, use_cache=True, **{self._cache_name: state}, **self._one)
        return output.logits[:, -1].to(self._device), state

    def _last(self, ids: Tensor) -> Tensor:
        """Logits after sequences of one length, without a state."""
        parts = ids.split(self._rows_at_once(1 if self._keeps else ids.shape[1]))
        return torch.cat([self._timed(input_ids=part, use_cache=False, **self._one).logits[:, -1].to(self._device) for part in parts])

    def release(self) -> None:
        """Nothing is kept between steps."""

    @property
    def _one(self) -> dict[str, Any]:
        return {"logits_to_keep": 1} if self._keeps else {}

    def _rows_at_once(self, columns: int) -> int:
        return max(1, _LOGITS_ELEMENTS // (columns * self._model.config.get_text_config().vocab_size))

    def _timed(self, **inputs: Any) -> Any:
        began = time.perf_counter()
        output = self._model(**inputs)
        count(lm_forwards=1, lm_seconds=time.perf_counter() - began)
        return output
