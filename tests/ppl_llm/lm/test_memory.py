"""Models are freed as soon as nobody refers to them, and with them gigabytes of weights, keys and values."""

from __future__ import annotations

import ctypes
import gc
import resource
import weakref
from collections.abc import Callable
from pathlib import Path

import pyro
import pytest

from ppl_llm import SMC, TransformersLM, TransformersPRM, reasoning
from ppl_llm.inference import run_concurrently
from ppl_llm.kv_cache.pool import _malloc_trim, give_back
from ppl_llm.programs.models import ReasoningModel

PROBLEM = "Begin with 26. First: take away 5. Second: increase it by 3. What number do you get?"


def one(model: ReasoningModel) -> None:
    SMC(model, 4).run(PROBLEM)


def several(model: ReasoningModel) -> None:
    run_concurrently([lambda: SMC(model, 4).run(PROBLEM)] * 2)


def sliced(model: ReasoningModel) -> None:
    for _ in SMC(model, 4).iterate(PROBLEM):
        pass


@pytest.mark.parametrize("use", [one, several, sliced])
def test_models_are_freed_without_the_garbage_collector(use: Callable[[ReasoningModel], None]) -> None:
    pyro.set_rng_seed(0)
    lm, prm = TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo")
    alive = [weakref.ref(each) for each in (lm, lm.model, lm._engine, prm, prm.model, prm._scorer.engine)]
    gc.collect()
    gc.disable()
    try:
        use(reasoning(lm, prm, max_steps=3, max_tokens=32))
        del lm, prm
        assert [reference() for reference in alive] == [None] * len(alive)
    finally:
        gc.enable()


@pytest.mark.skipif(_malloc_trim() is None, reason="needs glibc, which alone can be asked for freed memory")
def test_freed_memory_goes_back_to_the_operating_system() -> None:
    """Small blocks below one that is in use: the heap cannot shrink, so that they stay resident until somebody asks."""
    blocks = [bytearray(64 * 1024) for _ in range(1600)]
    del blocks[:-1]
    before = resident()
    give_back()
    assert before - resident() > 50 * 2**20


def test_another_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _malloc_trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    try:
        give_back()
        assert _malloc_trim() is None
    finally:
        _malloc_trim.cache_clear()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
