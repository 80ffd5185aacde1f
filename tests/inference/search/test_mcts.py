"""MCTS against its definition in plain Python, with the same draws: every simulation, visit count and answer, problem by problem."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.inference import MCTS, SearchPosterior, SMCFailed, barrier
from tests.helpers.frontiers import MissingDraw, RecordedTree, mcts, recorded
from tests.helpers.mutants import WRONG_SIMULATIONS
from tests.helpers.searches import scripted

PROBLEMS = 20


def watched(kind: type[MCTS], model: RecordedTree, problems: int, seed: int, **options: Any) -> tuple[SearchPosterior, Tensor, Any]:
    """The posterior, the parents ``[simulations, problems]`` and the statistics of the nodes."""
    parents: list[Tensor] = []
    found: list[Any] = []

    class Watched(kind):  # type: ignore[misc, valid-type]
        def begin(self, tree: Any) -> Any:
            parents.append(tree.parent[1:])
            found.append(super().begin(tree))
            return found[0]

        def select(self, tree: Any, known: Any, number: int) -> Tensor:
            parents.append(super().select(tree, known, number))
            return parents[-1]

    pyro.set_rng_seed(seed)
    model.runs.clear()
    posterior = Watched(model, max_plate_nesting=1, **options).run(problems)
    return posterior, torch.cat(parents), found[0]


def disagreement(kind: type[MCTS], model: RecordedTree, problems: int = PROBLEMS, seed: int = 0, **options: Any) -> float:
    """Share of the problems whose simulations, visits, values or answer differ from the definition's."""
    posterior, parents, known = watched(kind, model, problems, seed, **options)
    wrong = 0
    for problem in range(problems):
        try:
            expected = mcts(model, problem, **options)
        except MissingDraw:
            wrong += 1
            continue
        same = parents[:, problem].tolist() == expected.parents
        same &= known.number[:, problem].tolist() == [node.visits for node in expected.nodes]
        totals = torch.tensor([node.total for node in expected.nodes], dtype=torch.float64)
        same &= bool(torch.isclose(known.total[:, problem], totals, rtol=1e-12).all())
        wrong += not same or posterior.particle((0, problem)).path()[: len(expected.path)] != expected.path
    return wrong / problems


@pytest.mark.parametrize("value", ["prefix", "rollout"])
@pytest.mark.parametrize(("simulations", "batch"), [(1, 1), (12, 1), (40, 8), (37, 5), (60, 3)])
def test_mcts_is_its_definition(simulations: int, batch: int, value: str) -> None:
    assert disagreement(MCTS, recorded(0), simulations=simulations, batch=batch, value=value) == 0.0


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    length=st.integers(1, 4),
    simulations=st.integers(1, 30),
    batch=st.integers(1, 6),
    exploration=st.sampled_from([0.0, 0.3, 2.0]),
    widening=st.sampled_from([0.5, 1.0, 3.0]),
    power=st.sampled_from([0.0, 0.5, 1.0]),
    value=st.sampled_from(["prefix", "rollout"]),
    ends=st.booleans(),
)
def test_other_trees(
    seed: int, length: int, simulations: int, batch: int, exploration: float, widening: float, power: float, value: str, ends: bool
) -> None:
    """Trees of all lengths, with and without an end, impossible prefixes, and a barrier after the last step or none."""
    options = {"exploration": exploration, "widening": widening, "widening_power": power, "value": value}
    for final_barrier in (True, False):
        model = recorded(seed, length, impossible=seed % 2 == 0, ends=ends, final_barrier=final_barrier)
        assert disagreement(MCTS, model, 8, seed, simulations=simulations, batch=min(batch, simulations), **options) == 0.0


@pytest.mark.parametrize("value", ["prefix", "rollout"])
def test_a_large_budget_gives_the_best_of_all(value: str) -> None:
    """Every prefix is continued by every symbol in the end, for the least likely of 13 trajectories has probability 0.04."""
    for seed in range(3):
        model = recorded(seed, 2)
        pyro.set_rng_seed(seed)
        posterior = MCTS(model, 800, 8, exploration=5.0, widening=4.0, value=value, max_plate_nesting=1).run(4)
        assert posterior.scores is not None
        assert posterior.scores[0].tolist() == [max(model.score(path) for path in model.paths())] * 4


def test_a_worked_example() -> None:
    """Four simulations by hand: 1.5 sqrt(N) children of the root are 1.5, 2.1, 2.6 and 3, so that the fourth goes to the best of three."""
    script = scripted([[1], [2], [3]], {(1,): -1.0, (2,): -2.0})
    model = recorded(0, 3)
    model.factors, order = script.factors, iter([[1, 1, 1], [2, 2, 2], [1, 3, 3], [2, 2, 2], [3, 3, 3], [3, 3, 3]])
    steps: list[int] = []

    def forced(t: int) -> Tensor:
        if t == 0:
            steps[:] = next(order)
        return torch.tensor([[steps[t]]])

    model.forced = forced
    _, parents, known = watched(MCTS, model, 1, 0, simulations=4, batch=1, exploration=0.1, widening=1.5)
    assert parents[:, 0].tolist() == [0, 0, 0, 1]
    assert known.number[:, 0].tolist() == [4.0, 2.0, 1.0, 1.0, 1.0]
    assert known.total[1, 0].item() == pytest.approx(math.exp(-1.0) * 2)


def test_the_candidates() -> None:
    pyro.set_rng_seed(0)
    model = recorded(1)
    posterior = MCTS(model, 40, 5, max_plate_nesting=1).run(8)
    assert isinstance(posterior, SearchPosterior) and posterior.decisive and posterior.scores is not None
    assert posterior.weights[0].tolist() == [1.0] * 8 and posterior.scores.shape == (5, 8)
    for problem in range(8):
        paths = [posterior.particle((n, problem)).path() for n in range(5)]
        assert all(len(path) == model.length or model.finished(path) for path in paths)
        assert posterior.scores[:, problem].tolist() == [model.score(path) for path in paths]
        assert posterior.scores[0, problem] == posterior.scores[:, problem].max()
    with pytest.raises(ValueError, match=r"Monte Carlo tree search gives no evidence: it .* Run SMC or Importance on the same model"):
        _ = posterior.log_evidence


def test_shorter_prefixes_wait() -> None:
    """Of each prefix one segment is drawn, though the longest of the batch takes the model further."""
    drawn: list[int] = []

    class Counted(dist.Bernoulli):
        def sample_where(self, chosen: Tensor) -> Tensor:
            drawn.append(int(chosen.sum()))
            return self.sample()

        def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
            return torch.bernoulli(self.probs.expand(sample_shape + self.batch_shape))

        def expand(self, batch_shape: Any, _instance: Any = None) -> Counted:
            return Counted(self.probs.expand(batch_shape))

    def model() -> Any:
        x = torch.zeros(())
        for t in range(6):
            x = pyro.sample(f"x_{t}", Counted(torch.full_like(x, 0.5)))
            pyro.factor(f"y_{t}", -0.1 * x)
            x = barrier(x)
        return x

    pyro.set_rng_seed(0)
    rounds: list[int] = []
    MCTS(model, 24, 4, exploration=0.0, widening_power=0.2, callback=lambda p: rounds.append(sum(drawn))).run()
    # where all particles draw, nobody is asked to wait, and the first batch has no other prefix
    assert len(rounds) == 6 and all(b - a <= 4 for a, b in itertools.pairwise(rounds)) and rounds[-1] > 0


def test_what_all_know_is_not_scored_again() -> None:
    """An observed site is evaluated only where some prefix needs it."""
    scored: list[int] = []

    class Factor(dist.Delta):
        def log_prob(self, x: Tensor) -> Tensor:
            scored.append(1)
            return super().log_prob(x)

        def expand(self, batch_shape: Any, _instance: Any = None) -> Factor:
            return Factor(self.v.expand(batch_shape), self.log_density.expand(batch_shape))

    def model() -> Any:
        x = torch.zeros(())
        for t in range(5):
            x = pyro.sample(f"x_{t}", dist.Bernoulli(torch.full_like(x, 0.5)))
            pyro.sample(f"y_{t}", Factor(torch.zeros_like(x), -x), obs=torch.zeros_like(x))
            x = barrier(x)
        return x

    pyro.set_rng_seed(0)
    evaluated: list[int] = []
    MCTS(model, 5, 1, widening=0.1, widening_power=0.0, callback=lambda p: evaluated.append(len(scored))).run()
    assert evaluated == [1, 2, 3, 4, 5]  # one simulation deeper each time


def test_an_interrupted_search_keeps_what_it_has() -> None:
    for rounds, value in ((1, "prefix"), (2, "rollout"), (4, "prefix")):
        seen: list[Any] = []

        def stop(posterior: Any, seen: list[Any] = seen, rounds: int = rounds) -> None:
            seen.append(posterior)
            if len(seen) == rounds:
                raise KeyboardInterrupt

        pyro.set_rng_seed(0)
        with pytest.raises(KeyboardInterrupt) as caught:
            MCTS(recorded(0, 3, ends=False), 40, 2, value=value, max_plate_nesting=1, callback=stop).run(3)
        partial = caught.value.partial_posterior  # type: ignore[attr-defined]
        assert isinstance(partial, SearchPosterior) and partial.num_particles == 2 and "seconds" in partial.cost


def test_a_wall_that_no_prefix_passes() -> None:
    def wall() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.full_like(x, -math.inf))
        barrier(x)

    with pytest.raises(SMCFailed, match="all 20 particles have weight zero"):
        MCTS(wall, 20).run()


@pytest.mark.parametrize("name", WRONG_SIMULATIONS)
def test_rejects_wrong_simulations(name: str) -> None:
    """At least a tenth of the problems has another tree."""
    assert disagreement(WRONG_SIMULATIONS[name], recorded(0), simulations=40, batch=4) > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"simulations": 0}, "simulations must be an integer of at least 1, got 0"),
        ({"batch": 0}, "batch must be an integer of at least 1, got 0"),
        ({"exploration": -1.0}, "exploration must be a finite number above 0, got -1.0"),
        ({"widening": 0.0}, "widening must be a finite number above 0, got 0.0"),
        ({"widening_power": 1.5}, r"widening_power must lie in \[0, 1\], got 1.5"),
        ({"value": "rollouts"}, "unknown value 'rollouts'; did you mean 'rollout'"),
        ({"max_tokens_total": 0}, "max_tokens_total must be None or an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MCTS(recorded(0), **arguments)
