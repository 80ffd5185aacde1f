"""Attention of packed tokens in batches, as on a GPU, against one call for each sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.kv_cache import attention, packing
from ppl_llm.kv_cache.attention import RowKeys, attend_in_batches
from ppl_llm.kv_cache.packing import Segment, Segments, in_batches
from ppl_llm.lm.base import StepOptions
from ppl_llm.reward.prm.transformers_prm import TransformersPRM
from tests.helpers.tiny_models import language_model, reward_net, tokenizer

CPU = torch.device("cpu")
KV_HEADS, GROUP, SIZE = 2, 3, 8

segment = st.tuples(st.integers(0, 20), st.integers(1, 20))
packed = st.lists(segment, min_size=1, max_size=9).flatmap(
    lambda each: st.permutations(range(12)).map(
        lambda rows: [Segment(row, start, start + size) for row, (start, size) in zip(rows, each, strict=False)]
    )
)


def made(segments: list[Segment], window: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Segments]:
    found = Segments(segments, CPU)
    generator = torch.Generator().manual_seed(0)
    tokens = sum(each.size for each in segments)
    query = torch.randn(1, KV_HEADS * GROUP, tokens, SIZE, generator=generator)
    key, value = (torch.randn(12, KV_HEADS, 40, SIZE, generator=generator) for _ in range(2))
    mask = found.mask
    if window is not None:
        mask = mask & (torch.arange(mask.shape[-1]) > found.looking[:, None, :, None] - window)
    return query, key, value, mask, found


def one_by_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, segments: Segments) -> Tensor:
    return attention._each_segment(query, RowKeys(key, value), KV_HEADS, mask, segments, 0.3, None, None)


@settings(max_examples=60)
@given(packed, st.sampled_from([None, 1, 5]))
def test_the_same_as_one_call_for_each_sequence(segments: list[Segment], window: int | None):
    given_ = made(segments, window)
    torch.testing.assert_close(attend_in_batches(*given_, 0.3), one_by_one(*given_), atol=1e-5, rtol=1e-5)


@settings(max_examples=60)
@given(packed)
def test_every_token_is_in_one_batch_and_at_most_half_is_padding(segments: list[Segment]):
    found = Segments(segments, CPU)
    made_of = in_batches(found)
    tokens = [batch.tokens.unique() for batch in made_of]
    assert sorted(torch.cat(tokens).tolist()) == list(range(len(found.positions)))
    for batch, real in zip(made_of, tokens, strict=True):
        assert batch.tokens.numel() <= 2 * len(real)


def test_one_long_text_is_not_padded_for(monkeypatch: pytest.MonkeyPatch):
    segments = Segments([Segment(0, 0, 30), *(Segment(row, 20, 22) for row in range(1, 6))], CPU)
    assert [batch.tokens.shape for batch in in_batches(segments)] == [(1, 30), (5, 2)]
    assert [batch.rows for batch in in_batches(segments)] == [slice(0, 1), slice(1, 6)]
    monkeypatch.setattr(packing, "_MASK_ELEMENTS", 2 * 2 * 22)
    assert [batch.tokens.shape for batch in in_batches(segments)] == [(1, 30), (2, 2), (2, 2), (1, 2)]


def padding_is_another_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short segments are filled up with the tokens that follow them in the pass."""
    original = in_batches

    def following(segments: Segments) -> list[packing.Batch]:
        most = len(segments.positions) - 1
        column = [torch.arange(batch.tokens.shape[1]) for batch in original(segments)]
        return [b._replace(tokens=(b.tokens[:, :1] + c).clamp(max=most)) for b, c in zip(original(segments), column, strict=True)]

    monkeypatch.setattr(packing, "in_batches", following)


def rows_from_the_first_on(monkeypatch: pytest.MonkeyPatch) -> None:
    original = in_batches
    monkeypatch.setattr(packing, "in_batches", lambda segments: [b._replace(rows=slice(0, len(b.tokens))) for b in original(segments)])


def looking_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token sees what the first of its segment sees."""
    original = in_batches
    monkeypatch.setattr(
        packing, "in_batches", lambda segments: [b._replace(looking=b.looking[:, :1].expand_as(b.looking)) for b in original(segments)]
    )


RAGGED = [Segment(3, 4, 9), Segment(1, 0, 6), Segment(7, 2, 6), Segment(4, 9, 10)]


@pytest.mark.parametrize("mutant", [padding_is_another_token, rows_from_the_first_on, looking_from_the_start])
def test_mutants_are_told_apart(mutant: Any, monkeypatch: pytest.MonkeyPatch):
    mutant(monkeypatch)
    given_ = made(RAGGED)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(attend_in_batches(*given_, 0.3), one_by_one(*given_), atol=1e-5, rtol=1e-5)


def scores() -> tuple[Tensor, list[Tensor]]:
    """Log-odds of ragged steps with resampling between, and the log-probabilities of the steps."""
    torch.manual_seed(0)
    lm, prm = language_model(), TransformersPRM(reward_net(), tokenizer())
    for engine in (lm._engine, prm._scorer.engine):
        engine.use_rows()  # as on a GPU
    options, sequences = StepOptions(stop=("a", "e", "o", "1"), max_tokens=12), torch.Size((8,))
    context, log_probs = lm.start("What is 12 + 30?"), []
    for _ in range(3):
        step = lm.sample_step(context, sequences, options)
        lm.release_caches()
        assert step.log_probs is not None
        log_probs.append(torch.stack([step.log_probs, lm.step_log_prob(context, step.tokens, options)]))
        context = context.extend(step.tokens, options.stop).reorder(torch.randint(0, 8, sequences))
        prm.step_log_odds(context)
    return prm.step_log_odds(context), log_probs


def test_scores_and_log_probabilities_do_not_depend_on_it(monkeypatch: pytest.MonkeyPatch):
    expected, log_probs = scores()
    calls = []
    monkeypatch.setattr(attention, "worth_padding", lambda query: not calls.append(query.shape[2]))
    found, again = scores()
    assert len(calls) > 10
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(again, log_probs, atol=1e-4, rtol=1e-5)
