"""Scores of several programs in one pass over their KV caches: those of one program after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm.inference import CostMeter, run_concurrently
from ppl_llm.kv_cache import joint_append
from ppl_llm.kv_cache.joint_append import JointAppend, PackedParts
from ppl_llm.kv_cache.joint_pass import KeysChanged
from ppl_llm.kv_cache.pool import KVCachePool
from ppl_llm.lm.base import StepOptions
from ppl_llm.reward.prm.transformers_prm import TransformersPRM
from tests.helpers.side_by_side import alone, together
from tests.helpers.tiny_models import language_model, reward_net, tokenizer
from tests.helpers.tiny_prms import WRITE

OPTIONS = StepOptions(stop=("a", "e", "o", "1"), max_tokens=8)
TOLERANCE = 1e-4
"""Rounding of float32 where passes have other shapes; keys of another program make a difference of order 1."""
PROBLEMS = [("What is 12 + 30?", 6), ("7 * 6", 3), ("Then add the ones: 40 + 2", 4), ("12 + 30", 1), ("First, multiply.", 7)]

LM = language_model()


def scored(prm: TransformersPRM, problem: str, sequences: int, number: int = 3) -> Callable[[], list[Tensor]]:
    """Sample, score and resample, as a particle filter does."""

    def program() -> list[Tensor]:
        context = LM.start(problem).expand((sequences,))
        found = []
        for _ in range(number):
            context = context.extend(LM.sample_step(context, torch.Size((sequences,)), OPTIONS).tokens, OPTIONS.stop)
            found.append(prm.step_log_odds(context))
            context = context.reorder(torch.randint(0, sequences, (sequences,)))
        return found

    return program


def programs(prm: TransformersPRM) -> list[Callable[[], list[Tensor]]]:
    return [scored(prm, *each) for each in PROBLEMS]


def error(found: list[list[Tensor]], expected: list[list[Tensor]]) -> float:
    pairs = [pair for one, other in zip(found, expected, strict=True) for pair in zip(one, other, strict=True)]
    return max(float((one - other).abs().max()) for one, other in pairs)


def passes(prm: TransformersPRM) -> list[int]:
    """Tokens of each pass from now on."""
    sizes: list[int] = []
    engine = prm._scorer.engine
    forward = engine.forward

    def counted(**inputs: Any) -> Tensor:
        sizes.append(inputs["input_ids"].numel())
        return forward(**inputs)

    engine.forward = counted
    return sizes


@pytest.fixture
def prm() -> TransformersPRM:
    return TransformersPRM(reward_net(), tokenizer())


@pytest.mark.parametrize("family", WRITE)
def test_scores_are_those_of_one_after_the_other(family: str, tmp_path: Path) -> None:
    name, write = WRITE[family]
    prm = TransformersPRM.from_pretrained(write(tmp_path / name))
    sizes = passes(prm)
    expected = alone(programs(prm))
    apart, tokens = len(sizes), sum(sizes)
    prm.release_caches()
    sizes.clear()
    assert error(together(programs(prm)), expected) < TOLERANCE
    assert len(sizes) < 0.5 * apart
    assert sum(sizes) >= tokens  # one after the other, they find what the one before has left behind
    assert not prm._scorer.engine.pool._reserved


def test_a_sliding_window() -> None:
    """Narrower than the texts."""
    net = reward_net(use_sliding_window=True, sliding_window=8, max_window_layers=0)
    prm = TransformersPRM(net, tokenizer())
    expected = alone(programs(prm))
    prm.release_caches()
    assert error(together(programs(prm)), expected) < TOLERANCE


def test_keys_of_other_programs_are_rejected(prm: TransformersPRM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken version hands each KV cache's tokens the keys of another one."""
    several = [scored(prm, *PROBLEMS[0])] * 2
    expected = alone(several)
    views = PackedParts.views
    monkeypatch.setattr(PackedParts, "views", lambda self, key: views(self, key)[::-1])
    prm.release_caches()
    assert error(together(several), expected) > 1e-3


def test_kv_caches_of_waiting_programs_are_given_to_nobody(prm: TransformersPRM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(programs(prm))
    prm.release_caches()
    take = KVCachePool.take

    def unreserved(self: KVCachePool, entry: Any) -> Any:
        held, self._reserved = self._reserved, []
        try:
            return take(self, entry)
        finally:
            self._reserved = held

    monkeypatch.setattr(KVCachePool, "take", unreserved)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        assert error(together(programs(prm)), expected) < 1e-3


def test_nobody_waits_for_long(prm: TransformersPRM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass is run after so many turns, however few there are for it; the longer it waits, the more there are."""
    sizes, counts = passes(prm), []
    for patience in (0, 3, 10):
        monkeypatch.setattr(joint_append, "_PATIENCE", patience)
        prm.release_caches()
        sizes.clear()
        together(programs(prm))
        counts.append(len(sizes))
    assert counts[0] > counts[1] >= counts[2]
    sizes.clear()
    prm.release_caches()
    together(programs(prm)[:1])
    assert len(sizes) == 4  # the prompt, which the sequences share, and three steps


@pytest.mark.parametrize("tokens", [1, 20])
def test_memory_that_runs_out(prm: TransformersPRM, tokens: int) -> None:
    expected = alone(programs(prm)[:3])
    prm.release_caches()

    def check(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")

    prm.model.register_forward_pre_hook(check, with_kwargs=True)
    assert error(together(programs(prm)[:3]), expected) < TOLERANCE
    largest = prm._scorer.engine.at_once.largest
    assert largest is not None and largest <= tokens


def test_a_failure_is_that_of_one_program(prm: TransformersPRM) -> None:
    """Also of a pass that it shares with others, which are then run by themselves."""
    expected = alone(programs(prm))
    prm.release_caches()
    missing = torch.full((2, 5), prm.model.config.vocab_size)  # no such token

    def failing() -> Any:
        LM.sample_step(LM.start("40 + 2"), torch.Size((2,)), OPTIONS)
        five, four = torch.full((2,), 5), torch.full((2,), 4)
        return prm._scorer.score(None, torch.arange(2), missing, five, five, four, four[:, None])

    found = run_concurrently([*programs(prm), failing], seeds=[0, 1, 2, 3, 4, 9], return_exceptions=True)
    assert isinstance(found.pop(), IndexError)
    assert error(found, expected) < TOLERANCE
    assert not prm._scorer.engine.pool._reserved


def test_models_that_change_their_keys_get_their_own_passes(prm: TransformersPRM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(programs(prm))
    prm.release_caches()
    tried = []

    def changed(self: PackedParts, key: Tensor) -> Any:
        tried.append(self)
        raise KeysChanged("other keys")

    monkeypatch.setattr(PackedParts, "views", changed)
    assert error(together(programs(prm)), expected) < TOLERANCE
    joint: JointAppend = prm._scorer.engine._joint
    assert not joint.possible and len(tried) == 1


def test_a_stopped_program_leaves_its_kv_cache(prm: TransformersPRM) -> None:
    def failing() -> None:
        LM.sample_step(LM.start("7 * 6"), torch.Size((2,)), StepOptions(stop=(), max_tokens=2))
        raise KeyError("stop")

    with pytest.raises(KeyError):
        run_concurrently([*programs(prm), failing])
    assert not prm._scorer.engine.pool._reserved


def test_costs_are_those_of_each_program(prm: TransformersPRM) -> None:
    def metered(program: Callable[[], Any]) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            with CostMeter() as meter:
                program()
            return dict(meter.totals)

        return run

    expected = []
    for seed, program in enumerate(programs(prm)):
        prm.release_caches()
        pyro.set_rng_seed(seed)
        expected.append(metered(program)())
    prm.release_caches()
    for one, other in zip(together([metered(program) for program in programs(prm)]), expected, strict=True):
        assert one["prm_calls"] == other["prm_calls"] and one["prm_seconds"] > 0
        assert one["prm_forwards"] == other["prm_forwards"]
        assert 0 < one["prm_tokens"] <= other["prm_tokens"]  # prompts may lie in the KV cache of another program
