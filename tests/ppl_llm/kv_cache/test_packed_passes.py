"""Passes without padding: what is run, where outputs are made, and that wrong versions of them give wrong logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.context import PAD, Context
from ppl_llm.inference.cost import CostMeter
from ppl_llm.kv_cache import attention as attention
from ppl_llm.kv_cache import common_prefix
from ppl_llm.kv_cache.attention import Keys
from ppl_llm.kv_cache.cache import KVCache
from ppl_llm.kv_cache.packing import Segment, Segments, take
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding import cached_decoder
from ppl_llm.reward.prm.transformers_prm import TransformersPRM
from tests.helpers.filters import CheckedLM
from tests.helpers.tiny_models import causal_lm, language_model, reward_net, tokenizer
from tests.helpers.tiny_prms import write_shepherd

RAGGED = StepOptions(stop=("a", "e", "o", "1"), max_tokens=12)
SEQUENCES = 12


class Counted:
    """Positions that come out of a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.total = 0
        module.register_forward_hook(self._add)

    def _add(self, module: Any, args: Any, output: Tensor) -> None:
        self.total += output.shape[:-1].numel()


def ragged(seed: int = 0, problems: Any = "What is 12 + 30?") -> Context:
    """Sequences with two steps of different lengths."""
    torch.manual_seed(seed)
    lm = language_model()
    context = lm.start(problems)
    for _ in range(2):
        plates = (len(problems),) if isinstance(problems, list) else ()
        step, _ = lm.sample_step(context, torch.Size((SEQUENCES, *plates)), RAGGED)
        context = context.extend(step, RAGGED.stop)
    return context


# ------------------------------------------------------------------------------------------------ cutting into passes
@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=12),
    st.integers(1, 50),
    st.integers(1, 900),
)
def test_every_token_is_taken_once_and_in_order(pairs: list[tuple[int, int]], tokens: int, mask_elements: int):
    waiting = sorted((Segment(row, start, start + size) for row, (start, size) in enumerate(pairs)), key=lambda each: each.start)
    position = {segment.row: segment.start for segment in waiting}
    while waiting:
        taken, waiting = take(waiting, tokens, mask_elements)
        assert 0 < sum(segment.size for segment in taken) <= tokens
        lowest, highest = min(each.start for each in taken), max(each.stop for each in taken)
        assert (highest - lowest) * highest <= mask_elements or highest == lowest + 1
        for segment in taken:
            assert segment.start == position[segment.row] < segment.stop
            position[segment.row] = segment.stop
    assert position == {row: start + size for row, (start, size) in enumerate(pairs)}


# ------------------------------------------------------------------------------------------------ nothing more than needed
def test_new_steps_are_scored_without_padding():
    prm = TransformersPRM(reward_net(max_position_embeddings=512), tokenizer())
    run, heads = Counted(prm.model.get_input_embeddings()), Counted(prm.model.score)
    context = ragged(problems=["What is 12 + 30?", "7 * 6"])
    prm.step_log_odds(context)
    step, _ = language_model().sample_step(context, context.batch_shape, RAGGED)
    lengths = (step != PAD).sum(-1)
    assert lengths.min() < lengths.max()
    run.total = heads.total = 0
    with CostMeter() as meter:
        prm.step_log_odds(context.extend(step, RAGGED.stop))
    assert run.total == meter.totals["prm_tokens"]
    assert meter.totals["prm_forwards"] == 1
    assert heads.total <= lengths.numel() < run.total  # once for each step, and once for equal ones


def test_of_a_language_model_that_says_plus_or_minus_two_rows_are_used(tmp_path: Path):
    prm = TransformersPRM.from_pretrained(write_shepherd(tmp_path / "prm"), family="math-shepherd")
    assert [name for name, _ in prm.model.named_children()] == ["backbone"]  # without the head; its two rows are kept as their difference
    assert prm.model.rows.shape == (prm.model.config.hidden_size,)
    assert prm.step_log_odds(ragged()).shape == (SEQUENCES, 2)


# ------------------------------------------------------------------------------------------------ mutants
def steps_agree(atol: float = 1e-4) -> None:
    """Scores of given ragged steps against those they were sampled with, and every logit of the sampler against uncached passes."""
    torch.manual_seed(0)
    lm = CheckedLM(causal_lm(), tokenizer())
    context = lm.start("What is 12 + 30?")
    for number in range(3):
        step, log_probs = lm.sample_step(context, torch.Size((SEQUENCES,)), RAGGED)
        fresh = language_model()
        torch.testing.assert_close(fresh.step_log_prob(context, step, RAGGED), log_probs, atol=atol, rtol=1e-4)
        ancestors = torch.randint(0, SEQUENCES, (SEQUENCES,)) if number == 0 else torch.full((SEQUENCES,), 3)
        context = context.extend(step, RAGGED.stop).reorder(ancestors)


def test_steps_agree(monkeypatch: pytest.MonkeyPatch):
    steps_agree()
    monkeypatch.setattr(common_prefix, "_MIN_SAVED", 1)
    calls: list[int] = []
    original = attention.shared_prefix_attention

    def spied(*inputs: Any) -> Tensor:
        calls.append(inputs[3])
        return original(*inputs)

    monkeypatch.setattr(attention, "shared_prefix_attention", spied)
    steps_agree()
    prompt = int(language_model().start("What is 12 + 30?").lengths)
    assert min(calls) == prompt < max(calls)  # more once all sequences descend from one


def blind_to_itself(self: Segments, mask: Tensor, begin: int, end: int, length: int) -> Tensor:
    """A token sees those before it only."""
    return torch.ones(1, 1, end - begin, length, dtype=torch.bool).tril(length - (end - begin) - 1)


def one_ahead(self: Segments, mask: Tensor, begin: int, end: int, length: int) -> Tensor:
    """A token sees the one after it, too."""
    return torch.ones(1, 1, end - begin, length, dtype=torch.bool).tril(length - (end - begin) + 1)


@pytest.mark.parametrize("wrong", [blind_to_itself, one_ahead])
def test_wrong_masks_are_rejected(wrong: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Segments, "seen", wrong)
    with pytest.raises(AssertionError):
        steps_agree()


def half_each(query: Tensor, keys: Keys, mask: Tensor, shared: int, scaling: float | None) -> Tensor:
    """The parts joined without their normalisers."""
    attend = torch.nn.functional.scaled_dot_product_attention
    key, value = keys.common(shared)
    first = attend(query, key.expand(len(query), -1, -1, -1), value.expand(len(query), -1, -1, -1), scale=scaling)
    second = [attend(query[some], *own, attn_mask=mask[some, ..., shared:], scale=scaling) for some, *own in keys.parts(shared)]
    return (first + torch.cat(second)) / 2


def test_parts_joined_wrongly_are_rejected(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(common_prefix, "_MIN_SAVED", 1)
    monkeypatch.setattr(attention, "shared_prefix_attention", half_each)
    with pytest.raises(AssertionError):
        steps_agree()


def test_a_prefix_that_is_not_common_is_rejected(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(common_prefix, "_MIN_SAVED", 1)
    common = common_prefix.common_tokens

    def one_too_many(cache: KVCache, rows: int, longest: int) -> int:
        return min(common(cache, rows, longest) + 1, int(cache.lengths[:rows].min()))

    monkeypatch.setattr(cached_decoder, "common_tokens", one_too_many)
    with pytest.raises(AssertionError):
        steps_agree()
