"""Programs that take turns: each as if it were alone, whatever the others do and whichever comes first."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from torch import Tensor

from ppl_llm.inference import SMC, CostMeter, ParticlePosterior, barrier, count, run_concurrently
from ppl_llm.inference.util.process_state import ProcessState
from tests.helpers.side_by_side import alone
from tests.helpers.waiting import Counting, wait


def walk(service: Counting, steps: int, number: int) -> Callable[[], ParticlePosterior]:
    """A particle filter that waits within each of its steps, inside of Pyro's handlers; a different number of turns each time."""

    def model() -> Tensor:
        z = torch.zeros(())
        for t in range(steps):
            with pyro.plate("inner", 2, dim=-1):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                wait(service, turns=1 + (t + number) % 4)
                pyro.sample(f"y_{t}", dist.Normal(z, 0.5), obs=torch.tensor(0.3))
            z = barrier(z)
        return z

    return lambda: SMC(model, 8, max_plate_nesting=1).run()


def assert_equal(found: Sequence[ParticlePosterior], expected: Sequence[ParticlePosterior]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.sites.keys() == other.sites.keys()
        assert all(torch.equal(one.sites[name], other.sites[name]) for name in one.sites)
        assert torch.equal(one.log_weights, other.log_weights)


@pytest.mark.parametrize(("max_sequences", "max_programs"), [(256, None), (1, None), (2, None), (256, 2)])
def test_each_result_is_that_of_the_program_alone(max_sequences: int, max_programs: int | None):
    service = Counting()
    programs = [walk(service, 3 + number % 3, number) for number in range(7)]
    expected = alone(programs, range(7))
    found = run_concurrently(programs, seeds=range(7), max_sequences=max_sequences, max_programs=max_programs)
    assert_equal(found, expected)
    assert max(service.batches) == min(max_sequences, max_programs or 7)
    assert _PYRO_STACK == [] and _DIM_ALLOCATOR._stack == []


def test_programs_that_share_their_handlers_and_generators_are_rejected(monkeypatch: pytest.MonkeyPatch):
    """The broken version does not change the process's state when another program continues."""
    service = Counting()
    programs = [walk(service, 3, number) for number in range(3)]
    expected = alone(programs, range(3))
    monkeypatch.setattr(ProcessState, "enter", lambda self: None)
    try:
        with pytest.raises(BaseException):  # noqa: B017 - whatever a mixed-up stack of handlers leads to
            assert_equal(run_concurrently(programs, seeds=range(3)), expected)
    finally:
        _PYRO_STACK.clear()
        _DIM_ALLOCATOR._stack.clear()


def test_all_generators_are_the_programs_own():
    service = Counting()

    def program() -> list[float]:
        drawn = []
        for _ in range(3):
            drawn += [float(torch.rand(())), random.random(), float(np.random.rand())]
            wait(service)
        return drawn

    expected = alone([program] * 3, [5, 6, 5])
    state = ProcessState.now()
    found = run_concurrently([program] * 3, seeds=[5, 6, 5])
    assert found == expected and found[0] == found[2] != found[1]
    assert torch.equal(torch.get_rng_state(), state.torch["cpu"]) and random.getstate() == state.python


def test_seeds_come_from_torchs_generator():
    def program() -> float:
        return float(torch.rand(()))

    torch.manual_seed(3)
    first, after = run_concurrently([program] * 4), float(torch.rand(()))
    torch.manual_seed(3)
    assert run_concurrently([program] * 4) == first and float(torch.rand(())) == after
    assert len(set(first)) == 4


def test_places_are_filled_again_as_soon_as_they_are_free():
    service = Counting()

    def program(sequences: int, turns: int) -> Callable[[], None]:
        return lambda: wait(service, sequences, turns)

    run_concurrently([program(2, 3), program(2, 1), program(3, 2), program(9, 1), program(1, 1)], max_sequences=5)
    # 2 + 2, then 2 and the third, which fits then; the one of 9 has to be alone, and nobody overtakes it.
    assert service.batches == [4, 5, 5, 9, 1]


def test_an_exception_reaches_its_caller_only():
    service = Counting()

    def failing() -> None:
        wait(service, turns=3, fails_at=2)

    def wrong() -> None:
        wait(service)
        raise KeyError("no such step")

    def fine() -> str:
        wait(service, turns=5)
        return "fine"

    found = run_concurrently([failing, fine, wrong, fine], return_exceptions=True)
    assert isinstance(found[0], ArithmeticError) and isinstance(found[2], KeyError)
    assert found[1] == found[3] == "fine"


def test_the_first_exception_stops_the_others_where_they_are():
    service = Counting()
    reached = list[int]()

    def failing() -> None:
        wait(service, turns=6)
        raise KeyError("no such step")

    def long() -> None:
        for k in range(100):
            wait(service)
            reached.append(k)

    with pytest.raises(KeyError, match="no such step") as caught:
        run_concurrently([walk(service, 2, 0), failing, long, walk(service, 50, 1)], seeds=range(4))
    assert len(reached) < 10
    finished, _, _, partial = caught.value.partial_posteriors  # type: ignore[attr-defined]
    assert_equal([finished], alone([walk(service, 2, 0)], [0]))
    assert not partial.complete and 1 <= len(partial.ess) < 20
    assert _PYRO_STACK == []


def test_ctrl_c_keeps_partial_posteriors():
    class Interrupted(Counting):
        def advance(self, requests: Sequence[Any]) -> None:
            super().advance(requests)
            if len(self.batches) == 12:
                raise KeyboardInterrupt

    service = Interrupted()
    with pytest.raises(KeyboardInterrupt) as caught:
        run_concurrently([walk(service, steps, 0) for steps in (2, 30, 40)], seeds=range(3), return_exceptions=True)
    partial = caught.value.partial_posteriors  # type: ignore[attr-defined]
    assert [posterior.complete for posterior in partial] == [True, False, False]
    assert all(len(posterior.ess) >= 2 for posterior in partial)
    assert _PYRO_STACK == []


def test_ctrl_c_within_a_program():
    service = Counting()

    def interrupted() -> None:
        wait(service, turns=8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run_concurrently([walk(service, 30, 0), interrupted], return_exceptions=True)
    assert not caught.value.partial_posteriors[0].complete  # type: ignore[attr-defined]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own answer to Ctrl-C, which a process in the background of a script ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread only")
def test_the_signal_of_ctrl_c_while_a_program_runs(ctrl_c: None):
    """It arrives in the thread that waits for the program, which must come to its next request before all are stopped."""
    service = Counting()
    reached = list[str]()

    def signalled() -> None:
        wait(service, turns=8)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        reached.append("request")
        wait(service)
        reached.append("too far")

    with pytest.raises(KeyboardInterrupt) as caught:
        run_concurrently([walk(service, 30, 0), signalled], return_exceptions=True)
    assert reached == ["request"]
    assert not caught.value.partial_posteriors[0].complete  # type: ignore[attr-defined]
    assert _PYRO_STACK == []


def test_costs_are_counted_where_they_arise():
    service = Counting()

    def program(amount: int) -> Callable[[], float]:
        def run() -> float:
            with CostMeter() as meter:
                for _ in range(3):
                    count(things=amount)
                    wait(service)
            return meter.totals["things"]

        return run

    with CostMeter() as outer:
        assert run_concurrently([program(1), program(10), program(100)]) == [3, 30, 300]
    assert outer.totals["things"] == 333


def test_gradients_are_on_where_the_caller_has_them_on():
    with torch.no_grad():
        assert run_concurrently([torch.is_grad_enabled]) == [False]
    assert run_concurrently([torch.is_grad_enabled]) == [True]
    assert run_concurrently([]) == []


def test_arguments():
    for options, message in (
        ({"max_sequences": 0}, "max_sequences must be an integer of at least 1, got 0"),
        ({"max_programs": 0}, "max_programs must be None or an integer of at least 1, got 0"),
        ({"seeds": [1, 2]}, "seeds must hold one seed for each of the 1 programs, got 2"),
        ({"seeds": [-1]}, r"seeds must be integers in 0 \.\. 4294967295, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            run_concurrently([lambda: None], **options)
    with pytest.raises(ValueError, match="give all programs to one call"):
        run_concurrently([lambda: run_concurrently([lambda: None])])
