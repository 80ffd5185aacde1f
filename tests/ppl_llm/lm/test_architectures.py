"""Every architecture, loaded from a directory, against uncached forward passes of transformers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from transformers import AutoModelForCausalLM, Cache

from ppl_llm.context import PAD
from ppl_llm.inference.cost import CostMeter
from ppl_llm.kv_cache import common_prefix
from ppl_llm.kv_cache.masks import LayerMasks
from ppl_llm.kv_cache.support import VERIFIED
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding.sampling import warp
from ppl_llm.lm.decoding.uncached_sampler import UncachedSampler
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.filters import CheckedLM, Filters
from tests.helpers.tiny_models import plain_logits

SETTINGS = settings(max_examples=3, stateful_step_count=10, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
BROKEN = settings(SETTINGS, max_examples=20, phases=[Phase.generate], report_multiple_bugs=False)  # no search for the least example
OPTIONS = StepOptions(stop=("a", "\n\n"), max_tokens=6, temperature=0.8, top_k=100)


def load(name: str, directory: Path, **options: Any) -> CheckedLM:
    lm = CheckedLM.from_pretrained(ARCHITECTURES[name].write(directory), **options)
    assert isinstance(lm, CheckedLM)
    # The default attention of transformers 5.17 leaves out the capped scores of Gemma 2.
    exact = {"attn_implementation": "eager"} if name == "gemma2" else {}
    lm.reference = AutoModelForCausalLM.from_pretrained(directory, **exact)
    return lm


def drive(lm: CheckedLM, chosen: settings = SETTINGS) -> None:
    """The stateful test of the KV engine."""

    class Machine(Filters):
        def make(self) -> CheckedLM:
            lm.release_caches()
            return lm

    run_state_machine_as_test(Machine, settings=chosen)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exactness(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with caplog.at_level(logging.WARNING, logger="ppl_llm"):
        lm = load(name, tmp_path, max_length=64)
    warned = [record.getMessage() for record in caplog.records if record.name.startswith("ppl_llm")]
    expected = ARCHITECTURES[name].fallback
    assert len(warned) == bool(expected)
    assert all(expected in message and type(lm.model).__name__ in message for message in warned)
    torch.manual_seed(0)
    context = lm.start("What is 12 + 30?")
    for number in range(3):
        with monkeypatch.context() as patch:
            if number > 0:  # sequences so few would not read a common prefix together
                patch.setattr(common_prefix, "_MIN_SAVED", 1)
            step, log_probs = lm.sample_step(context, torch.Size((4,)), OPTIONS)
        torch.testing.assert_close(lm.step_log_prob(context, step, OPTIONS), log_probs, atol=1e-5, rtol=1e-5)
        spread = context.expand((4,))
        for sequence in range(4):
            ids = step[sequence][step[sequence] != PAD]
            before = spread.tokens[sequence][: spread.lengths[sequence]].tolist()
            logits = plain_logits(lm.reference, before + ids.tolist())[len(before) - 1 : -1]
            forced = warp(logits, OPTIONS).log_softmax(-1).gather(-1, ids[:, None]).sum()
            torch.testing.assert_close(log_probs[sequence], forced, atol=5e-5, rtol=1e-5)
        context = context.extend(step, OPTIONS.stop).reorder(torch.tensor([0, 0, 1, 3]))
    drive(lm)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exactness_at_length(name: str, tmp_path: Path) -> None:
    drive(load(name, tmp_path, max_length=64), settings(SETTINGS, max_examples=40, stateful_step_count=12))


def test_sequences_without_a_kv_cache_share_their_passes(tmp_path: Path) -> None:
    """A pass over what all sequences have in common, then one for each position, however ragged the sequences are."""
    lm = load("mamba", tmp_path, max_length=64)
    lm.eos_ids = torch.tensor([], dtype=torch.long)
    options, sequences = StepOptions(stop="\x00\x00", max_tokens=6), 5
    context = lm.start("What is 12 + 30?")
    prompt = int(context.lengths)
    with CostMeter() as meter:
        lm.sample_step(context, torch.Size((sequences,)), options)
    assert meter.totals["tokens_prefilled"] == prompt and meter.totals["lm_forwards"] == 6
    counts = torch.tensor([1, 4, 2, 2, 6])
    ragged = context.extend(torch.where(torch.arange(6) < counts[:, None], torch.arange(20, 26), PAD), options.stop)
    with CostMeter() as meter:
        lm.sample_step(ragged, torch.Size((sequences,)), options)
    given = int((counts - 1).sum())
    assert meter.totals["tokens_prefilled"] == prompt + 1 + given
    assert meter.totals["lm_forwards"] == 1 + (6 - 1) + (6 - 1)
    assert meter.totals["tokens_sampled"] == sequences * 6


def test_what_counts_as_verified_is_tested_here() -> None:
    on_kv_cache = [architecture.model().config.get_text_config() for architecture in ARCHITECTURES.values() if not architecture.fallback]
    assert {config.model_type for config in on_kv_cache} >= VERIFIED


def _unlimited(masks: LayerMasks, mask: Any, positions: Any) -> Any:
    return {"full_attention": mask, "sliding_attention": mask} if masks.mapped else mask


def _one_more(masks: LayerMasks, mask: Any, positions: Any) -> Any:
    return _masks(masks, mask, positions - 1)


_masks = LayerMasks.__call__


@pytest.mark.parametrize("name", ["mistral sliding", "gemma3"])
@pytest.mark.parametrize("wrong", [_unlimited, _one_more])
def test_a_wrong_window_is_noticed(name: str, wrong: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load(name, tmp_path, max_length=64)
    monkeypatch.setattr(LayerMasks, "__call__", wrong)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        drive(lm, BROKEN)


@pytest.mark.parametrize(("name", "feature"), [("gemma2", "softcap"), ("gpt-oss", "s_aux")])
def test_attention_without_its_extras_is_noticed(name: str, feature: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppl_llm.kv_cache import attention as attention

    plain = attention.packed_sdpa

    def without(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **{**kwargs, feature: None})

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.PACKED, without)
    lm = load(name, tmp_path, max_length=64)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        drive(lm, BROKEN)


@pytest.mark.parametrize("name", ["mamba", "exaone4"])
def test_states_left_with_other_sequences_are_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load(name, tmp_path, max_length=64)
    assert isinstance(lm._sampler, UncachedSampler) and lm._sampler.cached

    def flipped(cache: Any, index: torch.Tensor) -> None:
        reorder(cache, index.flip(0))

    reorder = Cache.reorder_cache
    monkeypatch.setattr(Cache, "reorder_cache", flipped)
    with pytest.raises(AssertionError):
        drive(lm, BROKEN)
