"""Programs that come while others run: each as if it were alone, and none is hurt by what happens to another."""

from __future__ import annotations

import concurrent.futures
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm.inference import SMC, ParticlePosterior, ProgramServer, barrier
from ppl_llm.inference.concurrent import Stopped
from ppl_llm.inference.concurrent.future_service import wait_for
from ppl_llm.inference.concurrent.program import current_program
from ppl_llm.remote.background import BackgroundLoop
from tests.helpers.waiting import Counting, wait

PATIENCE = 60.0


@pytest.fixture
def server() -> Iterator[ProgramServer]:
    served = ProgramServer(max_sequences=8, max_programs=4)
    yield served
    served.close()


def walk(service: Counting, steps: int, partial: bool = False) -> Callable[[], ParticlePosterior]:
    def model() -> Tensor:
        z = torch.zeros(())
        for t in range(steps):
            z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
            wait(service, turns=1 + t % 3)
            pyro.sample(f"y_{t}", dist.Normal(z, 0.5), obs=torch.tensor(0.3))
            z = barrier(z)
        return z

    return lambda: SMC(model, 8).run()


def endless(service: Any) -> None:
    while True:
        wait(service)


def test_results_are_those_of_the_programs_alone_however_they_arrive(server: ProgramServer) -> None:
    service = Counting()
    programs = [walk(service, 2 + number % 4) for number in range(9)]
    expected = []
    for number, program in enumerate(programs):
        pyro.set_rng_seed(number)
        expected.append(program())
    first = [server.submit(program, seed=number) for number, program in enumerate(programs[:5])]
    first[0].future.result(PATIENCE)  # the others come when some are under way and some have ended
    later = [server.submit(program, seed=number) for number, program in enumerate(programs[5:], 5)]
    for job, wanted in zip(first + later, expected, strict=True):
        found = job.future.result(PATIENCE)
        assert all(torch.equal(found.sites[name], wanted.sites[name]) for name in wanted.sites)
        assert torch.equal(found.log_weights, wanted.log_weights)
    assert max(service.batches) > 1, "they never shared a batch"


def test_an_error_is_its_programs_own(server: ProgramServer) -> None:
    service = Counting()
    fine = server.submit(walk(service, 20), seed=0)
    failing = server.submit(lambda: wait(service, turns=3, fails_at=2), seed=1)
    with pytest.raises(ArithmeticError):
        failing.future.result(PATIENCE)
    assert fine.future.result(PATIENCE).num_particles == 8


def test_a_stopped_program_frees_its_place_and_keeps_its_partial_posterior(server: ProgramServer) -> None:
    service, reached = Counting(), threading.Event()

    def model() -> Tensor:
        z = torch.zeros(())
        for t in range(10**9):
            z = barrier(pyro.sample(f"z_{t}", dist.Normal(z, 1.0)))
            if t == 3:
                reached.set()
            wait(service)
        return z

    long = [server.submit(lambda: SMC(model, 8).run(), seed=number) for number in range(4)]  # all places
    waiting = server.submit(walk(service, 3), seed=9)
    assert reached.wait(PATIENCE) and not waiting.future.done()
    reason = Stopped("gone")
    long[1].stop(reason)
    with pytest.raises(Stopped) as stopped:
        long[1].future.result(PATIENCE)
    assert stopped.value is reason and stopped.value.partial_posterior.num_barriers >= 4
    assert waiting.future.result(PATIENCE).num_particles == 8
    assert not any(job.future.done() for job in (long[0], *long[2:]))


def test_a_program_that_has_not_begun_can_be_stopped(server: ProgramServer) -> None:
    service, begun = Counting(), []
    long = [server.submit(lambda: endless(service), seed=number) for number in range(4)]
    waiting = server.submit(lambda: begun.append(1), seed=9)
    waiting.stop(Stopped("gone"))
    with pytest.raises(Stopped):
        waiting.future.result(PATIENCE)
    assert not begun
    waiting.stop(Stopped("again"))  # of no effect
    long[0].stop(Stopped("gone"))
    with pytest.raises(Stopped):
        long[0].future.result(PATIENCE)


def test_a_service_that_breaks_ends_those_under_way_and_nobody_else(server: ProgramServer) -> None:
    class Broken(Counting):
        def advance(self, requests: Any) -> None:
            raise LookupError("the service itself fails")

    both = [server.submit(lambda: wait(Broken()), seed=0), server.submit(lambda: endless(Counting()), seed=1)]
    for job in both:
        with pytest.raises(LookupError):
            job.future.result(PATIENCE)
    assert server.submit(walk(Counting(), 3), seed=2).future.result(PATIENCE).num_particles == 8


def test_closing_stops_all() -> None:
    server = ProgramServer(max_programs=1)
    jobs = [server.submit(lambda: endless(Counting()), seed=number) for number in range(3)]
    server.close()
    for job in jobs:
        with pytest.raises(Stopped):
            job.future.result(PATIENCE)
    with pytest.raises(RuntimeError, match="closed"):
        server.submit(lambda: None, seed=0)


def test_nothing_of_a_program_that_has_ended_is_kept(server: ProgramServer) -> None:
    class Big:
        pass

    big = Big()
    gone = weakref.ref(big)
    job = server.submit(lambda big=big: id(big), seed=0)
    del big
    job.future.result(PATIENCE)
    del job
    server.submit(lambda: None, seed=0).future.result(PATIENCE)
    gc.collect()
    assert gone() is None


def test_programs_wait_for_something_elsewhere_side_by_side(server: ProgramServer) -> None:
    """Each waits for a future that is done only when all four wait: one after the other they would wait for ever."""
    waiting: list[concurrent.futures.Future[int]] = []

    def program(number: int) -> int:
        future: concurrent.futures.Future[int] = concurrent.futures.Future()
        waiting.append(future)
        if len(waiting) == 4:
            for i, each in enumerate(waiting):
                each.set_result(i)
        running = current_program()
        assert running is not None
        wait_for(future, running)
        return future.result()

    jobs = [server.submit(lambda number=number: program(number), seed=number) for number in range(4)]
    assert sorted(job.future.result(PATIENCE) for job in jobs) == [0, 1, 2, 3]


def test_requests_to_servers_of_several_programs_are_under_way_at_once(server: ProgramServer) -> None:
    """As above, for what clients of servers use."""
    loop = BackgroundLoop.get()
    met = []

    async def meet() -> int:
        import asyncio

        met.append(1)
        while len(met) < 3:
            await asyncio.sleep(0.001)
        return len(met)

    jobs = [server.submit(lambda: loop.run(meet()), seed=number) for number in range(3)]
    assert [job.future.result(PATIENCE) for job in jobs] == [3, 3, 3]


def test_stopping_a_program_cancels_its_request(server: ProgramServer) -> None:
    import asyncio

    loop, begun, cancelled = BackgroundLoop.get(), threading.Event(), threading.Event()

    async def slow() -> None:
        begun.set()
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    job = server.submit(lambda: loop.run(slow()), seed=0)
    assert begun.wait(PATIENCE)
    job.stop(Stopped("gone"))
    with pytest.raises(Stopped):
        job.future.result(PATIENCE)
    assert cancelled.wait(PATIENCE)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="max_programs"):
        ProgramServer(max_programs=0)
    with pytest.raises(ValueError, match="max_sequences"):
        ProgramServer(max_sequences=0)
