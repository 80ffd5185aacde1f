"""Marginals: values count as equal by what they hold, and a population of weight zero has none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm.inference import SMC, DiscreteMarginal, Importance, PooledPosterior, SelfConsistency, barrier
from tests.helpers.population_mutants import WRONG_MARGINALS, WRONG_POOLS


def coin() -> Tensor:
    x = pyro.sample("x", dist.Bernoulli(0.3))
    pyro.factor("y", x)
    return barrier(x)


class Pair(NamedTuple):
    first: Any
    second: Any


@pytest.mark.parametrize(
    ("fn", "one"),
    [
        (lambda z: z, 1.0),
        (lambda z: (z, "a"), (1.0, "a")),
        (lambda z: Pair(z, z.bool()), Pair(1.0, True)),
        (int, 1),
        (lambda z: z > 0, True),
    ],
    ids=["tensor", "tuple", "named tuple", "int", "bool"],
)
def test_tensors_count_by_value(fn: Callable[[Tensor], Any], one: Any) -> None:
    pyro.set_rng_seed(0)
    posterior = SMC(coin, 50).run()
    marginal = posterior.marginal(fn)
    assert len(marginal) == 2
    assert marginal[one] == pytest.approx(float(posterior.weights[posterior.value == 1].sum()), abs=1e-12)


class Plain:
    """Equal only to itself."""


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda z: z.expand(2), r"a tensor of shape \(2,\), and tensors equal only themselves; return plain values, e\.g\. tuple\(value"),
        (lambda z: ("a", z[None]), r"a tensor of shape \(1,\)"),
        (lambda z: Plain(), "a Plain, which equals only itself; return what tells values apart"),
    ],
)
def test_what_equals_only_itself_is_refused(fn: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SMC(coin, 5).run().marginal(fn)


def test_other_values() -> None:
    """``None`` and classes are values; equal values of other types are one, as in Python."""
    assert DiscreteMarginal([(None, 1.0), (int, 1.0), (1, 1.0), (True, 1.0)]).probs == {1: 0.5, None: 0.25, int: 0.25}
    assert len(DiscreteMarginal([("a", 0.0)])) == 0


@pytest.mark.parametrize("name", WRONG_MARGINALS)
def test_rejects_marginals_by_identity(name: str) -> None:
    def pairs() -> Iterator[tuple[Any, float]]:
        return ((torch.tensor(float(i % 2)), 1.0) for i in range(10))

    assert len(WRONG_MARGINALS[name](pairs())) != 2


# Pools -----------------------------------------------------------------------------------------------------------------------------------


def log_weights(parts: list[Any]) -> list[Tensor]:
    return [part.particles.weights.log_weights for part in parts]


@pytest.mark.parametrize("name", WRONG_POOLS)
def test_rejects_the_evidence_of_parts_that_have_none(name: str) -> None:
    """0.0 for what self-consistency never evaluated."""
    parts: list[Any] = [SelfConsistency(coin, 4).run(), SelfConsistency(coin, 4).run()]
    try:
        found = float(WRONG_POOLS[name](parts, log_weights(parts), {}).log_evidence)
    except ValueError:
        found = math.nan
    assert found == 0.0


def test_a_pool_gives_the_evidence_that_its_parts_give() -> None:
    searches: list[Any] = [SelfConsistency(coin, 4).run(), SelfConsistency(coin, 4).run()]
    with pytest.raises(ValueError, match="self-consistency gives no evidence: it does not evaluate what the model observes"):
        _ = PooledPosterior(searches, log_weights(searches), {}).log_evidence
    filters: list[Any] = [Importance(coin, 4).run(), Importance(coin, 4).run()]
    with pytest.raises(ValueError, match="a pool of filters gives no evidence"):
        _ = PooledPosterior(filters, [part.particles.weights.normalized.log() for part in filters], {}).log_evidence


def test_numbers_that_equal_nothing_count_as_one_value() -> None:
    marginal = DiscreteMarginal([(math.nan, 0.5), (float("nan"), 0.25), (torch.tensor(math.nan), 0.25)])
    assert len(marginal) == 1 and marginal.prob(math.nan) == 1.0


def test_sets_count_by_value_and_what_has_no_hash_is_refused() -> None:
    assert len(DiscreteMarginal([(frozenset([torch.tensor(1)]), 0.5), (frozenset([torch.tensor(1)]), 0.5)])) == 1
    with pytest.raises(TypeError, match="a value of the marginal is a list, which cannot be counted; return a plain value"):
        DiscreteMarginal([([1], 1.0)])  # type: ignore[list-item]
