"""Programs one after the other, and together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro

from ppl_llm.inference import run_concurrently


def alone(several: Sequence[Callable[[], Any]], seeds: Sequence[int] | None = None) -> list[Any]:
    """The result of each, run by itself; by default with its number as the seed."""
    results = []
    for seed, program in zip(range(len(several)) if seeds is None else seeds, several, strict=True):
        pyro.set_rng_seed(seed)
        results.append(program())
    return results


def together(several: Sequence[Callable[[], Any]], **options: Any) -> list[Any]:
    """The results of a concurrent run with these seeds."""
    return run_concurrently(several, seeds=range(len(several)), **options)
