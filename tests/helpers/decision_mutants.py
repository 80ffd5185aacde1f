"""Deliberately wrong temperatures, votes and explanations: more of the table of tests/helpers/mutants.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_llm.inference import SearchPosterior, Weights
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


# Explanations
ERRORS = "tests/inference/viewer/test_explain.py::test_rejects_errors_of_particles_that_share_ancestors"
TURNING = "tests/inference/viewer/test_explain.py::test_rejects_wrong_turning_points"


@mutant("standard errors of particles that share ancestors", ERRORS)
def independent_particles(posterior: Any, found: Any, f: Sequence[float]) -> float:
    """Each particle counts as a draw of its own, as in importance sampling."""
    mean = math.fsum(w * x for w, x in zip(found.weights, f, strict=True))
    return math.sqrt(math.fsum((w * (x - mean)) ** 2 for w, x in zip(found.weights, f, strict=True)))


@mutant("a tie counts as a turn", TURNING)
def ties_forgotten(kind: str, weights: Sequence[float], first: Any, second: Any) -> int:
    """Particles that put the second answer level, where the first of equal ones wins."""
    return math.ceil(len(weights) * (first.probability - (0.0 if second is None else second.probability)) - 1e-9)


@mutant("the difference of probabilities as a log-factor", TURNING)
def margin_of_shares(kind: str, found: Any, given: Any, first: Any, second: Any, scores: Any) -> float | None:
    """p1 - p2 in place of log p1 - log p2."""
    return None if second is None else first.probability - second.probability


WRONG_EXPLANATIONS: dict[str, Any] = {
    "independent": independent_particles,
    "ties forgotten": {"_more": ties_forgotten},
    "margin of shares": {"_margin": margin_of_shares},
}


# Votes
VOTES = "tests/inference/search/test_votes_by_answer.py"


@mutant("one vote for each candidate, whatever its group", f"{VOTES}::test_rejects_one_vote_for_each_candidate")
def plain_majority(given: Sequence[Any], groups: Sequence[float]) -> Tensor:
    """A single majority over all temperatures."""
    return torch.zeros(len(given), dtype=torch.float64)


@mutant("a softmax of log-rewards", f"{VOTES}::test_rejects_rewards_as_log_weights")
def powers(self: Any, found: Any) -> Any:
    """Rewards to the power of beta."""
    scores = found.particles.weights.log_weights
    return SearchPosterior.of(found, Weights(self.beta * scores), scores=scores)


@mutant("the best candidates, however rare their answers", f"{VOTES}::test_rejects_the_best_of_all")
def best_of_all(given: Sequence[Any], scores: Sequence[float], k: int, frequency: float) -> list[int]:
    """The frequency is not looked at."""
    return sorted(range(len(given)), key=lambda n: -scores[n])[:k]


WRONG_VOTES: dict[str, Any] = {
    "plain majority": plain_majority,
    "powers": {"ppl_llm.inference.search.soft_best_of_n.SoftMessenger.as_search": powers},
    "best of all": best_of_all,
}
