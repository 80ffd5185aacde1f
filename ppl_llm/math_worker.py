"""The process that compares mathematical answers, run by :class:`~ppl_llm.math_process.MathProcess`; imports nothing of this package.

Reads one JSON request per line from standard input and writes one JSON reply per line to standard output.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from functools import lru_cache
from typing import Any

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


def value(text: str) -> float | None:
    """The real number that an answer is, ``None`` if it is none, or has a per cent sign, which may or may not be a factor of 0.01."""
    from sympy import Expr

    expression = next(iter(parsed(text)), None)
    if "%" in text or not isinstance(expression, Expr) or expression.free_symbols:
        return None
    number = expression.evalf(15)
    return float(number) if number.is_real and number.is_finite else None


def limit(seconds: float) -> None:
    """Let the kernel end this process should it work on one request for much longer than that; whoever asked may be gone."""
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
        compute: Any = {"equal": equal, "value": value}[kind]
        try:
            reply(compute(*texts))
        except (ArithmeticError, AttributeError, LookupError, MemoryError, NotImplementedError, RecursionError, TypeError, ValueError):
            reply(None)


if __name__ == "__main__":
    main()
