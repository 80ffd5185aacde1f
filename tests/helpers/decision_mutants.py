"""Deliberately wrong temperatures, votes and explanations: more of the table of tests/helpers/mutants.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.helpers.mutants import mutant

TEMPERATURES = "tests/distributions/test_temperatures.py::test_rejects_wrong_temperatures"


@mutant("the mean of all temperatures", TEMPERATURES)
def mean_temperature(logits: Tensor, temperatures: Tensor | None) -> Tensor:
    """One temperature for the whole batch."""
    return logits if temperatures is None else logits / temperatures.mean()


@mutant("the temperature of another sequence", TEMPERATURES)
def rolled_temperatures(logits: Tensor, temperatures: Tensor | None) -> Tensor:
    """Each sequence has the temperature of the one before it."""
    return logits if temperatures is None else logits / temperatures.roll(1).view(-1, *(1,) * (logits.dim() - 1))


@mutant("multiplied by the temperature", TEMPERATURES)
def multiplied(logits: Tensor, temperatures: Tensor | None) -> Tensor:
    """The reciprocal."""
    return logits if temperatures is None else logits * temperatures.view(-1, *(1,) * (logits.dim() - 1))


_AT = "ppl_llm.lm.autoregressive.tempered"

WRONG_TEMPERATURES: dict[str, dict[str, Any]] = {
    "mean": {_AT: mean_temperature},
    "rolled": {_AT: rolled_temperatures},
    "multiplied": {_AT: multiplied},
}
