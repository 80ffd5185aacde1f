"""ABMCTS against its definition in plain Python: with the same draws of children and of mean scores, every simulation, every set of scores
that a mean was drawn from, and the answer."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.inference import ABMCTS, BetaScores, NormalScores, SearchPosterior
from ppl_llm.inference.search.score_posterior import Scores
from tests.helpers.frontiers import MissingDraw, RecordedTree, ab_mcts, recorded
from tests.helpers.mutants import WRONG_BRANCHES

PROBLEMS = 20


class Recording:
    """What a search has drawn: of each batch but the first, of each depth, the arguments and results of up to three draws."""

    def __init__(self, kind: type[ABMCTS]) -> None:
        self.parents: list[Tensor] = []
        self.batches: list[list[tuple[Scores, Tensor]]] = []
        outer = self

        class Watched(kind):  # type: ignore[misc, valid-type]
            def begin(self, tree: Any) -> Any:
                outer.parents.append(tree.parent[1:])
                return super().begin(tree)

            def select(self, tree: Any, known: Any, number: int) -> Tensor:
                outer.batches.append([])
                outer.parents.append(super().select(tree, known, number))
                return outer.parents[-1]

            def draw(self, scores: Scores) -> Tensor:
                outer.batches[-1].append((scores, super().draw(scores)))
                return outer.batches[-1][-1][1]

        self.kind = Watched

    def arms(self, problem: int) -> list[list[Any]]:
        """Draws of one problem as the definition takes them."""
        found = []
        for calls in self.batches:
            draws = [result[..., problem] for _, result in calls]
            found.append([(draws[i], draws[i + 1], draws[i + 2] if i + 2 < len(draws) else None) for i in range(0, len(draws), 3)])
        return found

    def explains(self, problem: int, behind: list[list[tuple[Any, ...]]]) -> bool:
        """Whether each mean was drawn given the count, sum and squares of the scores that the definition gives it."""
        for calls, levels in zip(self.batches, behind, strict=True):
            for depth, level in enumerate(levels):
                new, further, nodes = level
                for call, groups in ((0, new), (1, further)):
                    # simulations that have stopped before are not among the definition's
                    walked = [tuple(round(float(x), 9) for x in row) for row in _rows(calls[3 * depth + call][0], problem)]
                    if not all(_summary(group) in walked for group in groups):
                        return False
                if 3 * depth + 2 < len(calls):
                    scores = calls[3 * depth + 2][0]
                    given = [tuple(round(float(x[i, 0, problem]), 9) for x in scores) for i in range(1, len(nodes))]
                    if given != [_summary(group) for group in nodes[1:]]:
                        return False
        return True


def _rows(scores: Scores, problem: int) -> list[list[Tensor]]:
    return [[x[k, problem] for x in scores] for k in range(len(scores.number))]


def _summary(group: list[float]) -> tuple[float, ...]:
    return tuple(round(x, 9) for x in (len(group), sum(group), sum(s * s for s in group)))


def disagreement(kind: type[ABMCTS], model: RecordedTree, problems: int = PROBLEMS, seed: int = 0, **options: Any) -> float:
    """Share of the problems whose simulations, posteriors or answer differ from the definition's."""
    recording = Recording(kind)
    pyro.set_rng_seed(seed)
    model.runs.clear()
    posterior = recording.kind(model, max_plate_nesting=1, **options).run(problems)
    parents = torch.cat(recording.parents)
    plain = {name: value for name, value in options.items() if name != "posterior"}
    wrong = 0
    for problem in range(problems):
        try:
            expected, behind = ab_mcts(model, problem, draws=recording.arms(problem), **plain)
        except MissingDraw:
            wrong += 1
            continue
        same = parents[:, problem].tolist() == expected.parents and recording.explains(problem, behind)
        wrong += not same or posterior.particle((0, problem)).path()[: len(expected.path)] != expected.path
    return wrong / problems


@pytest.mark.parametrize("value", ["prefix", "rollout"])
@pytest.mark.parametrize("posterior", ["normal", "beta"])
@pytest.mark.parametrize(("simulations", "batch"), [(1, 1), (12, 1), (40, 8), (37, 5)])
def test_ab_mcts_is_its_definition(simulations: int, batch: int, posterior: str, value: str) -> None:
    assert disagreement(ABMCTS, recorded(0), simulations=simulations, batch=batch, posterior=posterior, value=value) == 0.0


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    length=st.integers(1, 4),
    simulations=st.integers(1, 25),
    batch=st.integers(1, 6),
    value=st.sampled_from(["prefix", "rollout"]),
    ends=st.booleans(),
)
def test_other_trees(seed: int, length: int, simulations: int, batch: int, value: str, ends: bool) -> None:
    """Trees of all lengths, with and without an end, impossible prefixes, and a barrier after the last step or none."""
    for final_barrier in (True, False):
        model = recorded(seed, length, impossible=seed % 2 == 0, ends=ends, final_barrier=final_barrier)
        assert disagreement(ABMCTS, model, 8, seed, simulations=simulations, batch=min(batch, simulations), value=value) == 0.0


def test_a_large_budget_gives_the_best_of_all() -> None:
    for posterior in ("normal", "beta"):
        model = recorded(3, 2)
        pyro.set_rng_seed(0)
        found = ABMCTS(model, 800, 8, posterior=posterior, max_plate_nesting=1).run(4)
        assert found.scores is not None
        assert found.scores[0].tolist() == [max(model.score(path) for path in model.paths())] * 4


# posteriors


def scores_of(values: list[float]) -> Scores:
    x = torch.tensor(values, dtype=torch.float64)
    return Scores(torch.tensor(float(len(values)), dtype=torch.float64), x.sum(), (x**2).sum())


def test_normal_posteriors_in_closed_form() -> None:
    """Parameters worked out by hand: prior (0, 1, 1, 0.1) and the scores 0.2, 0.4, 0.9."""
    mean, kappa, nu, variance = NormalScores().parameters(scores_of([0.2, 0.4, 0.9]))
    assert (kappa, nu) == (4.0, 4.0) and float(mean) == pytest.approx(1.5 / 4, abs=1e-14)
    assert float(variance) == pytest.approx((0.1 + 0.26 + 0.25 * 1 * 3 / 4) / 4, abs=1e-14)
    assert [float(p) for p in NormalScores(0.3, 2.0, 5.0, 0.2).parameters(scores_of([]))] == pytest.approx([0.3, 2.0, 5.0, 0.2])


def test_beta_posteriors_in_closed_form() -> None:
    assert [float(p) for p in BetaScores().parameters(scores_of([0.2, 0.4, 0.9]))] == pytest.approx([2.0, 2.0], abs=1e-14)
    assert [float(p) for p in BetaScores(2.0, 3.0).parameters(scores_of([]))] == [2.0, 3.0]


def test_normal_parameters_are_the_posterior() -> None:
    """Prior times likelihood is the posterior density times a constant, at every mean and variance."""
    prior, data = NormalScores(0.2, 1.5, 3.0, 0.05), [0.1, 0.5, 0.6]

    def log_normal(x: float, mean: float, v: float) -> float:
        return -((x - mean) ** 2) / (2 * v) - math.log(v) / 2

    def log_density(mean: float, kappa: float, nu: float, variance: float, mu: float, v: float) -> float:
        """Up to a constant."""
        return -(nu / 2 + 1) * math.log(v) - nu * variance / (2 * v) + log_normal(mu, mean, v / kappa)

    mean, kappa, nu, variance = (float(p) for p in prior.parameters(scores_of(data)))
    constants = []
    for mu in (-0.7, 0.1, 0.4, 1.3):
        for v in (0.01, 0.2, 2.0):
            before = log_density(prior.mean, prior.kappa, prior.nu, prior.variance, mu, v) + sum(log_normal(x, mu, v) for x in data)
            constants.append(before - log_density(mean, kappa, nu, variance, mu, v))
    assert max(constants) - min(constants) < 1e-10


def normal_cdf(draws: Tensor, scores: Scores) -> Tensor:
    """Of the mean given three scores and nu = 1: Student's t with four degrees of freedom."""
    mean, kappa, nu, variance = (p[0] for p in NormalScores().parameters(scores))
    assert nu == 4.0
    t = (draws - mean) / (variance / kappa).sqrt()
    s = t / (1 + t**2 / 4).sqrt()
    return 0.5 + 3 / 8 * s * (1 - s**2 / 12)


def beta_cdf(draws: Tensor, scores: Scores) -> Tensor:
    """Of Beta(2, 2)."""
    assert [float(p[0]) for p in BetaScores().parameters(scores)] == pytest.approx([2.0, 2.0])
    return 3 * draws**2 - 2 * draws**3


@pytest.mark.parametrize(("prior", "cdf"), [(NormalScores(), normal_cdf), (BetaScores(), beta_cdf)])
def test_draws_have_the_posterior(prior: Any, cdf: Any) -> None:
    """Their distribution function is uniform: 4.9 standard errors at nine places of 40,000 draws are a false alarm in 1e-5."""
    n = 40_000
    torch.manual_seed(0)
    scores = Scores(*(x.expand(n) for x in scores_of([0.2, 0.4, 0.9])))
    uniform = cdf(prior.draw(scores), scores)
    for q in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        assert abs(float((uniform <= q).double().mean()) - q) < 4.9 * math.sqrt(q * (1 - q) / n)


def test_scores_that_a_posterior_is_not_for() -> None:
    model = recorded(0)
    model.factors = [factor + 2.0 for factor in model.factors]
    with pytest.raises(ValueError, match=r"Beta posteriors are for scores in \[0, 1\], such as those of the preset twisted"):
        ABMCTS(model, 8, posterior="beta", max_plate_nesting=1).run(2)


def test_the_posterior_of_a_search() -> None:
    pyro.set_rng_seed(0)
    model = recorded(1)
    posterior = ABMCTS(model, 40, 5, max_plate_nesting=1).run(8)
    assert isinstance(posterior, SearchPosterior) and posterior.decisive and posterior.scores is not None
    assert posterior.scores.shape == (5, 8) and bool((posterior.scores[0] == posterior.scores.max(0).values).all())
    with pytest.raises(ValueError, match="adaptive branching tree search gives no evidence"):
        _ = posterior.log_evidence


@pytest.mark.parametrize("name", WRONG_BRANCHES)
def test_rejects_wrong_branches(name: str) -> None:
    """At least a tenth of the problems has another tree, or means drawn from other scores."""
    assert disagreement(WRONG_BRANCHES[name], recorded(0), simulations=40, batch=4) > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"posterior": "gauss"}, "unknown posterior 'gauss'"),
        ({"posterior": 3}, "posterior must be one of normal, beta, or have parameters, draw and check, got 3"),
        ({"simulations": 0}, "simulations must be an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ABMCTS(recorded(0), **arguments)


def test_bad_priors() -> None:
    with pytest.raises(ValueError, match="kappa must be a finite number above 0, got 0"):
        NormalScores(kappa=0)
    with pytest.raises(ValueError, match="b must be a finite number above 0, got -1"):
        BetaScores(b=-1)
