"""Memory that runs out: half the batch from then on, the same results, and one warning."""

from __future__ import annotations

import copy
import inspect
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_llm.context import PAD, Context
from ppl_llm.inference.cost import CostMeter
from ppl_llm.kv_cache import block_layer as block_layer
from ppl_llm.kv_cache import layer as layer
from ppl_llm.kv_cache.block_layer import BLOCK
from ppl_llm.kv_cache.engine import CacheEngine
from ppl_llm.kv_cache.memory_limit import BatchLimit, CacheTooLarge, is_out_of_memory
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.transformers_lm import TransformersLM
from ppl_llm.reward.prm.transformers_prm import TransformersPRM
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.tiny_models import causal_lm, language_model, reward_net, tokenizer

OPTIONS = StepOptions(stop=("a", "e", "o", "1"), max_tokens=12)
SEQUENCES = 12


class Memory:
    """Lets a model's forward pass fail above a number of tokens.

    :ivar list sizes: tokens of each pass that was run.
    """

    def __init__(self, lm: TransformersLM, tokens: int, error: Callable[[], BaseException]) -> None:
        self.tokens, self.error, self.sizes = tokens, error, list[int]()
        lm.model.register_forward_pre_hook(self._check, with_kwargs=True)

    def _check(self, module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"]
        if ids.numel() > self.tokens:
            raise self.error()
        self.sizes.append(ids.numel())


ERRORS = {
    "accelerator": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:113] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "python": lambda: MemoryError(),
}


def steps(lm: TransformersLM, problem: Any = "What is 12 + 30?", number: int = 3) -> list[Tensor]:
    """Tokens, log-probabilities and forced scores of a few steps of a particle filter."""
    torch.manual_seed(0)
    context: Context = lm.start(problem)
    plates = context.batch_shape
    found: list[Tensor] = []
    for _ in range(number):
        step, log_probs = lm.sample_step(context, torch.Size((SEQUENCES, *plates)), OPTIONS)
        found += [step, log_probs, lm.step_log_prob(context, step, OPTIONS)]
        context = context.extend(step, OPTIONS.stop).reorder(torch.randint(0, SEQUENCES, (SEQUENCES, *plates)))
    return found


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
        else:
            assert torch.equal(one, other)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("error", "tokens", "problem"),
    [
        ("accelerator", 1, "What is 12 + 30?"),
        ("cpu", 5, ["What is 12 + 30?", "7 * 6"]),
        ("python", 30, ["What is 12 + 30?", "7 * 6"]),
    ],
)
def test_passes_that_fit_give_the_same_steps(error: str, tokens: int, problem: Any, caplog: pytest.LogCaptureFixture):
    expected = steps(language_model(), problem)
    lm = language_model()
    memory = Memory(lm, tokens, ERRORS[error])
    with caplog.at_level(logging.WARNING, logger="ppl_llm"):
        assert_same(steps(lm, problem), expected)
    assert max(memory.sizes) <= tokens
    [message] = warnings(caplog)
    assert message.startswith("out of memory with ") and "tokens of a forward pass at a time; continuing with " in message
    assert "lower cache_bytes" in message and "\n" not in message


def test_the_size_that_fits_is_remembered(caplog: pytest.LogCaptureFixture):
    lm = language_model()
    memory = Memory(lm, 5, ERRORS["cpu"])
    failures: list[int] = []

    def failing() -> BaseException:
        failures.append(1)
        return RuntimeError("out of memory")

    memory.error = failing
    steps(lm)
    first = len(failures)
    steps(lm)
    assert 1 <= first <= 5 and len(failures) == first
    assert 3 <= lm._engine.at_once.largest <= 5
    memory.tokens = 10**6
    lm.release_caches()
    steps(lm)
    assert max(memory.sizes) > 5  # a new beginning tries more again


def test_a_pass_in_parts_that_forgets_where_it_writes_is_rejected(monkeypatch: pytest.MonkeyPatch):
    """The broken version runs parts of a batch, all of them in the first rows."""
    expected = steps(language_model())

    def in_first_rows(self: CacheEngine, cache: Any, ids: Tensor, positions: Tensor, mask: Tensor, keep: int, size: int) -> Tensor:
        at_once = max(1, size // ids.shape[1])
        outputs = []
        for begin in range(0, len(ids), at_once):
            some = slice(begin, begin + at_once)
            cache.place(positions[some], mask.shape[-1])
            outputs.append(self._pass(cache, ids[some], positions[some], mask[some], keep))
        return torch.cat(outputs)

    monkeypatch.setattr(CacheEngine, "_in_parts", in_first_rows)
    lm = language_model()
    Memory(lm, 64, ERRORS["cpu"])
    lm._engine.at_once.largest = 5
    with pytest.raises(AssertionError):
        assert_same(steps(lm), expected)


def test_not_one_token_fits():
    lm = language_model()
    Memory(lm, 0, ERRORS["accelerator"])
    with pytest.raises(MemoryError, match=r"out of memory with 1 of sequences at a time: give the model less.* CUDA out of memory"):
        steps(lm)


def test_other_errors_are_not_taken_for_it():
    lm = language_model()
    Memory(lm, 5, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        steps(lm)
    assert lm._engine.at_once.largest is None
    assert not is_out_of_memory(ValueError("out of memory")) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


class Allocator:
    """Refuses keys of more than a number of tokens, whether these lie in rows or in blocks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, places: int) -> None:
        self.largest = 0
        plain = layer.zeros

        def zeros(like: Tensor, *shape: int) -> Tensor:
            tokens = math.prod(shape) // (like.shape[-1] * KV_HEADS)
            if tokens > places:
                raise CacheTooLarge(f"no memory for the keys of {tokens} tokens: out of memory")
            self.largest = max(self.largest, tokens)
            return plain(like, *shape)

        for module in (layer, block_layer):
            monkeypatch.setattr(module, "zeros", zeros)


KV_HEADS = causal_lm().config.num_key_value_heads


def stored(in_blocks: bool) -> TransformersLM:
    """A model whose sequences share blocks of keys, or have a row each."""
    lm = language_model()
    if not in_blocks:
        lm._engine.use_rows()
    return lm


@pytest.mark.parametrize(("in_blocks", "places"), [*((False, rows * 64) for rows in (2, 5, 9)), *((True, n * BLOCK) for n in (6, 9, 12))])
def test_keys_that_do_not_fit_are_kept_of_fewer_sequences(
    in_blocks: bool, places: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    expected = steps(language_model())
    allocator = Allocator(monkeypatch, places)
    lm = stored(in_blocks)
    with caplog.at_level(logging.WARNING, logger="ppl_llm"):
        assert_same(steps(lm), expected)
    assert 0 < allocator.largest <= places
    [message] = warnings(caplog)
    assert message.startswith("out of memory with 12 sequences at a time; continuing with 6,")
    assert lm._at_once.largest in (1, 2, 3, 6)
    assert lm._engine.at_once.largest is None  # passes over fewer tokens would not have helped


@pytest.mark.parametrize("in_blocks", [False, True])
def test_growth_that_fails_in_the_middle_of_a_step_starts_the_step_again(in_blocks: bool, monkeypatch: pytest.MonkeyPatch):
    """The prompts fit, the step's tokens do not: sequences that have tokens already get the same ones again."""
    options, problem = StepOptions(stop="\x00", max_tokens=60), "What is 12 + 30?"
    expected_lm = language_model()
    torch.manual_seed(0)
    expected = expected_lm.sample_step(expected_lm.start(problem), torch.Size((SEQUENCES,)), options)
    places = SEQUENCES * (48 if in_blocks else 64)
    allocator = Allocator(monkeypatch, places)
    lm = stored(in_blocks)
    torch.manual_seed(0)
    found = lm.sample_step(lm.start(problem), torch.Size((SEQUENCES,)), options)
    assert_same(list(found), list(expected))
    assert allocator.largest <= places and lm._at_once.largest == 6


def test_kv_caches_that_nobody_uses_make_room_first(monkeypatch: pytest.MonkeyPatch):
    lm = language_model()
    kept = [lm.start(problem) for problem in ("What is 12 + 30?", "7 * 6")]
    contexts = [c.extend(lm.sample_step(c, torch.Size((4,)), OPTIONS).tokens, OPTIONS.stop) for c in kept]
    assert len(lm._engine.pool.caches) == 2
    failed = list[int]()

    def once() -> BaseException:
        failed.append(1)
        memory.tokens = 10**6
        return RuntimeError("out of memory")

    memory = Memory(lm, 0, once)
    lm.sample_step(contexts[1], torch.Size((4,)), OPTIONS)
    assert len(failed) == 1 and len(lm._engine.pool.caches) == 1
    assert lm._engine.at_once.largest is None
    with CostMeter() as meter:
        lm.sample_step(contexts[0], torch.Size((4,)), OPTIONS)
    assert meter.totals["tokens_prefilled"] > 4  # released, hence run again


@pytest.mark.parametrize("in_blocks", [False, True])
def test_a_kv_cache_that_could_not_grow_is_as_before(in_blocks: bool, monkeypatch: pytest.MonkeyPatch):
    lm = stored(in_blocks)
    context = lm.start("What is 12 + 30?")
    context = context.extend(lm.sample_step(context, torch.Size((4,)), OPTIONS).tokens, OPTIONS.stop)
    cache = lm._engine.pool.caches[0]
    if in_blocks:
        cache.reserve(40, cache.capacity + 1)  # a table of blocks, none of which exists yet
    before = copy.deepcopy(cache.state())
    calls, plain = [0], layer.zeros

    def grow() -> None:
        cache.reserve(40, before["capacity"] + (not in_blocks))
        if in_blocks:
            cache.place(torch.arange(2 * BLOCK).expand(40, -1), 2 * BLOCK)

    def third_fails(like: Tensor, *shape: int) -> Tensor:
        calls[0] += 1
        if calls[0] % 4 == 3:
            raise CacheTooLarge("out of memory")
        return plain(like, *shape)

    with monkeypatch.context() as patch:
        patch.setattr(layer, "zeros", third_fails)
        with pytest.raises(CacheTooLarge):
            grow()
    assert calls[0] in (3, 7) and (cache.num_rows, cache.capacity) == (before["tokens"].shape[0], before["capacity"])
    after = cache.state()
    assert in_blocks == ("table" in after) and (not in_blocks or torch.equal(after["table"], before["table"]))
    for states, was in zip(after["layers"], before["layers"], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(states, was, strict=True))
    grow()
    assert cache.num_rows == 40


def test_reward_models_too(caplog: pytest.LogCaptureFixture):
    def scores(prm: TransformersPRM) -> Tensor:
        context = language_model().start("What is 12 + 30?").expand((5,))
        torch.manual_seed(0)
        for _ in range(2):
            step = torch.randint(5, 300, (5, 9)).masked_fill(torch.arange(9) >= torch.tensor([[9], [4], [1], [7], [5]]), PAD)
            context = context.extend(step, OPTIONS.stop)
        return prm.step_log_odds(context)

    expected = scores(TransformersPRM(reward_net(), tokenizer()))
    prm = TransformersPRM(reward_net(), tokenizer())
    sizes = list[int]()

    def check(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].numel() > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(kwargs["input_ids"].numel())

    next(m for m in prm.model.modules() if "input_ids" in inspect.signature(m.forward).parameters).register_forward_pre_hook(
        check, with_kwargs=True
    )
    with caplog.at_level(logging.WARNING, logger="ppl_llm"):
        torch.testing.assert_close(scores(prm), expected, atol=1e-5, rtol=1e-5)
    assert max(sizes) <= 7 and len(warnings(caplog)) == 1


def test_a_reward_model_that_cannot_hold_the_sequences_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def refuse(like: Tensor, *shape: int) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    prm = TransformersPRM(reward_net(), tokenizer())
    context = language_model().start("What is 12 + 30?")
    context = context.extend(torch.randint(5, 300, (9,)), OPTIONS.stop)
    monkeypatch.setattr(Tensor, "new_zeros", _only_large(Tensor.new_zeros, refuse))
    with pytest.raises(CacheTooLarge, match=r"no memory for the keys of \d+ tokens\ngive the model less memory to hold"):
        prm.step_log_odds(context)


def _only_large(plain: Callable[..., Tensor], refuse: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def new_zeros(like: Tensor, *shape: int, **kwargs: Any) -> Tensor:
        return refuse(like) if len(shape) == 4 else plain(like, *shape, **kwargs)

    return new_zeros


def test_models_without_a_kv_cache_too(tmp_path: Any, caplog: pytest.LogCaptureFixture):
    directory = ARCHITECTURES["mamba"].write(tmp_path)
    expected = steps(TransformersLM.from_pretrained(directory))
    lm = TransformersLM.from_pretrained(directory)
    rows = list[int]()

    def check(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[0] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        rows.append(kwargs["input_ids"].shape[0])

    lm.model.register_forward_pre_hook(check, with_kwargs=True)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="ppl_llm"):
        assert_same(steps(lm), expected)
    assert max(rows) <= 4 and lm._at_once.largest == 3
    assert len(warnings(caplog)) == 1


def test_a_batch_is_not_given_up_while_it_can_be_halved():
    limit, done, failed = BatchLimit("things"), list[slice](), list[slice]()

    for attempt in limit.in_batches(10, lambda: failed.append(slice(0))):
        with attempt as batch:
            if batch.stop - batch.start > 3:
                raise MemoryError
            done.append(batch)
    assert [(b.start, b.stop) for b in done] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)] and len(failed) == 2
