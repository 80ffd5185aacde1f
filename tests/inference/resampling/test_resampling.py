"""Distributions of the resampling schemes, exactly: the outcome is constant on cells of the uniforms (tests/helpers/exact.py)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.inference import RESAMPLERS, multinomial, residual, ssp, systematic
from ppl_llm.inference.resampling import get_resampler
from tests.helpers.exact import num_uniforms, uniform_cuts
from tests.helpers.mutants import WRONG_RESAMPLERS, left_search_multinomial, pyro_style_systematic
from tests.helpers.population_mutants import WRONG_RESIDUALS

INDEPENDENT = ("multinomial", "stratified", "residual")  # slot k depends on the k-th uniform alone
exactly = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def weights(draw: st.DrawFn, max_size: int = 6) -> Tensor:
    """Integers, normalised: zeros, ties and integer N W happen."""
    raw = draw(st.lists(st.integers(0, 5), min_size=1, max_size=max_size).filter(any))
    return torch.tensor(raw, dtype=torch.float64) / sum(raw)


def slot_distributions(scheme: str, fn: object, w: Tensor) -> Tensor:
    """``[K, N]``: distribution of each slot's ancestor, for schemes whose slots have their own uniform."""
    n = len(w)
    log_w = w.log()[:, None].expand(n, n).contiguous()
    distributions = torch.zeros(n, n, dtype=torch.float64)
    for k in range(n):
        edges = uniform_cuts(scheme, log_w[:, :1], k)[:, 0]
        middles, masses = (edges[1:] + edges[:-1]) / 2, edges.diff()
        u = torch.full((n, n), 0.5, dtype=torch.float64)
        u[k] = middles
        distributions[k].index_add_(0, fn(log_w, u)[k], masses)  # type: ignore[operator]
    return distributions


def comb_distribution(fn: object, w: Tensor) -> list[tuple[float, Tensor]]:
    """(probability, counts) of a scheme with one uniform."""
    edges = uniform_cuts("systematic", w.log()[:, None], 0)[:, 0]
    outcomes = []
    for low, high in itertools.pairwise(edges.tolist()):
        ancestors = fn(w.log(), torch.tensor([(low + high) / 2], dtype=torch.float64))  # type: ignore[operator]
        outcomes.append((high - low, torch.bincount(ancestors, minlength=len(w))))
    return outcomes


def ssp_distribution(w: Tensor) -> list[tuple[float, Tensor]]:
    """(probability, counts) of SSP: the tree of pairwise roundings walked in plain Python, then checked against the real scheme."""
    n = len(w)
    expected = (w.log().softmax(0) * n).tolist()
    leaves = 1 << (n - 1).bit_length()
    outcomes: list[tuple[float, Tensor]] = []

    def walk(level: list[tuple[int, float]], rest: list[tuple[int, float]], counts: list[float], mass: float, u: list[float]) -> None:
        if not level:
            if len(rest) > 1:
                walk(rest, [], counts, mass, u)
                return
            owner, part = rest[0]
            final = torch.tensor([c + (round(part) if i == owner else 0) for i, c in enumerate(counts)][:n]).long()
            points = torch.tensor(u or [0.5], dtype=torch.float64)
            ancestors = ssp(w.log(), points)
            assert torch.bincount(ancestors, minlength=n).tolist() == final.tolist()
            outcomes.append((mass, final))
            return
        (i, a), (j, b), *others = level
        to_a, to_b = min(1 - a, b), min(a, 1 - b)
        threshold = to_b / (to_a + to_b) if to_a + to_b > 0 else 0.0
        for low, high, gains in ((0.0, threshold, True), (threshold, 1.0, False)):
            if high <= low:
                continue
            after = list(counts)
            if gains:
                one_full, settled, carried = a + b >= 1, i, (j if a + b >= 1 else i)
            else:
                one_full, settled, carried = a + b >= 1, j, (i if a + b >= 1 else j)
            if one_full:
                after[settled] += 1
            walk(others, [*rest, (carried, a + b - 1 if one_full else a + b)], after, mass * (high - low), [*u, (low + high) / 2])

    parts = [x - math.floor(x) for x in expected] + [0.0] * (leaves - n)
    start = [(i, part) for i, part in enumerate(parts)]
    walk(start if leaves > 1 else [], [] if leaves > 1 else start, [float(math.floor(x)) for x in expected] + [0.0] * (leaves - n), 1.0, [])
    return outcomes


def moments(outcomes: list[tuple[float, Tensor]]) -> tuple[Tensor, Tensor]:
    mean = sum(p * c.double() for p, c in outcomes)
    return mean, sum(p * c.double() ** 2 for p, c in outcomes) - mean**2  # type: ignore[operator,return-value]


@pytest.mark.parametrize("scheme", INDEPENDENT)
@exactly
@given(w=weights())
def test_unbiased_and_no_more_variable_than_multinomial(scheme: str, w: Tensor) -> None:
    distributions = slot_distributions(scheme, RESAMPLERS[scheme], w)
    n = len(w)
    torch.testing.assert_close(distributions.sum(0), n * w, atol=1e-12, rtol=0)
    variance = (distributions * (1 - distributions)).sum(0)
    assert (variance <= n * w * (1 - w) + 1e-12).all()


@pytest.mark.parametrize("scheme", ["systematic", "ssp"])
@exactly
@given(w=weights(max_size=5))
def test_unbiased_with_counts_next_to_the_expected(scheme: str, w: Tensor) -> None:
    outcomes = comb_distribution(systematic, w) if scheme == "systematic" else ssp_distribution(w)
    n = len(w)
    mean, variance = moments(outcomes)
    torch.testing.assert_close(mean, n * w, atol=1e-12, rtol=0)
    for p, counts in outcomes:
        if p > 1e-12:
            assert counts.sum() == n
            assert ((counts - n * w).abs() < 1 + 1e-9).all()
    assert (variance <= n * w * (1 - w) + 1e-12).all()


@pytest.mark.parametrize("name", WRONG_RESAMPLERS)
def test_rejects_biased_schemes(name: str) -> None:
    scheme, wrong = WRONG_RESAMPLERS[name]
    w = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    mean = slot_distributions(scheme, wrong, w).sum(0) if scheme in INDEPENDENT else moments(comb_distribution(wrong, w))[0]
    assert (mean - 4 * w).abs().max() > 0.01


EXTREME = [0.0, 2.0**-53, 0.5, 1.0 - 2.0**-53]


@pytest.mark.parametrize("scheme", RESAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@exactly
@given(
    w=st.lists(st.sampled_from([0.0, 1e-30, 1e-8, 0.1, 1.0, 3.0, 1e8]), min_size=1, max_size=9).filter(any),
    u=st.lists(st.sampled_from(EXTREME), min_size=16, max_size=16),
)
def test_indices_are_safe(scheme: str, dtype: torch.dtype, w: list[float], u: list[float]) -> None:
    """In range and never of zero weight, for rounding, zeros at both ends, one-hot weights and N = 1."""
    log_w = torch.tensor(w, dtype=torch.float64).log().to(dtype)
    n = len(w)
    uniforms = torch.tensor(u, dtype=torch.float64)[: RESAMPLERS[scheme].num_uniforms(n)]
    ancestors = RESAMPLERS[scheme](log_w, uniforms)
    assert ancestors.shape == (n,)
    assert ((ancestors >= 0) & (ancestors < n)).all()
    assert (log_w[ancestors] > -math.inf).all()


def test_rejects_unsafe_indices() -> None:
    n, plates = 4096, 20
    log_w = torch.rand(n, plates, generator=torch.Generator().manual_seed(0)).log()
    top = torch.full((1, plates), 1.0 - 2.0**-53, dtype=torch.float64)
    assert pyro_style_systematic(log_w, top).max() == n
    assert systematic(log_w, top).max() < n
    zero_first = torch.tensor([0.0, 1.0]).log()
    bottom = torch.zeros(2, dtype=torch.float64)
    assert left_search_multinomial(zero_first, bottom).tolist() == [0, 0]
    assert multinomial(zero_first, bottom).tolist() == [1, 1]


@pytest.mark.parametrize("scheme", RESAMPLERS)
def test_plates_are_resampled_each_on_its_own(scheme: str) -> None:
    generator = torch.Generator().manual_seed(1)
    fn = RESAMPLERS[scheme]
    log_w = torch.randn(5, 3, 2, generator=generator, dtype=torch.float64)
    u = torch.rand(fn.num_uniforms(5), 3, 2, generator=generator, dtype=torch.float64)
    together = fn(log_w, u)
    for i, j in itertools.product(range(3), range(2)):
        assert together[:, i, j].tolist() == fn(log_w[:, i, j], u[:, i, j]).tolist()


def test_multinomial_slots_are_exchangeable() -> None:
    """Sorted draws would make conditional SMC wrong (particles.mcmc.CSMC)."""
    ancestors = multinomial(torch.zeros(3, dtype=torch.float64), torch.tensor([0.9, 0.1, 0.5], dtype=torch.float64))
    assert ancestors.tolist() == [2, 0, 1]


def test_unknown_names_suggest_the_nearest() -> None:
    assert num_uniforms("systematic", 7) == 1
    with pytest.raises(ValueError, match="unknown resampler 'systmatic'; did you mean 'systematic'"):
        get_resampler("systmatic")


def lost_copies(scheme: Any) -> list[int]:
    """Numbers of equally weighted particles, up to 256, of which not every one gets its copy."""
    lost = []
    for n in range(1, 257):
        ancestors = scheme(torch.zeros(n, dtype=torch.float64), torch.full((scheme.num_uniforms(n),), 0.3, dtype=torch.float64))
        if sorted(ancestors.tolist()) != list(range(n)):
            lost.append(n)
    return lost


@pytest.mark.parametrize("name", ["residual", "systematic", "stratified", "ssp"])
def test_equal_weights_keep_every_particle(name: str) -> None:
    """49 / 49 is 1 but for rounding."""
    assert lost_copies(RESAMPLERS[name]) == []


def test_a_conditional_residual_scheme_keeps_every_particle_of_equal_weight() -> None:
    for n in (49, 98, 103):
        u = torch.full((n + 1,), 0.3, dtype=torch.float64)
        ancestors, slot = residual.conditional(torch.zeros(n, dtype=torch.float64), torch.tensor(5), u)
        assert sorted(ancestors.tolist()) == list(range(n)) and int(slot) == 5


@pytest.mark.parametrize("name", WRONG_RESIDUALS)
def test_rejects_copies_lost_to_rounding(name: str) -> None:
    """All copies of 49, 98, 103, .. particles become random ones."""
    assert lost_copies(WRONG_RESIDUALS[name]())[:3] == [49, 98, 103]
