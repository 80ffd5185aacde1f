"""Budgets that adapt, as an option of methods: ``until`` puts :class:`~ppl_llm.inference.Adaptive` around their algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base import Call, Options, Run, library
from .options import parse_until

BATCH = 4
"""Its solutions, where no number is given."""


def run_of(make: Callable[[int, dict[str, Any]], Any], o: Options, call: Call) -> Run:
    """The run of an algorithm, or of its batches where there is a rule that ends them.

    :param make: the algorithm, from its particles and the keywords of the call.
    :param dict o: with ``particles``, the most of a problem, and ``until``, ``batch`` and ``doubling``.
    :raises ValueError: for a rule or a number out of range, or what does not go with batches.
    """
    if o["until"] is None:
        for name in ("batch", "doubling"):
            if o[name]:
                raise ValueError(
                    f"{name} is for batches, and there is only one without a rule that ends them: give until, such as beta:0.95"
                )
        return call.run_of(make(o["particles"], call.keywords()))
    if o.get("islands", 1) > 1:
        raise ValueError(f"islands must be 1 where until is given, got {o['islands']}: each batch is one more island")
    rule, number = parse_until(o["until"])
    try:
        until = library(rule)(number)
    except ValueError as error:
        raise ValueError(f"until: {error}") from error
    if until.needs == "groups" and "temperatures" not in o:
        raise ValueError(f"until {o['until']} compares temperatures: take method multi-temperature, or another rule")
    batch = min(BATCH, o["particles"]) if o["batch"] is None else o["batch"]
    if batch > o["particles"]:
        raise ValueError(f"batch must be at most the particles ({o['particles']}), got {batch}")
    adaptive = library("Adaptive")(
        make(batch, call._replace(callback=None).keywords()),
        until,
        o["particles"],
        doubling=o["doubling"],
        equivalent=call.equivalent,
        max_tokens_total=o.get("max_tokens_total"),
        callback=call.callback,
    )
    return call.run_of(adaptive)
