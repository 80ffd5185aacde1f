"""Steps of several programs in one batch: the same tokens as one program after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm import SMC, Context, LLMStep, StepReward, barrier
from ppl_llm.context import PAD
from ppl_llm.inference import CostMeter, run_concurrently
from ppl_llm.kv_cache import attention as attention
from ppl_llm.kv_cache import common_prefix, joint_pass
from ppl_llm.kv_cache import pool as pool
from ppl_llm.kv_cache.joint_pass import Parts
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.transformers_lm import TransformersLM
from ppl_llm.reward.prm.transformers_prm import TransformersPRM
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.side_by_side import alone, together
from tests.helpers.tape import tape
from tests.helpers.tiny_models import language_model, reward_net, tokenizer
from tests.ppl_llm.lm.decoding.test_device_loop import looping

OPTIONS = StepOptions(stop=("a", "e", "o", "1"), max_tokens=12)
OTHER = StepOptions(stop="\n\n", max_tokens=7, temperature=0.7, top_k=50)
PROBLEMS: list[tuple[Any, int, StepOptions]] = [
    ("What is 12 + 30?", 6, OPTIONS),
    ("7 * 6", 3, OTHER),
    (["Then add the ones: 40 + 2", "12 + 30"], 4, OPTIONS),
    ("12 + 30", 1, OPTIONS),
    ("First, multiply.", 9, OPTIONS),
]

Step = tuple[Tensor, Tensor]
Make = Callable[..., TransformersLM]

EVERY_LOOP = pytest.mark.parametrize(
    "make", [language_model, looping, partial(looping, tape)], ids=["on the host", "on the device", "replayed"]
)
"""Who samples: token by token with the host looking on, or eight tokens at a time in a KV cache that the programs share."""


def steps(lm: TransformersLM, problem: Any, sequences: int, options: StepOptions, number: int = 2) -> Callable[[], list[Step]]:
    """Sample, score and resample, as a particle filter does."""

    def program() -> list[Step]:
        context = lm.start(problem)
        shape = torch.Size((sequences, *context.batch_shape))
        found = []
        for _ in range(number):
            step, log_probs = lm.sample_step(context, shape, options)
            torch.testing.assert_close(lm.step_log_prob(context, step, options), log_probs, atol=1e-4, rtol=1e-5)
            found.append((step, log_probs))
            context = context.extend(step, options.stop).reorder(torch.randint(0, sequences, shape))
        return found

    return program


def programs(lm: TransformersLM, number: int = 2) -> list[Callable[[], list[Step]]]:
    return [steps(lm, *each, number=number) for each in PROBLEMS]


def assert_same(found: list[list[Step]], expected: list[list[Step]], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        for (step, log_probs), (same, same_log_probs) in zip(one, other, strict=True):
            assert torch.equal(step, same)
            torch.testing.assert_close(log_probs, same_log_probs, atol=10 * tolerance, rtol=tolerance)


class Passes:
    """Sequences of the passes over one token each."""

    def __init__(self, lm: TransformersLM) -> None:
        self.sizes: list[int] = []
        lm.model.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, module: Any, args: Any, kwargs: Any) -> None:
        self.sizes.append(kwargs["input_ids"].shape[0])


@pytest.mark.parametrize("max_sequences", [256, 12, 5])
def test_tokens_are_those_of_one_after_the_other(max_sequences: int):
    lm = language_model()
    passes = Passes(lm)
    expected = alone(programs(lm, 3))
    apart = len(passes.sizes)
    lm.release_caches()
    passes.sizes.clear()
    assert_same(together(programs(lm, 3), max_sequences=max_sequences), expected)
    assert max(passes.sizes) == {256: 27, 12: 12, 5: 9}[max_sequences]
    if max_sequences == 256:
        assert len(passes.sizes) < 0.6 * apart


@pytest.mark.parametrize("name", [each for each in ARCHITECTURES if each in ("gemma2", "gemma4", "gpt-oss", "deepseek v3", "mamba")])
def test_other_architectures(name: str, tmp_path: Path):
    lm = TransformersLM.from_pretrained(ARCHITECTURES[name].write(tmp_path), max_length=64)
    some = [steps(lm, *each) for each in PROBLEMS[:2]]
    expected = alone(some)
    lm.release_caches()
    assert_same(together(some), expected, 2e-5)
    if not lm.fallback:
        assert lm._sampler._sample_tokens.joint_pass.possible == (name != "deepseek v3")  # which keeps compressed keys


@pytest.mark.parametrize("name", ["qwen2", "mistral sliding"])
def test_common_prefixes_are_read_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lm = TransformersLM.from_pretrained(ARCHITECTURES[name].write(tmp_path), max_length=64)
    some = [steps(lm, *each) for each in PROBLEMS[:2]]
    expected = alone(some)
    lengths, plain = set[int](), attention.shared_prefix_attention

    def counted(query: Tensor, keys: attention.Keys, mask: Tensor, shared: int, scaling: float | None) -> Tensor:
        lengths.add(shared)
        return plain(query, keys, mask, shared, scaling)

    monkeypatch.setattr(attention, "shared_prefix_attention", counted)
    monkeypatch.setattr(common_prefix, "_MIN_SAVED", 1)
    lm.release_caches()
    assert_same(together(some), expected, 2e-5)
    assert bool(lengths) == (name == "qwen2")  # a window need not show all of a prefix


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str, tmp_path: Path):
    test_other_architectures(name, tmp_path)


def test_sequences_that_attend_to_others_keys_are_rejected(monkeypatch: pytest.MonkeyPatch):
    """The broken version gives the first KV cache's sequences the keys of the last one, and the other way round."""
    lm = language_model()
    some = [steps(lm, *PROBLEMS[0])] * 2
    expected = alone(some)
    plain = Parts.store

    def swapped(self: Parts, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        stored = plain(self, layer, key, value)
        if len({view.key.shape for view in self._views[id(key)][1]}) == 1:
            self._views[id(key)][1].reverse()
        return stored

    monkeypatch.setattr(Parts, "store", swapped)
    lm.release_caches()
    with pytest.raises(AssertionError):
        assert_same(together(some), expected)


@EVERY_LOOP
def test_programs_that_begin_with_one_context_do_not_meet_in_its_kv_cache(make: Make, monkeypatch: pytest.MonkeyPatch):
    lm = make()

    def several() -> list[Callable[[], list[Step]]]:
        root = lm.start("What is 12 + 30?").expand((5,))
        root = root.extend(lm.sample_step(root, torch.Size((5,)), OPTIONS).tokens, OPTIONS.stop)

        def program() -> list[Step]:
            own = root.reorder(torch.randint(0, 5, (5,)))
            return [tuple(lm.sample_step(own, torch.Size((5,)), OPTIONS))]  # type: ignore[list-item]

        return [program] * 4

    torch.manual_seed(0)
    expected = alone(several())
    torch.manual_seed(0)
    assert_same(together(several()), expected)
    monkeypatch.setattr(pool.KVCachePool, "take", unreserved(pool.KVCachePool.take))
    torch.manual_seed(0)
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        assert_same(together(several()), expected)


def unreserved(take: Callable[..., Any]) -> Callable[..., Any]:
    """A pool that gives away KV caches in which a step is in progress."""

    def broken(self: Any, memo: Any) -> Any:
        held, self._reserved = self._reserved, []
        try:
            return take(self, memo)
        finally:
            self._reserved = held

    return broken


@EVERY_LOOP
def test_kv_caches_of_steps_under_way_are_not_released(make: Make):
    lm = make(cache_bytes=0)
    expected = alone(programs(lm))
    assert_same(together(programs(lm)), expected)
    assert len(lm._engine.pool.caches) <= 2 and lm._engine.pool._reserved == []


@EVERY_LOOP
@pytest.mark.parametrize("rows", [2, 10])
def test_memory_that_runs_out(make: Make, rows: int):
    lm = make()
    expected = alone(programs(lm, 1)[:3])
    lm.release_caches()

    def check(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].numel() > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    lm.model.register_forward_pre_hook(check, with_kwargs=True)
    assert_same(together(programs(lm, 1)[:3]), expected)
    assert lm._engine.at_once.largest <= rows and lm._at_once.largest is None


@EVERY_LOOP
def test_an_exception_reaches_its_program_only(make: Make):
    lm = make()
    expected = alone(programs(lm))
    lm.release_caches()
    broken = lm.start("40 + 2")
    broken.tokens[-1] = lm.vocab_size  # no such token
    several = programs(lm)
    several.insert(2, lambda: lm.sample_step(broken, torch.Size((2,)), OPTIONS))
    found = run_concurrently(several, seeds=[0, 1, 9, 2, 3, 4], return_exceptions=True)
    assert isinstance(found.pop(2), IndexError)
    assert_same(found, expected)
    assert lm._engine.pool._reserved == []


@EVERY_LOOP
def test_a_stopped_program_leaves_its_kv_cache(make: Make):
    lm = make()

    def failing() -> None:
        lm.sample_step(lm.start("7 * 6"), torch.Size((2,)), StepOptions(stop=(), max_tokens=2))
        raise KeyError("stop")

    with pytest.raises(KeyError):
        run_concurrently([failing, *programs(lm)])
    assert lm._engine.pool._reserved == []


@EVERY_LOOP
def test_costs_are_those_of_each_program(make: Make):
    lm = make()

    def metered(program: Callable[[], Any]) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            with CostMeter() as meter:
                program()
            return dict(meter.totals)

        return run

    expected = alone([metered(program) for program in programs(lm)])
    lm.release_caches()
    with CostMeter() as outer:
        found = together([metered(program) for program in programs(lm)])
    for one, other in zip(found, expected, strict=True):
        assert one["tokens_sampled"] == other["tokens_sampled"]
        # On a device the chunk in which the last sequence ends is finished.
        assert abs(one["lm_forwards"] - other["lm_forwards"]) <= (0 if lm.device_loop is None else 2 * 7)
        assert one["lm_seconds"] > 0
        assert one["tokens_prefilled"] >= other["tokens_prefilled"]  # one after the other, they find what the one before has left behind
    assert outer.totals["tokens_sampled"] == sum(one["tokens_sampled"] for one in found)


@EVERY_LOOP
@pytest.mark.filterwarnings("ignore:.*were not properly registered")
def test_particle_filters_with_a_reward_model(make: Make):
    """The programs of a user: evidence, weights and steps of each are those of running it alone."""
    lm, prm = make(), TransformersPRM(reward_net(), tokenizer())

    def solve(problem: str) -> Context:
        context = lm.start(problem)
        for t in range(3):
            step = pyro.sample(f"step_{t}", LLMStep(context, stop=OPTIONS.stop, max_tokens=12))
            context = context.extend(step, OPTIONS.stop)
            pyro.sample(f"accept_{t}", StepReward(prm, context), obs=torch.tensor(1.0))
            context = barrier(context)
        return context

    several = [lambda problem=problem: SMC(solve, 5).run(problem) for problem in ("What is 12 + 30?", "7 * 6", "12 + 30", "40 + 2")]
    expected = alone(several)
    lm.release_caches()
    prm.release_caches()
    found = together(several)
    for one, other in zip(found, expected, strict=True):
        assert one.value.text == other.value.text
        torch.testing.assert_close(one.log_weights, other.log_weights, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(one.log_evidence, other.log_evidence, atol=1e-4, rtol=1e-5)
        assert all(torch.equal(one.sites[f"step_{t}"], other.sites[f"step_{t}"]) for t in range(3))
    assert (expected[0].sites["step_0"] != PAD).any()


def test_keys_that_no_kv_cache_gave_are_an_error():
    parts = Parts([joint_pass.Part(None, torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(2, 1, 1, 3))])  # type: ignore[arg-type]
    with pytest.raises(joint_pass.KeysChanged):
        parts.attend(lambda *_: torch.zeros(1), torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, 1))
