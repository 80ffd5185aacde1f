"""Categorical sites are drawn with one uniform a value: exact shares for all uniforms of a grid, the edges, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.inference import SMC
from ppl_llm.inference.particles.categorical import categories_at, draw_categorical

LARGEST = 1 - 2.0**-53


def search_on_the_left(probs: Tensor, u: Tensor) -> Tensor:
    """A mutant that draws a category of probability 0 where the uniform meets its edge."""
    cdf = probs.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cdf, u.unsqueeze(-1) * cdf[..., -1:]).squeeze(-1)


def in_single_precision(probs: Tensor, u: Tensor) -> Tensor:
    """A mutant whose sums do not see rare categories."""
    cdf = probs.cumsum(-1, dtype=torch.float32)
    return torch.searchsorted(cdf, u.float().unsqueeze(-1) * cdf[..., -1:], right=True).squeeze(-1)


def not_normalised(probs: Tensor, u: Tensor) -> Tensor:
    """A mutant that takes the probabilities to sum to 1."""
    return torch.searchsorted(probs.cumsum(-1, dtype=torch.float64), u.unsqueeze(-1), right=True).squeeze(-1)


def counts_are_exact(draw: Callable[[Tensor, Tensor], Tensor], weights: list[int]) -> bool:
    """Each category as often as it should be among all uniforms of a grid with one point for each unit of weight; and at the edges."""
    total, probs = sum(weights), torch.tensor(weights, dtype=torch.float32)
    grid = (torch.arange(total, dtype=torch.float64) + 0.5) / total
    drawn = draw(probs.expand(total, -1), grid)
    ends = draw(probs.expand(2, -1), torch.tensor([0.0, LARGEST], dtype=torch.float64)).tolist()
    possible = [k for k, weight in enumerate(weights) if weight]
    return torch.bincount(drawn, minlength=len(weights)).tolist() == weights and ends == [possible[0], possible[-1]]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
def test_shares_are_exact(weights: list[int]) -> None:
    assert counts_are_exact(categories_at, weights)


@pytest.mark.parametrize("mutant", [search_on_the_left, not_normalised])
def test_wrong_shares_are_noticed(mutant: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert counts_are_exact(categories_at, [0, 3, 0, 5, 0]) and not counts_are_exact(mutant, [0, 3, 0, 5, 0])


def test_a_rare_category_keeps_its_share() -> None:
    """2^-30 after a probability of about 1: of the uniforms above 1 - 2^-31, all."""
    probs = torch.tensor([[1.0, 2.0**-30]])
    u = torch.tensor([1 - 2.0**-32], dtype=torch.float64)
    assert categories_at(probs, u).tolist() == [1] and in_single_precision(probs, u).tolist() != [1]


def model(probs: Tensor) -> Tensor:
    with pyro.plate("two", 2):
        return pyro.sample("z", dist.Categorical(probs))


def test_filters_draw_so() -> None:
    """In batches of particles and plates, from probabilities that none of them has of its own."""
    probs = torch.tensor([[0.2, 0.0, 0.8], [0.5, 0.25, 0.25]])
    pyro.set_rng_seed(0)
    found = SMC(model, 400, max_plate_nesting=1).run(probs).sites["z"]
    pyro.set_rng_seed(0)
    expected = categories_at(probs.expand(400, -1, -1), torch.rand(400, 2, dtype=torch.float64))
    assert torch.equal(found, expected) and found.dtype == dist.Categorical(probs).sample().dtype


def test_draws_have_the_distribution() -> None:
    """400,000 of them: chi squared with 7 degrees of freedom is above 48 once in 10^7 such tests."""
    probs = torch.tensor([0.001, 0.3, 0.0, 0.099, 0.2, 0.1, 0.15, 0.05, 0.1])
    pyro.set_rng_seed(0)
    drawn = draw_categorical(dist.Categorical(probs).expand([400_000]))
    counts, expected = torch.bincount(drawn, minlength=9).double(), 400_000 * probs.double()
    seen = expected > 0
    assert counts[2] == 0
    statistic = ((counts - expected)[seen] ** 2 / expected[seen]).sum()
    assert statistic < 48
    wrong = expected.roll(1)[seen.roll(1)]
    assert ((counts[seen] - wrong) ** 2 / wrong).sum() > 1000


class Loaded(dist.Categorical):
    """Draws in its own way."""

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return torch.full(self._extended_shape(sample_shape), 2)


def test_what_draws_by_itself_is_left_to_it() -> None:
    found = SMC(lambda: pyro.sample("z", Loaded(torch.ones(3))), 5).run()
    assert found.sites["z"].tolist() == [2] * 5


@pytest.mark.parametrize("worst", [-0.1, torch.nan])
def test_impossible_probabilities_are_refused_as_by_pyro(worst: float) -> None:
    def wrong() -> Tensor:
        fn = dist.Categorical(torch.ones(3), validate_args=False)
        fn.probs = torch.tensor([0.5, worst, 0.5])
        return pyro.sample("z", fn)

    with pytest.raises(RuntimeError, match="probability tensor contains either `inf`, `nan` or element < 0"):
        SMC(wrong, 5).run()
