"""SpeculativeRejection against its definition in plain Python, with the same draws, and what dropped completions cost."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.inference import BestOfN, SearchPosterior, SpeculativeRejection, barrier, count
from tests.helpers.mutants import WRONG_REJECTIONS
from tests.helpers.searches import Particles, candidates, disagreement, results, scripted, searched, speculative_rejection, tree

DOUBLING = [1, 2, 4, 8]


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_it_is_its_definition(n: int, keep: float) -> None:
    """16 cases of 100 seeds each, in one plate."""
    model = tree(0)
    search = SpeculativeRejection(model, n, keep=keep, max_plate_nesting=1)
    assert disagreement(search, model, lambda draw: speculative_rejection(model, draw, n, keep, DOUBLING)) == 0.0


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    length=st.integers(1, 4),
    n=st.integers(1, 9),
    marks=st.sets(st.integers(1, 5)).map(sorted),
    ends=st.booleans(),
    impossible=st.booleans(),
)
def test_other_trees(seed: int, length: int, n: int, marks: list[int], ends: bool, impossible: bool) -> None:
    for final_barrier in (True, False):
        model = tree(seed, length, ends=ends, final_barrier=final_barrier, impossible=impossible)
        search = SpeculativeRejection(model, n, keep=0.4, marks=marks, max_plate_nesting=1)
        posterior, draws = searched(search, model, seed, 20)
        alive = [p for p in range(20) if not bool(posterior.dead[p])]
        for problem in alive:
            expected = speculative_rejection(model, lambda t, i, p=problem, d=draws: int(d[t][i, p]), n, 0.4, marks)
            found = candidates(posterior, problem)
            assert [(f.path, f.score) for f in found] == [(f.path, f.score) for f in expected]
            weights = posterior.weights[:, problem].tolist()
            assert [w == 1.0 for w in weights] == [f.votes for f in expected]


def test_by_hand() -> None:
    """Of four, two are kept after the first step; one of them finishes, and the other is the only one left after the second."""
    model = scripted([[1, 2, 3, 1], [0, 3, 1, 1], [1, 1, 1, 1]], {(1,): -1.0, (2,): -2.0, (3,): -3.0, (2, 3): -5.0})
    posterior, _ = searched(SpeculativeRejection(model, 4, max_plate_nesting=1), model, problems=1)
    assert results(posterior) == [("10", -1.0, True), ("10", -1.0, False), ("10", -1.0, False), ("111", -1.0, False)]


def test_everything_kept_is_best_of_n() -> None:
    model = tree(3)
    pyro.set_rng_seed(0)
    kept = SpeculativeRejection(model, 8, keep=1.0, max_plate_nesting=1).run(30)
    pyro.set_rng_seed(0)
    best = BestOfN(model, 8, max_plate_nesting=1).run(30)
    assert kept.decisive and kept.scores is not None and best.scores is not None
    assert bool((kept.scores == best.scores).all()) and bool((kept.weights == best.weights).all())


class Counting(dist.Bernoulli):
    """Counts the particles that it draws, a token each."""

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        count(tokens_sampled=self.batch_shape.numel())
        return super().sample(sample_shape)

    def sample_where(self, chosen: Tensor) -> Tensor:
        count(tokens_sampled=int(chosen.sum()))
        return super().sample()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Counting:
        return Counting(self.probs.expand(batch_shape))


def counting(problems: int) -> Tensor:
    with pyro.plate("problems", problems, dim=-1):
        x = torch.zeros(problems)
        for t in range(8):
            x = pyro.sample(f"x_{t}", Counting(torch.full_like(x, 0.5)))
            pyro.factor(f"y_{t}", x)
            x = barrier(x)
    return x


def test_what_was_dropped_costs_nothing() -> None:
    """16 completions of 8 steps halved after 1, 2, 4 steps (and 8, the end) draw 16 + 8 + 2 * 4 + 4 * 2 of 128 steps."""
    assert SpeculativeRejection(counting, 16, max_plate_nesting=1).run(3).cost["tokens_sampled"] == 3 * 40


def test_marks_of_tokens() -> None:
    """2 tokens for each of 8 completions are passed after two steps, 3 after two more of the four that were kept."""
    search = SpeculativeRejection(counting, 8, marks=[2, 3], unit="tokens", max_plate_nesting=1)
    assert search.run(2).cost["tokens_sampled"] == 2 * (8 * 2 + 4 * 2 + 2 * 4)


def test_a_model_ends_when_all_that_was_kept_has_finished() -> None:
    steps: list[int] = []

    def model() -> Any:
        state = Particles(torch.zeros((), dtype=torch.long), torch.zeros((), dtype=torch.bool))
        for t in range(20):
            steps.append(t)
            x = pyro.sample(f"x_{t}", dist.Categorical(torch.tensor([0.5, 0.5]).expand(*state.code.shape, 2)))
            pyro.factor(f"y_{t}", -x.double())
            state = barrier(Particles(state.code * 5 + x + 1, state.done | (x == 0)))
            if state.done.all():
                break
        return state

    pyro.set_rng_seed(0)
    posterior = SpeculativeRejection(model, 8, marks=[1], keep=0.3).run()
    assert isinstance(posterior, SearchPosterior) and max(steps) < 19


def test_an_interrupted_search_keeps_the_best_finished_one() -> None:
    seen: list[Any] = []

    def stop(posterior: Any) -> None:
        seen.append(posterior)
        if len(seen) == 3:
            raise KeyboardInterrupt

    pyro.set_rng_seed(0)
    model = tree(0)
    with pytest.raises(KeyboardInterrupt) as caught:
        SpeculativeRejection(model, 40, max_plate_nesting=1, callback=stop).run(3)
    partial = caught.value.partial_posterior  # type: ignore[attr-defined]
    assert isinstance(partial, SearchPosterior) and "seconds" in partial.cost
    for problem in range(3):
        best = int(partial.weights[:, problem].argmax())
        assert model.finished(partial.particle((best, problem)).path())


@pytest.mark.parametrize("name", WRONG_REJECTIONS)
def test_rejects_wrong_rejections(name: str) -> None:
    """At least a tenth of the problems has other candidates."""
    model = tree(0)
    search = WRONG_REJECTIONS[name](model, 8, max_plate_nesting=1)
    assert disagreement(search, model, lambda draw: speculative_rejection(model, draw, 8, 0.5, DOUBLING)) > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0.0}, r"keep must be a share in \(0, 1\], got 0.0"),
        ({"keep": 2}, r"keep must be a share in \(0, 1\], got 2"),
        ({"marks": [2, 1]}, r"marks must be increasing integers above 0, got \[2, 1\]"),
        ({"unit": "token"}, "unknown unit 'token'; did you mean 'tokens'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpeculativeRejection(tree(0), 4, **arguments)
