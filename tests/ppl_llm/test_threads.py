"""How many threads, and how long they spin."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ppl_llm import threads
from ppl_llm.lm.base import StepOptions
from ppl_llm.threads import SETTINGS, SpinWatch, bound_spinning, choose_threads, usable_cores
from tests.helpers.tiny_models import language_model

NAMES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", *SETTINGS)


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing, and torch's threads, none of which outlives the test."""
    for name in list(os.environ):
        if name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What torch was asked to use."""
    numbers: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    return numbers


def test_spinning_is_bounded_unless_the_user_chose(undecided: pytest.MonkeyPatch):
    with undecided.context() as inner:
        for name in SETTINGS:
            inner.setenv(name, "")  # restored afterwards
            inner.delenv(name)
        bound_spinning()
        assert {name: os.environ[name] for name in SETTINGS} == SETTINGS
        bound_spinning()  # our own settings, inherited by a worker, are no choice of the user
        assert not threads.user_chose()
    for name, value in (("OMP_NUM_THREADS", "3"), ("OMP_WAIT_POLICY", "passive"), ("GOMP_SPINCOUNT", "7"), ("MKL_NUM_THREADS", "1")):
        with undecided.context() as inner:
            inner.setenv(name, value)
            bound_spinning()
            assert not (SETTINGS.keys() - {name}) & os.environ.keys()


def test_the_command_line_sets_it_before_torch_is_imported():
    code = (
        "import sys; from ppl_llm.cli import commands; commands.app = lambda **_: None; commands.main();"
        "import os; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["20000", "False"]


def model(parameters: int) -> SimpleNamespace:
    return SimpleNamespace(model=torch.nn.Linear(parameters, 1, bias=False, device="meta"))


def test_one_thread_for_small_models_and_the_cores_for_large_ones(undecided: pytest.MonkeyPatch, asked: list[int]):
    undecided.setattr(threads, "usable_cores", lambda: 8)
    small, large = model(threads.ENOUGH_FOR_ONE - 1), model(threads.ENOUGH_FOR_ONE)
    choose_threads([small, small, None, SimpleNamespace()])
    choose_threads([small, large])
    choose_threads([large, None], workers=3)
    choose_threads([large], workers=20)
    choose_threads([])
    assert asked == [1, 8, 2, 1, 1]


def test_threads_that_the_user_chose_stay(undecided: pytest.MonkeyPatch, asked: list[int]):
    undecided.setenv("OMP_NUM_THREADS", "5")
    choose_threads([model(10)])
    assert asked == []


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", None), ("150000 100000", 2), ("50000 100000", 1), ("9900000 100000", None), ("nonsense", None)]
)
def test_a_containers_quota_counts(quota: str, cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    assert usable_cores() == (cores or 16)
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "absent")
    assert usable_cores() == 16


@pytest.fixture
def watch(undecided: pytest.MonkeyPatch) -> SpinWatch:
    undecided.setattr(SpinWatch, "_warned", False)
    undecided.setattr(threads, "_load", lambda: 6.0)
    undecided.setattr(threads, "usable_cores", lambda: 2)
    undecided.setattr(torch, "get_num_threads", lambda: 2)
    return SpinWatch()


def passes(watch: SpinWatch, seconds: float, number: int, tokens: int = 32) -> None:
    for _ in range(number):
        watch.passed(tokens, 200, seconds)


def test_one_warning_for_spinning_threads(watch: SpinWatch, caplog: pytest.LogCaptureFixture):
    passes(watch, 0.01, 20)
    passes(watch, 0.3, 7)
    assert not caplog.records
    passes(watch, 0.3, 30)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "30 times as long" in said and "load of 6.0" in said and "2 threads" in said and "GOMP_SPINCOUNT=20000" in said
    passes(SpinWatch(), 0.01, 1)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "why", ["few slow passes", "larger passes", "longer contexts", "quiet machine", "one thread", "bounded", "passive"]
)
def test_no_warning_without_the_sign(why: str, watch: SpinWatch, undecided: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    passes(watch, 0.01, 20)
    if why == "few slow passes":
        for _ in range(10):
            passes(watch, 0.3, 7)
            passes(watch, 0.05, 1)
        return
    if why == "quiet machine":
        undecided.setattr(threads, "_load", lambda: 1.5)
    if why == "one thread":
        undecided.setattr(torch, "get_num_threads", lambda: 1)
    if why == "bounded":
        undecided.setenv("GOMP_SPINCOUNT", "20000")
    if why == "passive":
        undecided.setenv("OMP_WAIT_POLICY", "passive")
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            watch.passed(4096 if why == "larger passes" else 32, 2000 if why == "longer contexts" else 200, 0.3)
    assert not caplog.records


def test_the_engine_reports_its_passes(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, int, float]] = []
    monkeypatch.setattr(SpinWatch, "passed", lambda self, *what: seen.append(what))
    lm = language_model()
    lm.sample_step(lm.start("1 + 1"), torch.Size((3,)), StepOptions(("x",), 4, 1.0))
    assert seen and all(tokens >= 1 and context >= 1 and seconds > 0 for tokens, context, seconds in seen)
