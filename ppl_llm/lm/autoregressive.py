"""Language models that give the logits of the next token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from ..constraints.base import Vocabulary
from ..context import PAD, Context
from ..inference.cost import count
from ..kv_cache.memory_limit import BatchLimit
from .base import ConstrainedSample, StepOptions, StepSample, step_shape
from .decoding.constrained_sampler import ConstrainedSampler, exact_masks, generated
from .decoding.decoder import DecoderSource, LogitsSource, Sampler, StepTask
from .decoding.sampling import tempered, warp
from .stopping import StopAutomaton
from .token_figures import TokenFigure, keep, kept, log_prob_figure, log_probs_of, wanted


class AutoregressiveLM(ABC):
    """Base of language models that give next-token logits (a :class:`~ppl_llm.lm.base.LanguageModel`).

    :param LogitsSource source: gives the logits of given steps.
    :param Sampler sampler: samples steps, e.g. a :class:`~ppl_llm.lm.decoding.step_sampler.StepSampler`.
    """

    enumerable = False

    def __init__(self, source: LogitsSource, sampler: Sampler, *, vocab_size: int, max_length: int, eos_ids: Tensor) -> None:
        self._source, self._sampler = source, sampler
        self.vocab_size, self.max_length, self.eos_ids = vocab_size, max_length, eos_ids
        self._automata: dict[tuple[str, ...], StopAutomaton] = {}
        self._at_once = BatchLimit("sequences")  # that are known to fit into memory

    @property
    def device(self) -> torch.device:
        return self.eos_ids.device

    @property
    def batches_programs(self) -> bool:
        """Whether the steps of several programs are sampled in one batch."""
        return self._sampler.batches_programs

    @abstractmethod
    def start(self, problem: Any) -> Context: ...

    @abstractmethod
    def decode(self, ids: list[int]) -> str: ...

    @abstractmethod
    def _token_bytes(self) -> list[bytes]:
        """Bytes of each token id; empty for special tokens."""

    def _special_ids(self, texts: tuple[str, ...]) -> list[int]:
        """Ids of the special tokens, which have no bytes, that are written as one of these texts."""
        return []

    def stop_automaton(self, stop: str | tuple[str, ...]) -> StopAutomaton:
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if stops not in self._automata:
            self._automata[stops] = StopAutomaton(self._token_bytes(), stops, self.device, self._special_ids(stops))
        return self._automata[stops]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What constraints are told of the tokens."""
        return Vocabulary(self._token_bytes(), tuple(self.eos_ids.tolist()), self.device)

    def sample_step(self, context: Context, batch_shape: torch.Size, options: StepOptions, *, uniforms: Tensor | None = None) -> StepSample:
        """See :class:`~ppl_llm.lm.base.LanguageModel`.

        :param Tensor uniforms: ``[*batch_shape, max_tokens]`` float64, from which the tokens follow; by default they are drawn. Not with a
            constraint.
        """
        if options.constraint is not None:
            tokens, log_probs, _ = self.sample_constrained(context, batch_shape, options)
            return StepSample(tokens, None if options.constraint.asks else log_probs)
        task = self._sample(context, batch_shape, options, self._sampler.sample, uniforms, wanted(context, self))
        return StepSample(task.tokens.view(*batch_shape, -1), task.log_probs.to(torch.get_default_dtype()).view(batch_shape))

    def sample_constrained(self, context: Context, batch_shape: torch.Size, options: StepOptions) -> ConstrainedSample:
        """Draw one step for each sequence from the model restricted by ``options.constraint``.

        :raises ValueError: for a model that does without the KV cache of this package.
        """
        if not hasattr(self._source, "decoder"):
            raise ValueError(f"constraints need a model with the KV cache of this package; {type(self).__name__} has none")
        assert options.constraint is not None
        constraint, sampler = options.constraint, ConstrainedSampler(cast(DecoderSource, self._source), self.vocabulary)
        log_masses = torch.zeros(batch_shape.numel(), dtype=torch.float64, device=self.device)

        def sample(task: StepTask) -> None:
            log_masses[task.active] = 0.0
            sampler.sample(task, constraint, log_masses)

        task = self._sample(context, batch_shape, options, sample)
        return ConstrainedSample(task.tokens.view(*batch_shape, -1), task.log_probs.view(batch_shape), log_masses.view(batch_shape))

    @torch.no_grad()
    def _sample(
        self,
        context: Context,
        batch_shape: torch.Size,
        options: StepOptions,
        sample: Callable[[StepTask], None],
        uniforms: Tensor | None = None,
        figures: tuple[TokenFigure, ...] = (),
    ) -> StepTask:
        """A task that ``sample`` has filled in, in batches that fit into memory. The context keeps the figures."""
        original, context = context, context.expand(torch.broadcast_shapes(batch_shape, context.batch_shape))
        options, temperatures = options.by_sequence(context.batch_shape, self.device)
        total, width, device = context.lengths.numel(), options.max_tokens, self.device
        active = (~context.done).flatten().nonzero()[:, 0]
        automaton = self.stop_automaton(options.stop)
        task = StepTask(
            context=context,
            active=active,
            options=options,
            automaton=automaton,
            watch=automaton.start(context).flatten(),
            eos_ids=self.eos_ids,
            room=(context.limit - context.lengths).flatten().clamp(max=width),
            # One uniform per sequence and token, drawn before any sequence drops out: its tokens do not depend on the others' lengths.
            uniforms=torch.rand(total, width, dtype=torch.float64, device=device) if uniforms is None else uniforms.reshape(total, width),
            tokens=torch.full((total, width), PAD, device=device),
            log_probs=torch.zeros(total, dtype=torch.float64, device=device),
            figures=figures,
            values=torch.zeros(total, width, len(figures), dtype=torch.float64, device=device),
            temperatures=temperatures,
        )
        for attempt in self._at_once.in_batches(len(active), self._source.release):
            with attempt as batch:
                some = active[batch]
                task.tokens[some], task.log_probs[some], task.values[some] = PAD, 0.0, 0.0
                sample(task._replace(active=some))
        keep(context, self, figures, task.tokens.view(*batch_shape, -1), task.values.view(*batch_shape, width, len(figures)))
        original.cache_entries.update(context.cache_entries)
        count(tokens_sampled=int((task.tokens != PAD).sum()))
        return task

    @torch.no_grad()
    def step_log_prob(self, context: Context, tokens: Tensor, options: StepOptions) -> Tensor:
        if options.constraint is not None:
            return self._restricted_log_prob(context, tokens, options)
        batch_shape = step_shape(torch.broadcast_shapes(tokens.shape[:-1], context.batch_shape), options.temperature)
        original, context = context, context.expand(batch_shape)
        figure = log_prob_figure(options)
        options, temperatures = options.by_sequence(batch_shape, self.device)
        steps = tokens.expand(*batch_shape, tokens.shape[-1]).reshape(-1, tokens.shape[-1]).to(self.device)
        done = context.done.flatten()
        empty = (steps == PAD).all(-1)
        allowed = torch.where(done, empty, self._is_step(steps, context, options))
        totals = torch.where(allowed, 0.0, -torch.inf).to(self.device)
        found = None if figure is None else kept(context, figure, context.lengths, steps.view(*batch_shape, -1))
        if found is not None:
            values, known = found[0].sum(-1).flatten(), found[1].flatten()
            totals, done = torch.where(allowed & known, values.to(totals.dtype), totals), done | known
        active = (allowed & ~done).nonzero()[:, 0]
        if len(active) == 0:
            return totals.view(batch_shape)
        chosen = steps[active]
        chosen = chosen[:, : int((chosen != PAD).sum(-1).max())]
        for attempt in self._at_once.in_batches(len(active), self._source.release):
            with attempt as batch:
                for rows, logits in self._source.step_logits(context, active[batch], chosen[batch]):
                    given = chosen[batch][rows]
                    own = None if temperatures is None else temperatures[active[batch][rows]]
                    each = log_probs_of(warp(tempered(logits, own), options), given.clamp(min=0))
                    totals[active[batch][rows]] = torch.where(given == PAD, 0.0, each).sum(-1).to(totals.dtype)
        original.cache_entries.update(context.cache_entries)
        return totals.view(batch_shape)

    @torch.no_grad()
    def token_values(self, context: Context, tokens: Tensor, figure: TokenFigure) -> Tensor:
        """A figure ``[*batch_shape, M]`` in float64 of each of given tokens ``[*batch_shape, M]``, whether they are a step or not; 0 on
        padding and on finished sequences. A pass over the tokens."""
        batch_shape = torch.broadcast_shapes(tokens.shape[:-1], context.batch_shape)
        original, context = context, context.expand(batch_shape)
        given = tokens.expand(*batch_shape, tokens.shape[-1]).reshape(-1, tokens.shape[-1]).to(self.device)
        values = torch.zeros(given.shape, dtype=torch.float64, device=self.device)
        active = (~context.done.flatten() & (given != PAD).any(-1)).nonzero()[:, 0]
        for attempt in self._at_once.in_batches(len(active), self._source.release):
            with attempt as batch:
                own = given[active[batch]]
                own = own[:, : int((own != PAD).sum(-1).max())]
                for rows, logits in self._source.step_logits(context, active[batch], own):
                    each = torch.where(own[rows] == PAD, 0.0, figure(logits, own[rows].clamp(min=0)))
                    values[active[batch][rows], : own.shape[1]] = each
        original.cache_entries.update(context.cache_entries)
        return values.view(*batch_shape, -1)

    @torch.no_grad()
    def _restricted_log_prob(self, context: Context, tokens: Tensor, options: StepOptions) -> Tensor:
        """As :meth:`step_log_prob`, of the model restricted by a constraint; a step may stop short where nothing may follow."""
        batch_shape = step_shape(torch.broadcast_shapes(tokens.shape[:-1], context.batch_shape), options.temperature)
        original, context = context, context.expand(batch_shape)
        options, temperatures = options.by_sequence(batch_shape, self.device)
        constraint = options.constraint
        assert constraint is not None
        steps = tokens.expand(*batch_shape, tokens.shape[-1]).reshape(-1, tokens.shape[-1]).to(self.device)
        done, lengths = context.done.flatten(), (steps != PAD).sum(-1)
        valid, short = self._read(steps, context, options)
        totals = torch.where(done & (lengths == 0), 0.0, -torch.inf).double()
        active = (valid & ~done).nonzero()[:, 0]
        if len(active) == 0:
            return totals.view(batch_shape)
        # Where a step stops short, a token of no meaning asks for the logits after its last one.
        asked = torch.nn.functional.pad(steps[active], (0, 1), value=PAD)
        stop = torch.where(short[active], lengths[active], asked.shape[1])
        asked = torch.where(torch.arange(asked.shape[1], device=self.device) == stop[:, None], 0, asked)
        asked = asked[:, : int((asked != PAD).sum(-1).max())]
        for attempt in self._at_once.in_batches(len(active), self._source.release):
            with attempt as batch:
                for rows, logits in self._source.step_logits(context, active[batch], asked[batch]):
                    given, ends = asked[batch][rows], stop[batch][rows]
                    own = None if temperatures is None else temperatures[active[batch][rows]]
                    logits = tempered(logits, own)
                    states = constraint.states(self.vocabulary, generated(context, active[batch][rows]))
                    total = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
                    for k, token in enumerate(given.unbind(-1)):
                        kept = warp(logits[:, k], options).masked_fill(~exact_masks(states, self.vocabulary), -torch.inf)
                        dead, token = kept.amax(-1) == -torch.inf, token.clamp(min=0)
                        each = kept.gather(-1, token[:, None])[:, 0].double() - kept.logsumexp(-1).double()
                        each = torch.where(dead, -torch.inf, each)
                        each = torch.where(ends == k, torch.where(dead, 0.0, -torch.inf).double(), each)
                        total += torch.where(given[:, k] == PAD, 0.0, each)
                        states.advance(token, (given[:, k] != PAD) & (ends != k))
                    totals[active[batch][rows]] = total
        original.cache_entries.update(context.cache_entries)
        return totals.view(batch_shape)

    def _is_step(self, steps: Tensor, context: Context, options: StepOptions) -> Tensor:
        """Whether sequences ``[A, M]`` end exactly where sampling would have ended them: ``[A]``."""
        valid, short = self._read(steps, context, options)
        return valid & ~short

    def _read(self, steps: Tensor, context: Context, options: StepOptions) -> tuple[Tensor, Tensor]:
        """Whether sequences ``[A, M]`` are a step or its beginning, and whether they stop short of the step's end: ``[A]`` each."""
        if steps.shape[-1] != options.max_tokens:
            raise ValueError(f"a step has {options.max_tokens} token places (max_tokens), got a value with {steps.shape[-1]}")
        automaton = self.stop_automaton(options.stop)
        room = (context.limit - context.lengths).flatten().clamp(max=options.max_tokens)
        state = automaton.start(context).flatten()
        open_ = torch.ones(steps.shape[0], dtype=torch.bool, device=steps.device)
        valid, short = open_.clone(), ~open_
        for k, token in enumerate(steps.unbind(-1)):
            is_token = (token >= 0) & (token < self.vocab_size)
            valid &= (is_token & open_) | (token == PAD)
            short |= open_ & (token == PAD)
            safe = torch.where(is_token, token, 0)
            state = automaton.step(state, safe)
            open_ = open_ & is_token & (state != automaton.accept) & ~torch.isin(safe, self.eos_ids) & (k + 1 < room)
        return valid, short
