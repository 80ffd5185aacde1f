"""The distributions of best-of-N and of the majority vote, in closed form."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pytest
import torch

from ppl_llm.inference import (
    BestOfN,
    Importance,
    SearchPosterior,
    SelfConsistency,
    Weights,
)
from tests.helpers.searches import SEEDS, SYMBOLS, Path, Tree, searched, tree


def distribution_of_the_best(model: Tree, n: int) -> dict[Path, float]:
    """Of the best of n draws: F(s)^n - F(s-)^n for its score, and the prior among trajectories of equal score."""
    prior = model.paths()
    distribution: dict[Path, float] = {}
    for path, p in prior.items():
        score = model.score(path)
        below = sum(q for other, q in prior.items() if model.score(other) < score)
        equal = sum(q for other, q in prior.items() if model.score(other) == score)
        distribution[path] = ((below + equal) ** n - below**n) * p / equal
    return distribution


def chi_square(observed: dict[Any, int], distribution: dict[Any, float]) -> tuple[float, int]:
    """Statistic and degrees of freedom; values with fewer than 8 expected draws are one cell."""
    total = sum(observed.values())
    assert set(observed) <= set(distribution)
    cells = [(observed.get(x, 0), total * p) for x, p in distribution.items() if total * p >= 8]
    rest = (total - sum(o for o, _ in cells), total - sum(e for _, e in cells))
    cells += [rest] if rest[1] > 1e-6 else []
    return sum((o - e) ** 2 / e for o, e in cells), len(cells) - 1


def threshold(degrees: int) -> float:
    """Upper 1e-6 quantile of chi-square (Wilson and Hilferty, 1931)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.7534 * math.sqrt(2 / (9 * degrees))) ** 3


def best_paths(posterior: SearchPosterior) -> dict[Path, int]:
    counts: dict[Path, int] = {}
    for problem, particle in enumerate(posterior.weights.argmax(0).tolist()):
        path = posterior.particle((particle, problem)).path()
        counts[path] = counts.get(path, 0) + 1
    return counts


@pytest.mark.parametrize("n", [1, 3, 8])
def test_distribution_of_best_of_n(n: int) -> None:
    """The best of n over 3000 problems against the distribution of the argmax; false alarm 1e-6 for each n."""
    model = tree(4, 3)
    posterior, _ = searched(BestOfN(model, n, max_plate_nesting=1), model, problems=3000)
    statistic, degrees = chi_square(best_paths(posterior), distribution_of_the_best(model, n))
    assert degrees >= 5 and statistic < threshold(degrees)
    # The test can see: the best of twice as many draws is rejected.
    doubled = {path: round(3000 * p) for path, p in distribution_of_the_best(model, 2 * n).items()}
    assert chi_square(doubled, distribution_of_the_best(model, n))[0] > 2 * threshold(degrees)


def test_best_of_n_rejects_wrong_groups() -> None:
    """Particles and problems exchanged (search-and-learn #28): the best of n particles, but of different problems' scores."""
    model = tree(4, 3)
    posterior, _ = searched(BestOfN(model, 6, max_plate_nesting=1), model, problems=3000)
    assert posterior.scores is not None
    mixed = posterior.scores.flatten().view(3000, 6).T  # as if the particles of a problem were neighbours
    posterior = posterior.reweighted(Weights(torch.where(mixed == mixed.amax(0), 0.0, -math.inf)))
    statistic, degrees = chi_square(best_paths(posterior), distribution_of_the_best(model, 6))
    assert statistic > 5 * threshold(degrees)


def test_best_of_n_takes_the_first_of_ties_and_keeps_all_particles() -> None:
    model = tree(4, 3)
    posterior, draws = searched(BestOfN(model, 5, max_plate_nesting=1), model)
    assert posterior.scores is not None and posterior.scores.shape == (5, SEEDS)
    ties = 0
    for problem in range(SEEDS):
        paths = [tuple(int(d[i, problem]) for d in draws if d[i, problem] >= 0) for i in range(5)]
        scores = [model.score(path) for path in paths]
        assert posterior.scores[:, problem].tolist() == scores
        assert posterior.weights[:, problem].tolist() == [float(i == scores.index(max(scores))) for i in range(5)]
        assert [posterior.particle((i, problem)).path() for i in range(5)] == paths
        ties += scores.count(max(scores)) > 1
    assert ties > 20


def test_distribution_of_the_majority() -> None:
    """The majority of the first symbol among five draws, ties to the first: 1500 problems against all 4^5 outcomes; false alarm 1e-6."""
    model = tree(5, 2)
    model.probs = torch.tensor([0.15, 0.2, 0.45, 0.2], dtype=torch.float64)
    n, problems = 5, 1500
    distribution = dict.fromkeys(range(SYMBOLS), 0.0)
    for outcome in itertools.product(range(SYMBOLS), repeat=n):
        winner = max(outcome, key=lambda s: (outcome.count(s), -outcome.index(s)))
        distribution[winner] += math.prod(float(model.probs[s]) for s in outcome)
    posterior, _ = searched(SelfConsistency(model, n, max_plate_nesting=1), model, problems=problems)
    counts = dict.fromkeys(range(SYMBOLS), 0)
    for marginal in posterior.marginal(lambda particle: particle.path()[0]):
        counts[marginal.mode] += 1
    statistic, degrees = chi_square(counts, distribution)
    assert degrees == 3 and statistic < threshold(degrees)
    # Not the distribution of a single draw, nor a vote weighted by scores.
    assert chi_square({s: round(problems * float(p)) for s, p in enumerate(model.probs)}, distribution)[0] > threshold(3)
    pyro.set_rng_seed(0)
    weighted = dict.fromkeys(range(SYMBOLS), 0)
    for marginal in Importance(model, n, max_plate_nesting=1).run(problems).marginal(lambda particle: particle.path()[0]):
        weighted[marginal.mode] += 1
    assert chi_square(weighted, distribution)[0] > 2 * threshold(3)
