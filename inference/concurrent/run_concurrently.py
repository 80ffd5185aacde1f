"""Many programs at once on shared models."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any

import torch

from ..util.checked import checked
from ..util.validation import check_count, check_optional_count
from .program import Program, Request, Service, Stopped, current_program

_MAX_SEED = 2**32


@checked
def run_concurrently(
    programs: Sequence[Callable[[], Any]],
    *,
    max_sequences: int = 256,
    max_programs: int | None = None,
    seeds: Sequence[int] | None = None,
    return_exceptions: bool = False,
) -> list[Any]:
    """Run several programs, e.g. a particle filter on each of many problems, and batch their requests to a language model.

    Sequences of one filter that wait for the slowest one leave their places to sequences of other filters: the batch stays full, and the
    models are used as well with 16 particles per problem as with 256. Steps join and leave the batch between any two tokens (continuous
    batching), or between any two looks of the host at its device, which keeps decoding while programs whose step has ended continue.

    Example::

        posteriors = run_concurrently([lambda p=p: SMC(model, 16).run(p) for p in problems])

    Only one program runs at a time; the others wait for a step. Each has Pyro's handlers and the random number generators to itself, so
    that its result is that of running it alone after ``pyro.set_rng_seed(seed)``, up to the rounding of another batch. Pyro's parameters
    are shared. Handlers that are active around the call do not act on the programs.

    :param programs: functions without arguments.
    :param int max_sequences: sequences that a batch may have; a single step with more of them is run by itself.
    :param int max_programs: programs under way at a time. Another one is started whenever there are places in the batch, so that the caches
        of several times ``max_sequences`` sequences are in use; this bounds them.
    :param seeds: one for each program; by default drawn from torch's generator.
    :param bool return_exceptions: put exceptions into the list of results, and continue. Otherwise the first one stops all programs and is
        raised; it carries ``partial_posteriors``, for each program its result, the posterior of its last barrier, or ``None``. Ctrl-C does
        so in any case.
    :returns: what each program returned, in their order.
    :raises ValueError: for arguments out of range, or inside of such a program.
    """
    check_count("max_sequences", max_sequences)
    check_optional_count("max_programs", max_programs)
    if current_program() is not None:
        raise ValueError("run_concurrently() inside of a program that it runs: give all programs to one call")
    if seeds is None:
        seeds = torch.randint(0, _MAX_SEED, (len(programs),)).tolist()
    if len(seeds) != len(programs):
        raise ValueError(f"seeds must hold one seed for each of the {len(programs)} programs, got {len(seeds)}")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _MAX_SEED:
            raise ValueError(f"seeds must be integers in 0 .. {_MAX_SEED - 1}, got {seed!r}")
    waiting = [Program(function, seed, copy_context()) for function, seed in zip(programs, seeds, strict=True)]
    return _Turns(waiting, max_sequences, max_programs or len(programs), return_exceptions).run()


class _Turns:
    """Who runs, who waits for a place in the batch, and whose request is being worked on."""

    def __init__(self, programs: list[Program], max_sequences: int, max_programs: int, return_exceptions: bool) -> None:
        self._programs = programs
        self._max_sequences, self._max_programs = max_sequences, max_programs
        self._return_exceptions = return_exceptions
        self._new = deque(programs)
        self._queued: deque[Program] = deque()
        self._served: list[Program] = []

    def run(self) -> list[Any]:
        try:
            while self._admit() or self._served:
                self._work()
                done = [program for program in self._served if _request(program).finished]
                self._served = [program for program in self._served if not _request(program).finished]
                for program in done:
                    self._let_run(program)
        except BaseException as error:
            self._stop(error if isinstance(error, KeyboardInterrupt) else Stopped())
            error.partial_posteriors = [_partial(program) for program in self._programs]  # type: ignore[attr-defined]
            raise
        return [program.result if program.error is None else program.error for program in self._programs]

    def _admit(self) -> bool:
        """Fill the places of the batch: first with those who wait for one, then with new programs. Whether anybody got one."""
        before = len(self._served)
        while True:
            sequences = sum(_request(program).sequences for program in self._served)
            if self._queued and (not self._served or sequences + _request(self._queued[0]).sequences <= self._max_sequences):
                self._served.append(self._queued.popleft())
            elif self._new and not self._queued and sequences < self._max_sequences and len(self._served) < self._max_programs:
                self._let_run(self._new.popleft())
            else:
                return len(self._served) > before

    def _let_run(self, program: Program) -> None:
        program.proceed()
        if program.error is not None and (not self._return_exceptions or isinstance(program.error, KeyboardInterrupt)):
            raise program.error
        if not program.finished:
            self._queued.append(program)

    def _work(self) -> None:
        by_service: dict[int, list[Request]] = {}
        for program in self._served:
            by_service.setdefault(id(_request(program).service), []).append(_request(program))
        for requests in by_service.values():
            service: Service = requests[0].service
            service.advance(requests)

    def _stop(self, reason: BaseException) -> None:
        """End all programs that are under way, each by an exception where it waits."""
        for program in self._programs:
            while program.request is not None:
                program.stop = reason
                program.proceed()


def _request(program: Program) -> Request:
    assert program.request is not None
    return program.request


def _partial(program: Program) -> Any:
    return getattr(program.error, "partial_posterior", None) if program.error is not None else program.result
