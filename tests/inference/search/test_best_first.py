"""BestFirst against its definition in plain Python, with the same draws: the same pops and the same answers, problem by problem."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.inference import BestFirst, SearchPosterior, SMCFailed, barrier
from tests.helpers.frontiers import RecordedTree, best_first, recorded
from tests.helpers.mutants import WRONG_POPS
from tests.helpers.searches import SYMBOLS

PROBLEMS = 60


def disagreement(kind: type[BestFirst], model: RecordedTree, problems: int = PROBLEMS, seed: int = 0, **options: Any) -> float:
    """Share of the problems whose pops or answer differ from the definition's."""
    pyro.set_rng_seed(seed)
    model.runs.clear()
    pops: list[Tensor] = []

    class Watched(kind):  # type: ignore[misc, valid-type]
        def pop(self, tree: Any, open_: Tensor) -> Tensor:
            popped: Tensor = super().pop(tree, open_)
            pops.append(tree.depth.gather(0, popped[None])[0])
            return popped

    posterior = Watched(model, max_plate_nesting=1, **options).run(problems)
    wrong = 0
    for problem in range(problems):
        expected = best_first(model, problem, options["expand"], options["budget"], options.get("step_cost", 0.0))
        found = posterior.particle((0, problem)).path()
        depths = [int(depth[problem]) for depth in pops][: len(expected.pops)]
        same = found[: len(expected.path)] == expected.path and depths == [len(path) for path in expected.pops]
        wrong += not same or (model.finished(expected.path) and found != expected.path)
    return wrong / problems


@pytest.mark.parametrize("step_cost", [0.0, 0.05])
@pytest.mark.parametrize(("expand", "budget"), [(1, 6), (2, 9), (4, 64), (3, 40)])
def test_best_first_is_its_definition(expand: int, budget: int, step_cost: float) -> None:
    assert disagreement(BestFirst, recorded(0), expand=expand, budget=budget, step_cost=step_cost) == 0.0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), length=st.integers(1, 4), expand=st.integers(1, 4), pops=st.integers(1, 8), ends=st.booleans())
def test_other_trees(seed: int, length: int, expand: int, pops: int, ends: bool) -> None:
    """Trees of all lengths, with and without an end, with and without a barrier after the last step."""
    for final_barrier in (True, False):
        model = recorded(seed, length, ends=ends, final_barrier=final_barrier)
        assert disagreement(BestFirst, model, 15, seed, expand=expand, budget=expand * pops) == 0.0


def test_prefixes_of_score_zero_are_not_continued() -> None:
    model = recorded(3, impossible=True)
    assert disagreement(BestFirst, model, expand=6, budget=48) == 0.0


def test_the_whole_tree_gives_the_best_of_all() -> None:
    """Every prefix is continued by every symbol, and scores only fall: the answer has the greatest score of all trajectories."""
    for seed in range(5):
        model = recorded(seed, 3)
        model.forced = lambda t: torch.arange(SYMBOLS)[:, None]
        posterior = BestFirst(model, expand=SYMBOLS, budget=4000, max_plate_nesting=1).run(1)
        assert posterior.scores is not None
        assert float(posterior.scores[0, 0]) == max(model.score(path) for path in model.paths())


def test_the_candidates() -> None:
    pyro.set_rng_seed(0)
    model = recorded(1)
    posterior = BestFirst(model, expand=5, budget=60, max_plate_nesting=1).run(8)
    assert isinstance(posterior, SearchPosterior) and posterior.decisive and posterior.scores is not None
    assert posterior.weights[0].tolist() == [1.0] * 8 and posterior.scores.shape == (5, 8)
    for problem in range(8):
        paths = [posterior.particle((n, problem)).path() for n in range(5)]
        assert all(len(path) == model.length or model.finished(path) for path in paths)
        assert posterior.scores[:, problem].tolist() == [model.score(path) for path in paths]
        assert posterior.lengths[:, problem].tolist() == [len(path) for path in paths]
        others = [score for path, score in zip(paths, posterior.scores[:, problem].tolist(), strict=True) if path != paths[0]]
        assert others == sorted(others, reverse=True)
    with pytest.raises(ValueError, match=r"best-first search gives no evidence: it .* Run SMC or Importance on the same model"):
        _ = posterior.log_evidence


def test_an_interrupted_search_keeps_what_it_has() -> None:
    for rounds in (1, 2, 4):
        seen: list[Any] = []

        def stop(posterior: Any, seen: list[Any] = seen, rounds: int = rounds) -> None:
            seen.append(posterior)
            if len(seen) == rounds:
                raise KeyboardInterrupt

        pyro.set_rng_seed(0)
        with pytest.raises(KeyboardInterrupt) as caught:
            BestFirst(recorded(0, 3, ends=False), expand=2, budget=100, max_plate_nesting=1, callback=stop).run(3)
        partial = caught.value.partial_posterior  # type: ignore[attr-defined]
        assert isinstance(partial, SearchPosterior) and partial.num_particles == 2 and "seconds" in partial.cost


def test_a_wall_that_no_prefix_passes() -> None:
    def wall() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.full_like(x, -math.inf))
        barrier(x)

    with pytest.raises(SMCFailed, match="all 4 particles have weight zero"):
        BestFirst(wall).run()


def test_a_problem_without_a_prefix_that_passes() -> None:
    """The other problems are searched as if it were not there."""

    def walls(height: Tensor) -> Tensor:
        with pyro.plate("problems", 2, dim=-1):
            x = torch.zeros(2)
            for t in range(2):
                x = pyro.sample(f"x_{t}", dist.Bernoulli(torch.full((2,), 0.5)))
                pyro.factor(f"y_{t}", torch.where(height > 0, -torch.inf, x))
                x = barrier(x)
        return x

    pyro.set_rng_seed(0)
    posterior = BestFirst(walls, expand=4, budget=40, max_plate_nesting=1).run(torch.tensor([0.0, 1.0]))
    assert posterior.dead.tolist() == [False, True] and posterior.scores is not None
    assert float(posterior.scores[0, 0]) == 2.0 and bool((posterior.scores[:, 1] == -math.inf).all())


@pytest.mark.parametrize("name", WRONG_POPS)
def test_rejects_wrong_pops(name: str) -> None:
    """At least a tenth of the problems is solved differently."""
    assert disagreement(WRONG_POPS[name], recorded(0), expand=3, budget=40) > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expand": 0}, "expand must be an integer of at least 1, got 0"),
        ({"expand": 4, "budget": 3}, r"budget must be at least expand, the continuations of a single prefix \(4\), got 3"),
        ({"step_cost": -0.1}, "step_cost must be a finite number of at least 0, got -0.1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BestFirst(recorded(0), **arguments)


def test_hidden_randomness_is_refused() -> None:
    """A prefix is continued by running the model again along it, where a hidden site would have another value."""

    def model() -> Any:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.poutine.block(hide=["w"]):
            w = pyro.sample("w", dist.Bernoulli(0.5 + 0.0 * z))
        (z, w) = barrier((z, w))
        pyro.factor("f", w)
        return pyro.sample("y", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="random numbers"):
        BestFirst(model, expand=4, budget=16).run()
