"""Many programs at once on shared models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any

import torch

from ..util.checked import checked
from ..util.validation import check_count, check_optional_count
from .program import Program, Stopped, current_program
from .turns import Turns

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
    started = [Program(function, seed, copy_context()) for function, seed in zip(programs, seeds, strict=True)]
    turns = Turns(max_sequences, max_programs or max(1, len(programs)))
    for program in started:
        turns.add(program)
    try:
        while not turns.idle:
            for program in turns.turn():
                if program.error is not None and (not return_exceptions or isinstance(program.error, KeyboardInterrupt)):
                    raise program.error
    except BaseException as error:
        for program in started:
            program.end(error if isinstance(error, KeyboardInterrupt) else Stopped())
        error.partial_posteriors = [_partial(program) for program in started]  # type: ignore[attr-defined]
        raise
    return [program.result if program.error is None else program.error for program in started]


def _partial(program: Program) -> Any:
    return getattr(program.error, "partial_posterior", None) if program.error is not None else program.result
