"""The algorithms that ``--method`` knows."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class Method(NamedTuple):
    """An algorithm of ``ppl_llm.inference``, imported on first use.

    :ivar str algorithm: name of the class.
    :ivar str line: what it does, in a line.
    :ivar bool resamples: whether it takes ``resampler``, ``ess_threshold`` and ``resample_finished``.
    """

    algorithm: str
    line: str
    resamples: bool

    def load(self) -> Any:
        """The class."""
        return getattr(importlib.import_module("ppl_llm.inference"), self.algorithm)


METHODS: dict[str, Method] = {
    "smc": Method("SMC", "particle filter: resamples solutions by their scores while they are written", resamples=True),
    "importance": Method("Importance", "independent solutions, weighted by their scores (weighted best-of-N)", resamples=False),
}


def get_method(name: str) -> Method:
    """A method by name.

    :raises ValueError: for an unknown name, with the nearest known one.
    """
    if name not in METHODS:
        from ..inference.names import unknown_name

        raise unknown_name("method", name, METHODS)
    return METHODS[name]
