"""A state machine that drives a language model as particle filters do, and compares every logit with uncached forward passes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from ppl_llm.context import PAD, Context
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding.cached_decoder import CachedLogits
from ppl_llm.lm.decoding.decoder import Decoder, StepTask
from ppl_llm.lm.decoding.sampling import inverse_cdf, warp
from ppl_llm.lm.transformers_lm import TransformersLM
from tests.helpers.tiny_models import causal_lm, last_logits, plain_logits, tokenizer

TOLERANCE = 1e-5  # logits are of order 3; a wrong key or position shows as 1e-2 or more


@lru_cache
def tiny_reference() -> Any:
    return causal_lm()


class CheckedDecoder:
    """Compares every logit that the sampler sees with an uncached forward pass."""

    def __init__(self, inner: Decoder, reference: Any, context: Context, active: Tensor) -> None:
        self.inner, self.reference = inner, reference
        tokens, lengths = context.tokens.reshape(-1, context.tokens.shape[-1]), context.lengths.flatten().tolist()
        self.texts = {index: tokens[index, : lengths[index]].tolist() for index in active.tolist()}
        assert sorted(inner.sequences.tolist()) == active.tolist()
        self.pending = inner.pending
        if self.pending is None:
            self.check(torch.ones(len(active), dtype=torch.bool))

    @property
    def sequences(self) -> Tensor:
        return self.inner.sequences

    @property
    def logits(self) -> Tensor:
        return self.inner.logits

    def check(self, alive: Tensor) -> None:
        texts = [self.texts[index] for index in self.sequences[alive].tolist()]
        if texts:
            torch.testing.assert_close(self.logits[alive], last_logits(self.reference, texts), atol=TOLERANCE, rtol=TOLERANCE)

    def reserved(self) -> AbstractContextManager[None]:
        return self.inner.reserved()

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        for index, token, lives in zip(self.sequences.tolist(), tokens.tolist(), alive.tolist(), strict=True):
            if lives and self.pending is None:
                self.texts[index].append(token)
            assert self.pending is None or self.texts[index][-1] == token
        self.pending = None
        self.inner.advance(tokens, alive)
        self.check(alive)

    def keep(self, alive: Tensor) -> None:
        kept = set(self.sequences[alive].tolist())
        self.inner.keep(alive)
        assert set(self.sequences.tolist()) == kept


class CheckedLM(TransformersLM):
    """
    :cvar reference: the same model as transformers runs it, with an attention of its own.
    """

    reference: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.fallback:
            sample = self._sampler.sample

            def checked(task: StepTask) -> None:
                sample(task)
                check_steps(self.reference, task)

            self._sampler.sample = checked  # type: ignore[method-assign]
        else:
            assert isinstance(self._source, CachedLogits)
            decoder = self._source.decoder

            def checking(context: Context, active: Tensor, wait: bool = False) -> Any:
                return CheckedDecoder(decoder(context, active, wait), self.reference or tiny_reference(), context, active)

            self._source.decoder = checking  # type: ignore[method-assign]


def check_steps(reference: Any, task: StepTask) -> None:
    """Every token and log-probability is that of the reference's logits and the sequence's own uniform."""
    context = task.context
    before = context.tokens.reshape(-1, context.tokens.shape[-1])
    for index in task.active.tolist():
        start = int(context.lengths.flatten()[index])
        step = [token for token in task.tokens[index].tolist() if token != PAD]
        logits = plain_logits(reference, before[index, :start].tolist() + step[:-1])[start - 1 :]
        expected, each = inverse_cdf(warp(logits, task.options), task.uniforms[index, : len(step)])
        assert expected.tolist() == step
        torch.testing.assert_close(task.log_probs[index], each.sum(dtype=torch.float64), atol=TOLERANCE * len(step), rtol=TOLERANCE)


class Filters(RuleBasedStateMachine):
    """Two particle filters that share one language model, and a list of older contexts that are used again."""

    SEQUENCES = 5
    STOPS = ("\n\n", "a", "e")

    def make(self) -> CheckedLM:
        return CheckedLM(causal_lm(), tokenizer(), max_length=64)

    @initialize()
    def begin(self) -> None:
        torch.manual_seed(0)
        self.lm = self.make()
        self.lm.eos_ids = torch.tensor([0, 1, 2, 3, 4, 5])
        self.filters = [self.lm.start("12 + 30"), self.lm.start("7 * 6")]
        self.older = list(self.filters)

    def options(self, width: int) -> StepOptions:
        return StepOptions(stop=self.STOPS, max_tokens=width, temperature=1.3, top_k=200)

    def proceed(self, which: int, step: Tensor) -> None:
        self.older.append(self.filters[which])
        self.filters[which] = self.filters[which].extend(step, self.STOPS)

    @rule(which=st.integers(0, 1), width=st.integers(1, 6), seed=st.integers(0, 99))
    def sample(self, which: int, width: int, seed: int) -> None:
        torch.manual_seed(seed)
        step, _ = self.lm.sample_step(self.filters[which], torch.Size((self.SEQUENCES,)), self.options(width))
        self.proceed(which, step)

    @rule(which=st.integers(0, 1), seed=st.integers(0, 99))
    def resample(self, which: int, seed: int) -> None:
        index = torch.randint(0, self.SEQUENCES, (self.SEQUENCES,), generator=torch.Generator().manual_seed(seed))
        self.filters[which] = self.filters[which].reorder(index)

    @rule(which=st.integers(0, 1), seed=st.integers(0, 99), shared=st.booleans())
    def extend_with_given_tokens(self, which: int, seed: int, shared: bool) -> None:
        """Ragged steps that the model has never seen; with ``shared``, all sequences get the same one."""
        context = self.filters[which].expand((self.SEQUENCES,))
        generator = torch.Generator().manual_seed(seed)
        step = torch.randint(6, 320, (self.SEQUENCES, 6), generator=generator)
        counts = torch.randint(1, 7, (self.SEQUENCES,), generator=generator)
        if shared:
            step, counts = step[:1].expand(self.SEQUENCES, -1), counts[:1].expand(self.SEQUENCES)
        counts = torch.minimum(counts, self.lm.max_length - context.lengths).masked_fill(context.done, 0)
        self.proceed(which, torch.where(torch.arange(6) < counts[:, None], step, PAD))

    @rule(which=st.integers(0, 1), width=st.integers(1, 6), seed=st.integers(0, 99))
    def score(self, which: int, width: int, seed: int) -> None:
        torch.manual_seed(seed)
        context, options = self.filters[which], self.options(width)
        step, sampled = self.lm.sample_step(context, torch.Size((self.SEQUENCES,)), options)
        torch.testing.assert_close(self.lm.step_log_prob(context, step, options), sampled, atol=1e-4, rtol=1e-5)

    @rule(which=st.integers(0, 1), back=st.integers(0, 5))
    def return_to_an_older_context(self, which: int, back: int) -> None:
        self.filters[which] = self.older[-1 - back % len(self.older)]

    @rule()
    def evict(self) -> None:
        self.lm.release_caches()

    @rule(megabytes=st.sampled_from([0, 2048]))
    def bound(self, megabytes: int) -> None:
        if not self.lm.fallback:
            self.lm._engine.pool.cache_bytes = megabytes * 2**20

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        self.older.clear()
        self.filters[which] = self.lm.start("12 + 30")
        self.older.append(self.filters[which])

    @invariant()
    def memory_is_bounded(self) -> None:
        if hasattr(self, "lm") and not self.lm.fallback:
            pool = self.lm._engine.pool
            assert len(pool.caches) <= 3
            assert all(cache.capacity <= self.lm.max_length for cache in pool.caches)
