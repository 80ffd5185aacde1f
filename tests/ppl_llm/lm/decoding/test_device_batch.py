"""Steps of several programs in a KV cache that they share: the same tokens, however late the device does its work."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_llm.inference import CostMeter, run_concurrently
from ppl_llm.kv_cache import cache as kv_cache
from ppl_llm.kv_cache import layer as layer
from ppl_llm.kv_cache.cache import KVCache
from ppl_llm.kv_cache.memory_limit import CacheTooLarge
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding import device_batch
from ppl_llm.lm.decoding.cuda_graphs import SideStream
from ppl_llm.lm.decoding.device_batch import BatchedStep, DeviceBatch
from ppl_llm.lm.decoding.device_loop import DeviceLoop
from ppl_llm.lm.decoding.device_state import DeviceState
from ppl_llm.lm.transformers_lm import TransformersLM
from tests.helpers.tape import tape
from tests.helpers.tiny_models import language_model
from tests.ppl_llm.lm.decoding.test_device_loop import CAPTURES, looping
from tests.ppl_llm.lm.decoding.test_joint_decoding import OPTIONS, OTHER, Passes, Step, alone, assert_same, programs, steps, together

LONG = replace(OPTIONS, max_tokens=30)
MANY = [("What is 12 + 30?", 6, OPTIONS), ("7 * 6", 7, LONG), ("12 + 30", 2, OTHER), ("First, multiply.", 9, LONG), ("40 + 2", 5, OPTIONS)]
"""One more than the batch has room for, and steps of two lengths under one distribution."""


def several(lm: TransformersLM, number: int = 3) -> list[Callable[[], list[Step]]]:
    return [steps(lm, *each, number=number) for each in MANY]


@lru_cache
def expected() -> list[list[Step]]:
    found: list[list[Step]] = alone(several(language_model()))
    return found


@CAPTURES
@pytest.mark.parametrize("max_sequences", [256, 16, 1])
def test_tokens_are_those_of_one_after_the_other(capture: Any, max_sequences: int):
    lm = looping(capture)
    assert_same(together(several(lm), max_sequences=max_sequences), expected())
    assert_same(together(several(lm), max_sequences=max_sequences), expected())  # with graphs and a KV cache of another run
    assert len(lm._sampler.batches) == 2
    assert all(batch.idle for batch in lm._sampler.batches)
    assert lm._engine.pool._reserved == []
    lengths = torch.stack([(step != -1).sum(-1).float().std() for program in expected() for step, _ in program])
    assert lengths.median() > 1  # ragged, so that sequences leave and change places


def test_sequences_of_all_programs_share_a_pass():
    lm = looping()
    passes = Passes(lm)
    alone(programs(lm, 3))
    apart = len(passes.sizes)
    lm.release_caches()
    passes.sizes.clear()
    together(programs(lm, 3))
    assert max(passes.sizes) >= 24
    assert len(passes.sizes) < 0.6 * apart


def prefilled(lm: TransformersLM) -> int:
    """Tokens that had to be run before steps could begin."""

    def program(problem: str, sequences: int, options: StepOptions) -> None:
        context = lm.start(problem)
        for _ in range(4):
            context = context.extend(lm.sample_step(context, torch.Size((sequences,)), options).tokens, options.stop)
            context = context.reorder(torch.randint(0, sequences, (sequences,)))

    with CostMeter() as meter:
        together([lambda each=each: program(*each) for each in MANY])
    return int(meter.totals["tokens_prefilled"])


def test_nothing_is_run_twice(monkeypatch: pytest.MonkeyPatch):
    """What a step has added is found again in the program's KV cache; not so in the broken version."""
    before = prefilled(language_model())
    assert prefilled(looping()) == before
    taken = KVCache.take

    def one_way(self: KVCache, giver: KVCache, source: Tensor, target: Tensor, start: int, stop: int) -> None:
        if start == 0:  # not back
            taken(self, giver, source, target, start, stop)

    monkeypatch.setattr(KVCache, "take", one_way)
    assert prefilled(looping()) > before


class Late(SideStream):
    """A device that does what it is asked for in the block no sooner than it must."""

    queued: list[Callable[[], None]]

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.queued = []

    @contextmanager
    def work(self) -> Iterator[None]:
        advance = DeviceLoop.advance
        DeviceLoop.advance = lambda *arguments: self.queued.append(lambda: advance(*arguments))  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            DeviceLoop.advance = advance  # type: ignore[method-assign]

    def wait(self) -> None:
        self.flush()

    def flush(self) -> None:
        for each in self.queued:
            each()
        self.queued.clear()


@CAPTURES
def test_programs_continue_while_the_device_works(capture: Any, monkeypatch: pytest.MonkeyPatch):
    """Nothing that they do reads what the device is working on, or changes it."""
    monkeypatch.setattr("ppl_llm.lm.decoding.device_batch.SideStream", Late)
    working: list[int] = []
    collect = DeviceBatch._collect
    lm = looping(capture)

    def program(each: Any) -> Callable[[], list[Step]]:
        run = steps(lm, *each, number=3)

        def recorded() -> list[Step]:
            sample = lm.sample_step

            def noting(*arguments: Any) -> Any:
                found = sample(*arguments)
                working.append(sum(len(batch._aside.queued) for batch in lm._sampler.batches))  # type: ignore[attr-defined]
                return found

            monkeypatch.setattr(lm, "sample_step", noting)
            return run()

        return recorded

    assert_same(together([program(each) for each in MANY], max_sequences=16), expected())
    assert sum(queued > 0 for queued in working) > len(working) // 2
    # The broken version looks at the sequences without waiting.
    monkeypatch.setattr(Late, "wait", lambda self: None)
    monkeypatch.setattr(DeviceBatch, "_collect", lambda self: (collect(self), self._aside.flush()))
    with pytest.raises((AssertionError, RuntimeError)):
        assert_same(together(several(looping(capture)), max_sequences=16), expected())


def test_the_stream_waits_for_the_others_and_they_for_it(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []

    class Stream:
        def __init__(self, name: Any) -> None:
            self.name, self.device = str(name), "cuda:0"

        def wait_stream(self, other: Stream) -> None:
            said.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        said.append(f"on {stream.name}")
        yield
        said.append("back")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    stream = SideStream(torch.device("cuda", 0))
    with stream.work():
        said.append("work")
    stream.wait()
    assert said == ["side waits for main", "on side", "work", "back", "main waits for side"]


def test_ctrl_c_in_a_pass_leaves_everything_as_it_was():
    lm = looping()
    passes = 0

    def interrupt(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 20:
            raise KeyboardInterrupt

    handle = lm.model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        together(several(lm))
    handle.remove()
    assert lm._engine.pool._reserved == []
    assert all(batch.idle and batch._cache is None for batch in lm._sampler.batches)
    assert_same(together(several(lm)), expected())


def test_a_pass_that_fails_fails_for_those_in_it():
    lm = looping()
    rows: list[int] = []

    def check(module: Any, args: Any, kwargs: Any) -> None:
        rows.append(kwargs["input_ids"].shape[0])
        if kwargs["input_ids"].shape[0] > 8:
            raise RuntimeError("an illegal instruction")

    handle = lm.model.register_forward_pre_hook(check, with_kwargs=True)
    found = run_concurrently(several(lm), seeds=range(len(MANY)), return_exceptions=True)
    assert max(rows) > 8
    assert sum(isinstance(each, RuntimeError) for each in found) >= 3
    handle.remove()
    assert lm._engine.pool._reserved == []
    assert_same(together(several(lm)), expected())


@pytest.mark.parametrize("rows", [1, 12, 20])
def test_no_memory_for_the_keys_of_all(rows: int, monkeypatch: pytest.MonkeyPatch):
    """Fewer sequences at a time, and nothing else."""
    zeros = layer.zeros

    def scarce(like: Tensor, *shape: int) -> Tensor:
        if shape[0] > rows:
            raise CacheTooLarge("no memory")
        return zeros(like, *shape)

    lm = looping()
    monkeypatch.setattr(layer, "zeros", scarce)
    assert_same(together(several(lm)), expected())
    assert all(cache.num_rows <= rows for cache in lm._engine.pool.caches if cache.num_bytes > 1000)
    assert lm._engine.pool._reserved == []


def test_dead_sequences_that_stay_have_a_column_to_write_to(monkeypatch: pytest.MonkeyPatch):
    """Columns are made one by one here; in the broken version there are none beyond what sequences that continue need."""
    reserve, collect = KVCache.reserve, DeviceBatch._collect
    monkeypatch.setattr(kv_cache, "ALIGN", 1)
    monkeypatch.setattr(KVCache, "reserve", lambda self, rows, columns, spare=False: reserve(self, rows, columns, spare=False))
    problems = ["7 * 6", "7 + 6", "12 + 30", "What is 12 + 30? Then add the ones: 40 + 2 and multiply the result by 7 and say what it is."]
    options = replace(OPTIONS, stop=("a", "e"), max_tokens=40)
    seed = 12  # the longest sequences end with a chunk, and the others continue

    def run() -> None:
        run_concurrently([steps(looping(), problems, 2, options, number=3)], seeds=[seed])

    run()

    def of_the_living(self: DeviceBatch) -> None:
        collect(self)
        if self._cache is not None and self._number:
            lengths = torch.where(self.loop.state.alive[: self._number], self._cache.lengths[: self._number], 0)
            self._longest = int(lengths.max())

    monkeypatch.setattr(DeviceBatch, "_collect", of_the_living)
    with pytest.raises(RuntimeError, match="out of bounds"):
        run()


def test_no_memory_to_take_sequences_back(monkeypatch: pytest.MonkeyPatch):
    lm, refused = looping(), []
    send_back = DeviceBatch._send_back

    def scarce(self: DeviceBatch, *arguments: Any) -> None:
        def refuse(*_: Any) -> None:
            refused.append(1)
            raise CacheTooLarge("no memory")

        with monkeypatch.context() as patch:
            patch.setattr(lm._engine, "reserve", refuse)
            send_back(self, *arguments)

    monkeypatch.setattr(DeviceBatch, "_send_back", scarce)
    assert_same(together(several(lm)), expected())
    assert refused


def test_few_batches_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device_batch, "_MOST", 2)
    lm = looping(tape)
    distributions = [replace(OPTIONS, temperature=1 + i / 10) for i in range(4)]
    run_concurrently([lambda distribution=distribution: steps(lm, "7 * 6", 3, distribution, number=1)() for distribution in distributions])
    run_concurrently([steps(lm, "7 * 6", 3, distributions[-1], number=1)])
    assert len(lm._sampler.batches) == 2


def test_memory_is_released():
    lm = looping(tape)
    together(several(lm))
    held = [weakref.ref(cache) for cache in lm._engine.pool.caches]
    gc.collect()
    gc.disable()
    try:
        together(several(lm))
        held += [weakref.ref(cache) for cache in lm._engine.pool.caches]
        lm.release_caches()
        assert not [cache for cache in held if cache() is not None]
    finally:
        gc.enable()


def output_rows_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newcomers get the output rows of sequences that are still at work."""
    join = DeviceState.join

    def first(self: DeviceState, row: int, outputs: Tensor, *rest: Tensor) -> None:
        join(self, row, torch.arange(len(outputs)), *rest)

    monkeypatch.setattr(DeviceState, "join", first)


def rows_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host does not notice that sequences have changed places."""
    close = DeviceBatch._close_ranks

    def forgetful(self: DeviceBatch, alive: Tensor, lengths: Tensor) -> None:
        before = [member.rows for member in self._members]
        close(self, alive, lengths)
        for member, rows in zip(self._members, before, strict=True):
            member.rows = torch.where(rows < self._number, rows, -1)

    monkeypatch.setattr(DeviceBatch, "_close_ranks", forgetful)


def keys_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences change places without their keys."""
    taken = KVCache.take

    def lazy(self: KVCache, giver: KVCache, *rest: Any) -> None:
        if giver is not self:
            taken(self, giver, *rest)

    monkeypatch.setattr(KVCache, "take", lazy)


def left_over(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    def mutant(monkeypatch: pytest.MonkeyPatch) -> None:
        join = DeviceState.join

        def stale(self: DeviceState, first: int, *rest: Tensor) -> None:
            before = getattr(self, name).clone()
            join(self, first, *rest)
            getattr(self, name).copy_(before)

        monkeypatch.setattr(DeviceState, "join", stale)

    mutant.__name__ = f"left_over{name}"
    return mutant


def others_uniforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniforms by the order of the rows, not of the sequences."""
    results = BatchedStep.results

    def in_order(self: BatchedStep, sequences: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        results(self, sequences.flip(0), tokens, log_probs)

    monkeypatch.setattr(BatchedStep, "results", in_order)


def column_of_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence's first columns are not copied."""
    taken = KVCache.take

    def late(self: KVCache, giver: KVCache, source: Tensor, target: Tensor, start: int, stop: int) -> None:
        taken(self, giver, source, target, max(start, 8), stop)

    monkeypatch.setattr(KVCache, "take", late)


MUTANTS = [output_rows_in_use, rows_forgotten, keys_stay, left_over("_column"), left_over("_state"), others_uniforms, column_of_the_prompt]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutants_are_told_apart(mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch):
    lm = looping()
    mutant(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        for _ in range(2):
            assert_same(together(several(lm), max_sequences=16), expected())
