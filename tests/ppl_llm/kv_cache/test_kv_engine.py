"""The KV engine against uncached forward passes of transformers, under random sequences of operations."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from ppl_llm.context import PAD, Context
from ppl_llm.inference.cost import CostMeter
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.transformers_lm import TransformersLM
from tests.helpers.filters import CheckedLM, Filters
from tests.helpers.tiny_models import causal_lm, language_model, tokenizer

TestFilters = Filters.TestCase
TestFilters.settings = settings(
    max_examples=40, stateful_step_count=12, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)


def never_ending(**options: Any) -> TransformersLM:
    """A model whose steps always have ``max_tokens`` tokens."""
    lm = language_model(**options)
    lm.eos_ids = torch.tensor([], dtype=torch.long)
    return lm


OPTIONS = StepOptions(stop="\x00\x00\x00", max_tokens=5)


class TokensRun:
    """Counts the tokens that the model is really run on."""

    def __init__(self, lm: TransformersLM) -> None:
        self.total = 0
        lm.model.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, module: Any, args: Any, kwargs: Any) -> None:
        self.total += kwargs["input_ids"].numel()


def advance(lm: TransformersLM, context: Context, sequences: int) -> Context:
    step, _ = lm.sample_step(context, torch.Size((sequences,)), OPTIONS)
    return context.extend(step, OPTIONS.stop)


def test_every_token_is_run_once():
    torch.manual_seed(0)
    lm, sequences = never_ending(), 8
    run = TokensRun(lm)
    context = lm.start("What is 12 + 30?")
    prompt = int(context.lengths)
    with CostMeter() as meter:
        context = advance(lm, context, sequences)
    assert run.total == prompt + sequences * 4  # the prompt once for all sequences; a step's last token is left to the next step
    assert meter.totals["tokens_prefilled"] == prompt
    assert meter.totals["tokens_sampled"] == sequences * 5
    assert meter.totals["lm_forwards"] == 5
    assert meter.totals["lm_seconds"] > 0
    for _ in range(3):
        before = run.total
        context = advance(lm, context, sequences)
        assert run.total - before == sequences * 5


def test_equal_sequences_share_their_first_token():
    torch.manual_seed(0)
    lm, sequences = never_ending(), 8
    run = TokensRun(lm)
    context = advance(lm, lm.start("What is 12 + 30?"), sequences)
    for ancestors in ([0, 0, 0, 3, 3, 5, 6, 7], [7, 7, 7, 7, 7, 7, 7, 7], [3, 2, 1, 0, 7, 6, 5, 4]):
        context = context.reorder(torch.tensor(ancestors))
        before = run.total
        context = advance(lm, context, sequences)
        assert run.total - before == len(set(ancestors)) + sequences * 4


def test_ragged_steps_leave_every_sequence_where_it_is_found():
    torch.manual_seed(0)
    lm, sequences = never_ending(), 12
    options = StepOptions(stop=("a", "e", "o", "1"), max_tokens=12)
    context = lm.start("What is 12 + 30?")
    for number in range(4):
        with CostMeter() as meter:
            step, _ = lm.sample_step(context, torch.Size((sequences,)), options)
        assert (step == PAD).any()  # some sequences stopped before others: rows changed places
        if number > 0:
            assert meter.totals["tokens_prefilled"] == len(torch.unique(context.tokens, dim=0))
        context = context.extend(step, options.stop).reorder(torch.randint(0, sequences, (sequences,)))


def test_a_prompt_is_run_once_for_each_problem():
    torch.manual_seed(0)
    lm = never_ending()
    context = lm.start(["What is 12 + 30?", "Then add the ones: 40 + 2", "7 * 6"])
    with CostMeter() as meter:
        step, _ = lm.sample_step(context, torch.Size((4, 3)), OPTIONS)
    assert meter.totals["tokens_prefilled"] == int(context.lengths.sum())
    context = context.extend(step, OPTIONS.stop).reorder(torch.tensor([[0, 1, 2], [0, 1, 3], [0, 0, 2], [3, 0, 1]]))
    with CostMeter() as meter:
        lm.sample_step(context, torch.Size((4, 3)), OPTIONS)
    assert meter.totals["tokens_prefilled"] == 2 + 2 + 3


def test_a_lost_cache_costs_the_prompt_once_and_changes_nothing():
    torch.manual_seed(0)
    lm = never_ending()
    context = advance(lm, lm.start("What is 12 + 30?"), 6)
    torch.manual_seed(1)
    expected = lm.sample_step(context, torch.Size((6,)), OPTIONS)
    lm.release_caches()
    torch.manual_seed(1)
    with CostMeter() as meter:
        again = lm.sample_step(context, torch.Size((6,)), OPTIONS)
    assert torch.equal(again.tokens, expected.tokens)
    torch.testing.assert_close(again.log_probs, expected.log_probs, atol=1e-4, rtol=1e-5)
    assert meter.totals["tokens_prefilled"] == int(context.prompt_lengths[0]) + 6 * 5


def checked(lm_class: type[TransformersLM] = CheckedLM) -> TransformersLM:
    lm = lm_class(causal_lm(), tokenizer())
    lm.eos_ids = torch.tensor([], dtype=torch.long)
    return lm


def test_keys_left_behind_by_another_prefix_are_not_reused():
    """The row first holds ``prompt, s, t``, then ``prompt, u`` with ``t`` still in memory behind it, then is asked for ``prompt, u, t``."""
    torch.manual_seed(0)
    lm = checked()
    s, u, t = (torch.tensor([[token] * 4]) for token in (50, 60, 70))
    context = lm.start("What is 12 + 30?").expand((1,))
    lm.sample_step(context, torch.Size((1,)), OPTIONS)
    lm.sample_step(context.extend(s, OPTIONS.stop).extend(t, OPTIONS.stop), torch.Size((1,)), StepOptions(max_tokens=1))
    other = context.extend(u, OPTIONS.stop)
    lm.sample_step(other, torch.Size((1,)), StepOptions(max_tokens=1))
    lm.sample_step(other.extend(t, OPTIONS.stop), torch.Size((1,)), OPTIONS)


@pytest.mark.parametrize("lost", [[1, 2, 3], [0, 3, 4], [0, 1, 2, 3, 4], [4]])
def test_sequences_that_lost_their_rows_share_the_prompt_and_leave_the_others_alone(lost: list[int]):
    torch.manual_seed(0)
    lm = checked()
    context = advance(lm, lm.start("What is 12 + 30?"), 5)
    prompt = int(context.prompt_lengths[0])
    lm._engine.pool.caches[0].lengths[lost] = 3
    with CostMeter() as meter:
        advance(lm, context, 5)
    again = (prompt - 3 if len(lost) == 5 else 0) + 5 * len(lost)
    assert meter.totals["tokens_prefilled"] == again + 5 - len(lost)


@pytest.mark.parametrize("lost", [0, 1])
def test_new_problems_do_not_disturb_sequences_that_are_found(lost: int):
    """Cold sequences with shared prompts beside warm ones: the prompts are run in rows that no warm sequence needs."""
    torch.manual_seed(0)
    lm = checked()
    context = lm.start(["What is 12 + 30?", "7 * 6"])
    context = context.extend(lm.sample_step(context, torch.Size((3, 2)), OPTIONS).tokens, OPTIONS.stop)
    cache = lm._engine.pool.caches[0]
    rows = next(iter(context.cache_entries.values())).tensors["rows"]
    cache.lengths[rows[:, lost]] = 0
    with CostMeter() as meter:
        lm.sample_step(context, torch.Size((3, 2)), OPTIONS)
    assert meter.totals["tokens_prefilled"] == 3 + int(context.prompt_lengths[0, lost]) + 3 * 5


def test_a_new_run_reuses_the_memory_of_a_finished_one():
    lm = never_ending()
    advance(lm, lm.start("What is 12 + 30?"), 4)
    gc.collect()
    with CostMeter() as meter:
        advance(lm, lm.start("What is 12 + 30?"), 4)
    assert len(lm._engine.pool.caches) == 1
    assert meter.totals["tokens_prefilled"] == 1  # the prompt is still there; its last token is run for its logits


def test_contexts_do_not_keep_keys_and_values_alive():
    lm = never_ending(cache_bytes=0)
    contexts = [advance(lm, lm.start(problem), 4) for problem in ("What is 12 + 30?", "7 * 6")]
    assert len(lm._engine.pool.caches) == 1  # at least the one in use, and no more under a bound of 0
    owners = [next(iter(context.cache_entries.values())).owner for context in contexts]
    assert owners[0].cache is None
    assert owners[1].cache is lm._engine.pool.caches[0]
    assert copy.deepcopy(owners[1]) is owners[1]
    assert pickle.loads(pickle.dumps(owners[1])).cache is None


def test_two_filters_have_their_own_memory():
    torch.manual_seed(0)
    lm = never_ending()
    contexts = [advance(lm, lm.start(problem), 4) for problem in ("What is 12 + 30?", "7 * 6")]
    for _ in range(3):
        with CostMeter() as meter:
            contexts = [advance(lm, context, 4) for context in contexts]
        assert meter.totals["tokens_prefilled"] == 8
    assert len(lm._engine.pool.caches) == 2


def test_cache_bytes_must_not_be_negative():
    with pytest.raises(ValueError, match="cache_bytes must be an integer of at least 0, got -1"):
        language_model(cache_bytes=-1)
