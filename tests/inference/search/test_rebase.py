"""REBASE against a plain-Python version of the released rule in exact arithmetic, with the same draws: identical results."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.inference import REBASE, FilterOptions, barrier
from ppl_llm.inference.search.rebase import RebaseMessenger
from tests.helpers.mutants import WRONG_WIDTHS
from tests.helpers.searches import disagreement, published_rebase, results, scripted, searched, tree

TEMPERATURES = [0.05, 0.2, 1.0]


def widths(scores: list[float], temperature: float = 0.2, left: int | None = None) -> list[int]:
    """Of unfinished particles with these scores."""
    log_weights = torch.tensor(scores, dtype=torch.float64).log()
    messenger = RebaseMessenger(FilterOptions(len(scores)), temperature)
    return messenger.widths(log_weights, log_weights > -math.inf, torch.tensor(left or len(scores))).tolist()


def test_widths_by_hand() -> None:
    """exp(s / .2) of .8, .6, .4, .2 is in the ratio e^3 : e^2 : e : 1, so the shares are .644, .237, .087, .032 of the places."""
    assert widths([0.8, 0.6, 0.4, 0.2], left=8) == [6, 2, 0, 0]  # ceil(5.15), ceil(2 / 1.503), nothing left
    assert widths([0.2, 0.8, 0.4, 0.6], left=8) == [0, 6, 0, 2]
    assert widths([0.8, 0.6, 0.4, 0.2]) == [3, 1, 0, 0]
    assert widths([0.5] * 7) == [1] * 7  # equal shares, whatever the rounding of the exponentials
    assert widths([0.5] * 3, left=7) == [2, 2, 3]  # of equal scores the last is the first: ceil(7 / 3), ceil(4 / 2), 2
    assert widths([0.5, 0.0, 0.5], left=3) == [1, 0, 2]  # a dead particle has none, its place is shared
    assert widths([1.0, 1e-300], temperature=0.001) == [2, 0]
    assert widths([1.0, 1e308]) == [0, 2]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_rebase_is_the_released_rule(n: int, temperature: float) -> None:
    """12 cases of 100 seeds each, in one plate."""
    model = tree(0)
    search = REBASE(model, n, temperature=temperature, max_plate_nesting=1)
    assert disagreement(search, model, lambda draw: published_rebase(model, draw, n, temperature)) == 0.0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), length=st.integers(1, 4), n=st.integers(1, 9), ends=st.booleans())
def test_other_trees(seed: int, length: int, n: int, ends: bool) -> None:
    for final_barrier in (True, False):
        model = tree(seed, length, ends=ends, final_barrier=final_barrier)
        search = REBASE(model, n, temperature=0.3, max_plate_nesting=1)
        assert disagreement(search, model, lambda draw, m=model: published_rebase(m, draw, n, 0.3), seed, 20) == 0.0


def test_particles_of_score_zero_give_their_places_to_others() -> None:
    model = tree(2, impossible=True)
    search = REBASE(model, 12, max_plate_nesting=1)
    assert disagreement(search, model, lambda draw: published_rebase(model, draw, 12, 0.2)) == 0.0


def test_rebase_by_hand() -> None:
    """Scores 1, e^-1, e^-2 of three unfinished particles at T = .2: shares exp(5), exp(1.84), exp(.68): .945 of 3 places, all."""
    model = scripted([[0, 1, 2, 3], [1, 1, 2, 3]], {(0,): -3.0, (2,): -1.0, (3,): -2.0, (1, 2): -1.0, (1, 3): -0.5})
    posterior, _ = searched(REBASE(model, 4, max_plate_nesting=1), model, problems=1)
    assert results(posterior) == [("0", -3.0, True), ("11", 0.0, True), ("12", -1.0, True), ("13", -0.5, True)]
    assert posterior.ancestors[0, :, 0].tolist() == [0, 1, 1, 1]
    expected = torch.tensor([-3.0, 0.0, -1.0, -0.5], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(posterior.weights[:, 0], expected)


def test_scores_above_one() -> None:
    """Densities have no upper bound: the best takes all places, and nothing overflows."""

    def model() -> Tensor:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("y", 1000.0 + 100.0 * x)
        x = barrier(x)
        pyro.sample("z", dist.Normal(x, 1.0))
        return x

    pyro.set_rng_seed(0)
    posterior = REBASE(model, 8).run()
    assert posterior.scores is not None and bool(posterior.scores.isfinite().all())
    before = posterior.particles.records[0].log_weights
    assert len(before.unique()) == 8
    assert posterior.ancestors[0].tolist() == [int(before.argmax())] * 8


@pytest.mark.parametrize("name", WRONG_WIDTHS)
def test_rejects_wrong_widths(name: str) -> None:
    """At least a tenth of the problems is solved differently."""
    model = tree(0)
    search = WRONG_WIDTHS[name](model, 6, temperature=0.3, max_plate_nesting=1)
    assert disagreement(search, model, lambda draw: published_rebase(model, draw, 6, 0.3)) > 0.1
