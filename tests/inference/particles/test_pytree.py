"""Permuting states, weights, marginals and counters, against plain Python."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.inference import CostMeter, DiscreteMarginal, Weights, count
from ppl_llm.inference.particles import PooledState, State, StateThatEnds, StateWithAnswers, StateWithCache
from ppl_llm.inference.particles.pytree import concatenate, particle, particles_done, pick, reorder, select_plate, take
from tests.helpers.population_mutants import unrefused_list
from tests.helpers.reasoning import LM

exactly = settings(max_examples=60, deadline=None, derandomize=True)


class Pair(NamedTuple):
    left: Any
    right: Any


class Population:
    """An object that a filter can permute."""

    def __init__(self, values: Tensor, done: Tensor) -> None:
        self.values, self.done, self.batch_shape = values, done, values.shape

    def reorder(self, index: Tensor) -> Population:
        return Population(take(self.values, index), take(self.done, index))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> Population:
        return Population(self.values[i], self.done[i])


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return (
        draw(st.integers(1, 4)),
        tuple(draw(st.lists(st.integers(1, 3), max_size=2))),
        tuple(draw(st.lists(st.integers(1, 2), max_size=2))),
    )


@exactly
@given(shape=shapes(), data=st.data())
def test_take_follows_the_ancestors_of_each_plate_index(shape: Any, data: st.DataObject) -> None:
    n, plates, event = shape
    index = torch.randint(n, (n, *plates), generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    spread = tuple(data.draw(st.sampled_from([1, p])) for p in plates)  # a state may be the same along a plate
    tensor = torch.arange(math.prod((n, *spread, *event))).view(n, *spread, *event)
    taken = take(tensor, index)
    whole = tensor.expand(n, *plates, *event)
    for i in range(n):
        for plate in torch.ones(plates).nonzero().tolist() if plates else [[]]:
            expected = whole[(int(index[(i, *plate)]), *plate)]
            assert taken.expand(n, *plates, *event)[(i, *plate)].tolist() == expected.tolist()


def test_containers_are_permuted_recursively_and_scalars_left_alone() -> None:
    index = torch.tensor([2, 0, 0])
    x = torch.tensor([10, 11, 12])
    state = {"a": [x, (x, None)], "b": Pair(x, 3), "c": Population(x, x > 10), "d": torch.tensor(5), "e": "text", "f": 1.5}
    permuted = reorder(state, index)
    assert permuted["a"][0].tolist() == permuted["a"][1][0].tolist() == permuted["b"].left.tolist() == [12, 10, 10]
    assert isinstance(permuted["b"], Pair) and permuted["b"].right == 3
    assert permuted["c"].values.tolist() == [12, 10, 10] and permuted["c"].done.tolist() == [True, False, False]
    assert (permuted["a"][1][1], int(permuted["d"]), permuted["e"], permuted["f"]) == (None, 5, "text", 1.5)
    assert x.tolist() == [10, 11, 12]


def test_particles_are_done_when_every_object_says_so() -> None:
    done = Population(torch.zeros(2, 3), torch.tensor([[True, True, False], [True, False, False]]))
    other = Population(torch.zeros(2, 3), torch.tensor([[True, True, True], [False, False, True]]))
    assert particles_done([done, 1, torch.zeros(2)]).tolist() == done.done.tolist()  # type: ignore[union-attr]
    assert particles_done([done, {"x": other}]).tolist() == [[True, True, False], [False, False, False]]  # type: ignore[union-attr]
    assert particles_done((torch.zeros(2), {"x": 1})) is None


def test_particles_are_picked_joined_and_taken_out_of_plates() -> None:
    x = torch.arange(6).view(3, 2)
    value = {"x": x, "pair": Pair(x[:, :1], "same"), "scalar": torch.tensor(7), "object": Population(x, x > 2)}
    one = pick(value, torch.tensor([[2, 0]]))
    assert one["x"].tolist() == one["object"].values.tolist() == [4, 1] and int(one["scalar"]) == 7
    assert one["pair"].left.tolist() == [4, 0] and one["pair"].right == "same"
    joined = concatenate([{"x": x, "y": Pair(x, "same")}, {"x": x + 10, "y": Pair(x, "same")}])
    assert joined["x"][:, 0].tolist() == [0, 2, 4, 10, 12, 14] and joined["y"].right == "same" and len(joined["y"].left) == 6
    assert select_plate(value["x"], 1, 1).tolist() == [1, 3, 5] and select_plate(value["pair"], 1, 1).left.tolist() == [0, 2, 4]
    with pytest.raises(TypeError, match="Population cannot be joined"):
        concatenate([value["object"], value["object"]])


def test_particles_of_return_values() -> None:
    x = torch.arange(6).view(3, 2)
    value = {"x": x, "pair": Pair(x[:, :1], "same"), "object": Population(x, x > 2)}
    one = particle(value, (2, 1))
    assert int(one["x"]) == 5 and int(one["pair"].left) == 4 and one["pair"].right == "same"
    assert int(one["object"].values) == 5 and bool(one["object"].done)


@exactly
@given(raw=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any), shift=st.floats(-700, 700))
def test_weights(raw: list[int], shift: float) -> None:
    """Invariant to scale, in float64; the log mean is the log of the mean."""
    log_w = torch.tensor(raw, dtype=torch.float64).log() + shift
    weights = Weights(log_w)
    total = sum(raw)
    assert float(weights.log_mean) == pytest.approx(math.log(total / len(raw)) + shift, abs=1e-9)
    assert weights.normalized.tolist() == pytest.approx([r / total for r in raw])
    assert float(weights.ess) == pytest.approx(total**2 / sum(r * r for r in raw))
    reset = weights.set_to_mean(torch.tensor(True))
    assert float(reset.log_mean) == pytest.approx(float(weights.log_mean)) and float(reset.ess) == pytest.approx(len(raw))
    assert weights.add(torch.ones(len(raw))).log_weights.dtype == torch.float64
    torch.testing.assert_close(weights.log_weights, log_w)  # immutable


@exactly
@given(pairs=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), min_size=1, max_size=8))
def test_discrete_marginal(pairs: list[tuple[str, int]]) -> None:
    total = sum(w for _, w in pairs)
    if total == 0:
        assert len(DiscreteMarginal(pairs)) == 0
        return
    marginal = DiscreteMarginal(pairs)
    for letter in "abc":
        assert marginal[letter] == pytest.approx(sum(w for v, w in pairs if v == letter) / total)
    assert list(marginal.probs.values()) == sorted(marginal.probs.values(), reverse=True)
    assert marginal.prob(marginal.mode) == max(marginal.probs.values())
    assert sum(marginal.probs.values()) == pytest.approx(1.0)
    assert len(marginal) == len(list(marginal)) and "DiscreteMarginal({" in repr(marginal)


def test_meters_nest_and_close() -> None:
    with CostMeter() as outer:
        count(tokens=2)
        with CostMeter() as inner:
            count(tokens=3, calls=1)
        count(tokens=5)
    count(tokens=100)
    assert dict(outer.totals) == {"tokens": 10, "calls": 1}
    assert dict(inner.totals) == {"tokens": 3, "calls": 1}


@pytest.mark.parametrize("protocol", [State, StateThatEnds, PooledState, StateWithCache, StateWithAnswers])
def test_a_context_is_a_state_of_every_kind(protocol: Any) -> None:
    assert isinstance(LM.start("a"), protocol)
    assert not isinstance(torch.zeros(3), StateThatEnds) and not isinstance({}, protocol)


def test_as_many_plain_values_as_particles_are_refused_but_not_a_record_of_variables() -> None:
    """Two particles: a list of two notes may be one for each of them, a pair of variables is a pair of variables."""
    index = torch.tensor([1, 1])
    for state in (["a", "b"], ("a", "b"), {0: 1.0, 1: 2.0}, [torch.tensor(1.0), torch.tensor(2.0)]):
        with pytest.raises(ValueError, match="as many as there are particles: are they one for each particle"):
            reorder(state, index)
    pair = (torch.tensor(1.0), torch.tensor(2.0))
    assert reorder(pair, index) == pair
    assert reorder(["a", "b", "c"], index) == ["a", "b", "c"]


def test_rejects_lists_that_are_let_through() -> None:
    """A list with one text for each particle would not be permuted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppl_llm.inference.particles.pytree._refuse_ambiguous", unrefused_list)
        assert reorder(["a", "b"], torch.tensor([1, 1])) == ["a", "b"] != ["b", "b"]
