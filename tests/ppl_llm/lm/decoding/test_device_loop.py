"""Token steps whose state lies on the device, as they are and replayed from a recording, against the ordinary loop."""

from __future__ import annotations

import copy
import gc
import logging
import string
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_llm.context import PAD
from ppl_llm.inference.cost import CostMeter
from ppl_llm.kv_cache.cache import KVCache
from ppl_llm.kv_cache.engine import CacheEngine
from ppl_llm.lm.base import StepOptions, StepSample
from ppl_llm.lm.decoding import cuda_graphs as cuda_graphs
from ppl_llm.lm.decoding.device_loop import DeviceLoop, padded
from ppl_llm.lm.decoding.device_state import DeviceState
from ppl_llm.lm.transformers_lm import TransformersLM
from tests.helpers.tape import OneDevice, tape
from tests.helpers.tiny_models import causal_lm, language_model, tokenizer

SEQUENCES = torch.Size((12,))
PROBLEMS = ["What is 12 + 30?", "Then add the ones: 40 + 2", "7 * 6"]
OPTIONS = StepOptions(stop=("a", "1", "0", "e"), max_tokens=28)


def plain(**options: Any) -> TransformersLM:
    return TransformersLM(causal_lm(max_position_embeddings=200), tokenizer(), device_loop=False, **options)


def looping(capture: Any = None, kv_bucket: int = 32, **options: Any) -> TransformersLM:
    """A model with a loop of its own, whose buckets are small enough to be outgrown by short texts."""
    lm = plain(**options)
    lm.use_device_loop(DeviceLoop(lm._engine, lm.eos_ids, capture, kv_bucket=kv_bucket))
    return lm


CAPTURES = pytest.mark.parametrize("capture", [None, tape], ids=["as it is", "replayed"])


def filtered(
    lm: TransformersLM, options: StepOptions = OPTIONS, steps: int = 3, problem: Any = PROBLEMS[0], sequences: torch.Size = SEQUENCES
) -> list[StepSample]:
    """Steps of ragged lengths with resampling in between."""
    torch.manual_seed(0)
    gc.collect()  # so that the memory of earlier runs is used again
    context, samples = lm.start(problem), []
    for _ in range(steps):
        samples.append(lm.sample_step(context, sequences, options))
        context = context.extend(samples[-1].tokens, options.stop)
        context = context.reorder(torch.randint(0, sequences[0], sequences))
    return samples


@lru_cache
def expected(options: StepOptions = OPTIONS, max_length: int | None = None) -> list[StepSample]:
    """What the ordinary loop gives."""
    return filtered(plain(max_length=max_length), options)


def assert_same(samples: list[StepSample], others: list[StepSample]) -> None:
    for ours, theirs in zip(samples, others, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=1e-5, rtol=1e-5)


@CAPTURES
@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        StepOptions(stop=(), max_tokens=20),
        StepOptions(stop="e", max_tokens=1),
        StepOptions(stop=("a", ".\n\n"), max_tokens=30, temperature=0.7, top_p=0.9, top_k=40),
    ],
    ids=["ragged", "fixed length", "one token", "warped"],
)
def test_tokens_and_log_probabilities_are_those_of_the_ordinary_loop(capture: Any, options: StepOptions):
    lengths = torch.stack([(step.tokens != PAD).sum(-1) for step in expected(options)])
    assert options is not OPTIONS or (lengths.min() == 0 and lengths.unique().numel() > 8)  # finished sequences, and ragged ones
    assert_same(filtered(looping(capture), options), expected(options))


@CAPTURES
def test_several_problems_at_once(capture: Any):
    sequences = torch.Size((5, 3))
    assert_same(filtered(looping(capture), problem=PROBLEMS, sequences=sequences), filtered(plain(), problem=PROBLEMS, sequences=sequences))


@CAPTURES
def test_texts_that_fill_the_context(capture: Any):
    options = StepOptions(stop="a", max_tokens=30)
    full = expected(options, 65)
    assert int((full[-1].tokens != PAD).sum(-1).min()) == 0
    assert int((full[-1].tokens != PAD).sum(-1).max()) > 0
    assert_same(filtered(looping(capture, max_length=65), options), full)


def test_sequences_of_other_steps_keep_what_they_hold():
    """Rows that fill up a batch hold the texts of sequences that have stopped: they are found again, whole, at the next step."""
    for capture in (None, tape):
        costs = []
        for lm in (plain(), looping(capture)):
            with CostMeter() as meter:
                filtered(lm)
            costs.append(meter.totals)
        assert costs[0]["tokens_prefilled"] == costs[1]["tokens_prefilled"]
        assert costs[0]["tokens_sampled"] == costs[1]["tokens_sampled"]
        # Up to seven passes more for each step: the host looks once in eight tokens.
        assert costs[0]["lm_forwards"] <= costs[1]["lm_forwards"] <= costs[0]["lm_forwards"] + 3 * 7
        assert costs[1]["lm_seconds"] > 0


def test_full_rows_beside_the_batch_lose_a_token_and_nothing_else():
    """A row that fills up the batch and has no column left to write to."""
    lm, options, sequences = looping(), StepOptions(stop=(), max_tokens=3), torch.Size((4,))
    torch.manual_seed(0)
    context = lm.start(PROBLEMS[0]).expand(sequences)
    context = context.extend(lm.sample_step(context, sequences, options).tokens, options.stop)
    [cache] = lm._engine.pool.caches
    cache.tokens[3], cache.lengths[3] = torch.arange(cache.capacity) % 7, cache.capacity
    lm.sample_step(replace(context, done=torch.tensor([False, False, False, True])), sequences, options)
    assert len(lm._engine.pool.caches) == 1
    assert cache.lengths.tolist() == [*(context.lengths[:3] + 2).tolist(), cache.capacity - 1]
    assert torch.equal(cache.tokens[3, :-1], torch.arange(cache.capacity - 1) % 7)


def test_graphs_are_made_for_each_number_of_sequences_and_bucket_and_used_again():
    lm = looping(tape)
    graphs = lm.device_loop.graphs
    counted: list[int] = []
    lm.model.register_forward_pre_hook(lambda *_: counted.append(1))
    for _ in range(3):
        before, passes = graphs.captured, len(counted)
        with CostMeter() as meter:
            filtered(lm)
        captured = graphs.captured - before
    keys = next(iter(graphs._of_cache.values())).by_key
    assert len({sequences for sequences, *_ in keys}) > 2
    assert len({stop for _, stop, *_ in keys}) > 1
    assert captured == 0  # the third run found all it needed, in the memory that the others left
    # The host runs the model for prompts and what the rows lack at the start of each step, and no more.
    assert len(counted) - passes < 15 < meter.totals["lm_forwards"] / 3


def test_graphs_die_with_their_memory():
    lm = looping(tape)
    graphs = lm.device_loop.graphs
    filtered(lm)
    cache = lm._engine.pool.caches[0]
    known = graphs._of_cache[cache]
    assert known.by_key
    cache.reserve(cache.num_rows + 1, cache.capacity)
    filtered(lm)
    assert graphs._of_cache[cache] is not known
    del cache, known
    lm.release_caches()
    gc.collect()
    assert not graphs._of_cache


def test_the_number_of_graphs_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda_graphs, "_MOST", 3)
    lm = looping(tape)
    assert_same(filtered(lm), expected())
    assert all(len(graphs.by_key) <= 3 for graphs in lm.device_loop.graphs._of_cache.values())


def test_a_failed_capture_is_said_once_and_changes_nothing(caplog: pytest.LogCaptureFixture):
    def failing(body: Callable[[], None]) -> Callable[[], None]:
        try:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")
        finally:  # as torch's context manager does
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    lm = looping(failing)
    with caplog.at_level(logging.WARNING, logger="ppl_llm"):
        samples = filtered(lm)
    assert_same(samples, expected())
    said = [record.getMessage() for record in caplog.records if "captured" in record.getMessage()]
    assert said == [
        "the token step is launched operation by operation, as it cannot be captured as a CUDA graph: "
        "RuntimeError: CUDA error: operation not permitted when stream is capturing"
    ]
    assert lm.device_loop.graphs.failure.endswith("when stream is capturing")


def test_a_step_that_asks_the_device_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch):
    """The recording refuses what a CUDA graph refuses, so that the tests above mean that the step asks for nothing."""
    choose = DeviceState.choose
    monkeypatch.setattr(DeviceState, "choose", lambda self, *rest, **more: choose(self, *rest, **more) if bool(self.alive.any()) else None)
    lm = looping(tape)
    filtered(lm, steps=1)
    assert "not permitted when stream is capturing" in lm.device_loop.graphs.failure


def run_without_data(options: StepOptions, vocabulary: int = 0) -> int:
    """A token step on a device that holds no data: the number of operations. All that the host asks of it fails."""
    meta = torch.device("meta")
    lm = TransformersLM(causal_lm(**({"vocab_size": vocabulary} if vocabulary else {})), tokenizer())
    automaton = copy.copy(lm.stop_automaton(options.stop))
    automaton.table = automaton.table.to(meta)
    eos_ids, config = lm.eos_ids.to(meta), lm.model.to(meta).config
    engine = CacheEngine(
        lm._engine.forward, name="lm", tokens_counter="t", num_layers=config.num_hidden_layers, max_length=64, cache_bytes=0, device=meta
    )
    cache, step = engine.pool.take(None), DeviceState(8, 16, meta)
    cache.reserve(8, 40)
    step.begin(
        torch.zeros(6, dtype=torch.int32, device=meta),
        torch.zeros(6, 16, dtype=torch.float64, device=meta),
        torch.zeros(6, dtype=torch.long, device=meta),
    )
    with torch.no_grad(), OneDevice("meta") as one:
        logits = step.advance(engine, cache, 8, 64)
        step.choose(logits, options, automaton, eos_ids)
    return one.operations


@pytest.mark.parametrize("vocabulary", [0, 3000])
@pytest.mark.parametrize("options", [OPTIONS, StepOptions(temperature=0.7, top_p=0.9, top_k=40)], ids=["plain", "warped"])
def test_a_token_step_needs_nothing_of_the_host(options: StepOptions, vocabulary: int):
    assert run_without_data(options, vocabulary) > 100


def test_a_number_from_the_host_is_noticed(monkeypatch: pytest.MonkeyPatch):
    place = KVCache.place

    def placed(self: KVCache, positions: Tensor, stop: int) -> Tensor:
        mask = place(self, positions, stop)
        return mask & (torch.tensor(0) <= positions[..., None, None])

    monkeypatch.setattr(KVCache, "place", placed)
    with pytest.raises(RuntimeError, match="works with a tensor on cpu"):
        run_without_data(OPTIONS)


def test_numbers_of_sequences_are_rounded_up_a_little():
    some = {1: 1, 2: 2, 3: 4, 5: 8, 9: 16, 16: 16, 17: 24, 25: 32, 33: 48, 49: 64, 64: 64, 65: 96, 200: 256}
    assert {sequences: padded(sequences) for sequences in some} == some
    assert all(sequences <= padded(sequences) < 2 * sequences for sequences in range(1, 500))


def test_the_loop_is_for_accelerators_unless_asked_for():
    assert language_model().device_loop is None
    asked = language_model(device_loop=True).device_loop
    assert asked is not None and asked.graphs is None


def test_a_model_without_a_kv_cache_has_no_loop():
    model = causal_lm()
    model._supports_attention_backend = False
    with pytest.raises(
        ValueError, match=r"device_loop=True needs the KV cache of this package, which Qwen2ForCausalLM does without: it does not"
    ):
        TransformersLM(model, tokenizer(), device_loop=True)
    assert TransformersLM(model, tokenizer()).device_loop is None


def stale_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask of the first token is used for all."""
    masks: dict[Any, Tensor] = {}
    place = KVCache.place

    def first_mask(self: KVCache, positions: Tensor, stop: int) -> Tensor:
        return masks.setdefault((positions.shape, stop), place(self, positions, stop))

    monkeypatch.setattr(KVCache, "place", first_mask)


def wrong_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are rounded down."""
    advance = DeviceState.advance
    monkeypatch.setattr(
        DeviceState, "advance", lambda self, engine, cache, sequences, stop: advance(self, engine, cache, sequences, max(32, stop - 32))
    )


def write_behind_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens leave a gap of one column behind the text."""
    advance = DeviceState.advance

    def late(self: DeviceState, engine: Any, cache: KVCache, sequences: int, stop: int) -> Tensor:
        cache.lengths[:sequences] += 1
        logits = advance(self, engine, cache, sequences, stop)
        cache.lengths[:sequences] -= 1
        return logits

    monkeypatch.setattr(DeviceState, "advance", late)


def lengths_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token is written over the one before."""
    advance = DeviceState.advance

    def standing(self: DeviceState, engine: Any, cache: KVCache, sequences: int, stop: int) -> Tensor:
        before = cache.lengths.clone()
        logits = advance(self, engine, cache, sequences, stop)
        cache.lengths.copy_(before)
        return logits

    monkeypatch.setattr(DeviceState, "advance", standing)


def rows_forget_their_output_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences are dropped from the KV cache, and not from the tensors beside it."""
    monkeypatch.setattr(DeviceState, "take", lambda self, rows: None)


def stop_states_stay_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states of the stop automaton do not move with their sequences."""
    take = DeviceState.take

    def take_without(self: DeviceState, rows: Tensor) -> None:
        before = self._state.clone()
        take(self, rows)
        self._state.copy_(before)

    monkeypatch.setattr(DeviceState, "take", take_without)


def room_is_unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = DeviceState.begin
    monkeypatch.setattr(
        DeviceState, "begin", lambda self, watch, uniforms, room, *rest: begin(self, watch, uniforms, torch.full_like(room, 10**6), *rest)
    )


def graphs_outlive_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings are kept when the KV cache gets other tensors."""
    monkeypatch.setattr(KVCache, "version", property(lambda self: 0, lambda self, value: None), raising=False)


def one_bucket_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording is used for every number of columns."""
    run = cuda_graphs.StepGraphs.run
    monkeypatch.setattr(cuda_graphs.StepGraphs, "run", lambda self, cache, key, body: run(self, cache, (key[0], 0, *key[2:]), body))


def column_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of the token is a number of the host, which a recording keeps for ever."""
    choose = DeviceState.choose

    def frozen(self: DeviceState, *rest: Any, **more: Any) -> None:
        self._host = getattr(self, "_host", -1) + 1
        self._column.fill_(self._host % self.width)
        choose(self, *rest, **more)

    monkeypatch.setattr(DeviceState, "choose", frozen)


EITHER: list[Any] = [
    stale_mask,
    wrong_bucket,
    write_behind_the_end,
    lengths_stand_still,
    rows_forget_their_output_rows,
    stop_states_stay_in_place,
    room_is_unbounded,
]
REPLAYED: list[Any] = [graphs_outlive_their_memory, one_bucket_for_all, column_on_the_host]


def name(value: Any) -> str:
    return "as it is" if value is None else str(value.__name__)


@pytest.mark.parametrize(("mutant", "capture"), [*((m, None) for m in EITHER), *((m, tape) for m in EITHER + REPLAYED)], ids=name)
def test_mutants_are_told_apart(mutant: Callable[[pytest.MonkeyPatch], None], capture: Any, monkeypatch: pytest.MonkeyPatch):
    # Delimiters of two letters: most sequences are in the middle of one when others are dropped.
    stops = ("1", "0", *(first + second for first in "aeiourstn" for second in string.ascii_lowercase))
    options = StepOptions(stop=stops, max_tokens=28)
    right = expected(options, 70)
    lm = looping(capture, max_length=70)
    mutant(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        for _ in range(1 + (mutant is graphs_outlive_their_memory)):  # again in the memory of the first run
            assert_same(filtered(lm, options), right)
