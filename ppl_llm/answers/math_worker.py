"""The process that compares mathematical answers, run by ``WorkerProcess``; imports nothing of this package.

Reads one JSON request per line from standard input and writes one JSON reply per line to standard output.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from functools import lru_cache
from typing import Any
from zlib import crc32

MEMORY = 4 * 2**30
"""Bytes of address space; an expression that needs more is equal to nothing."""


@lru_cache(maxsize=4096)
def parsed(text: str) -> tuple[Any, ...]:
    from math_verify import LatexExtractionConfig, parse

    # Only LaTeX: the other parser of math-verify goes through sympy's parse_expr, which evaluates code.
    return tuple(parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None))


def equal(first: str, second: str) -> bool:
    """Whether two answers are mathematically equal, in either order."""
    from math_verify import verify

    left, right = list(parsed(first)), list(parsed(second))
    return bool(verify(left, right, timeout_seconds=None) or verify(right, left, timeout_seconds=None))


def describe(text: str) -> dict[str, Any] | str | None:
    """What tells answers apart at once: equal expressions have equal values wherever their variables are.

    :returns: of an expression its ``value`` at one fixed point, real and imaginary part as decimal numbers; whether it is ``constant``, its
        variables being the imaginary unit at most; and whether it is ``exact``, without a decimal number. ``"collection"`` for an interval
        or a tuple. ``None`` for anything else, and where a per cent sign may or may not be a factor of 0.01.
    """
    from sympy import Expr, Float, I, Interval, Rational, Tuple

    found = next(iter(parsed(text)), None)
    if isinstance(found, (Interval, Tuple)):
        return "collection"
    if "%" in text or not isinstance(found, Expr):
        return None
    # At rational points digits that cancel are computed to higher precision. What has no certain digit then (precision 1) is zero.
    point = {each: I if each.name == "i" else Rational(300 + crc32(each.name.encode()) % 1009, 1013) for each in found.free_symbols}
    parts = found.subs(point).evalf(20).as_real_imag()
    if not all(part.is_Float or part.is_Integer for part in parts):
        return None
    constant = all(symbol.name == "i" for symbol in found.free_symbols)
    return {
        "value": ["0" if getattr(part, "_prec", 0) == 1 else str(part) for part in parts],
        "constant": constant,
        "exact": not found.has(Float),
    }


def limit(seconds: float) -> None:
    """Let the kernel end this process should it work on one request for much longer than that: the process that asked may be gone."""
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 2, hard))
    except (ImportError, OSError, ValueError):
        return  # not on this system


def main() -> None:
    logging.disable()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing but replies may reach the reader
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        pass

    def reply(result: Any) -> None:
        replies.write(json.dumps(result) + "\n")
        replies.flush()

    equal("x + 1", "1 + x")  # imports what comparisons need
    reply("ready")
    for line in sys.stdin:
        kind, seconds, texts = json.loads(line)
        limit(seconds)
        compute: Any = {"equal": equal, "describe": describe}[kind]
        try:
            reply(compute(*texts))
        except (ArithmeticError, AttributeError, LookupError, MemoryError, NotImplementedError, RecursionError, TypeError, ValueError):
            reply(None)


if __name__ == "__main__":
    main()
