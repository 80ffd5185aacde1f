"""Independent filters pooled by their evidence: all randomness enumerated, then one Monte-Carlo batch, then what a user sees."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm import Context, reasoning
from ppl_llm.inference import RESAMPLERS, SMC, IslandPosterior, ParticlePosterior
from tests.helpers.exact import Chain, EnumeratedResampler, ForceValues, Path, chains, estimator_error, num_uniforms
from tests.helpers.reasoning import LM, MAX_STEPS, MAX_TOKENS, PRM, TEMPERATURE, distribution, solve, trajectories
from tests.inference.test_smc_exact import spiky

EXACT = 1e-10
Z = 4.9  # two-sided false alarm 1e-6 per test


class EachOnItsOwn(EnumeratedResampler):
    """The cells of all islands, one population after the other."""

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        return super().__call__(log_weights.flatten(1), u).view_as(log_weights)


def enumerate_islands(model: Chain, num_particles: int, islands: int, scheme: str, ess_threshold: float) -> tuple[Tensor, IslandPosterior]:
    """Every outcome of ``SMC(model, ..., islands=K)``: probabilities ``[columns]`` and the pooled posterior."""
    v, length, n, k = model.num_symbols, model.length, num_particles, islands
    uniforms = num_uniforms(scheme, n)
    grid = torch.tensor(list(itertools.product(*map(range, [v] * (length * n * k) + [n] * (length * uniforms * k))))).T.contiguous()
    columns = grid.shape[1]
    values = grid[: length * n * k].view(length, n, k, columns)
    cells = grid[length * n * k :].view(length, uniforms, k * columns)
    forced = EachOnItsOwn(RESAMPLERS[scheme], cells, scheme)
    path = Path(columns)

    def forced_model(columns: int) -> Tensor:
        with ForceValues(values, path):
            return model(columns)

    posterior = SMC(
        forced_model, n, resampler=forced, ess_threshold=ess_threshold, max_plate_nesting=1, islands=k, resample_finished=True
    ).run(columns)
    log_prob = path.log_prob
    calls = iter(forced.log_prob)
    for resampled in torch.stack([island.resampled for island in posterior.islands], 1):  # [T, K, columns]
        unused = torch.full(resampled.shape, -uniforms * math.log(n), dtype=torch.float64)
        log_prob = log_prob + (torch.where(resampled, next(calls).view_as(unused), unused) if bool(resampled.any()) else unused)
    return log_prob.sum(0).exp(), posterior


@pytest.mark.parametrize("ess_threshold", [0.0, 0.7, 1.0])
@settings(max_examples=3, deadline=None, derandomize=True)
@given(model=chains(length=2), scheme=st.sampled_from(["systematic", "ssp", "residual"]))
def test_evidence_and_expectations_are_unbiased(ess_threshold: float, model: Chain, scheme: str) -> None:
    """Two islands of two particles: E[Z-hat] = Z and E[Z-hat sum W f] = Z E[f]."""
    if scheme == "residual":
        model = Chain(model.init, model.transition, model.potentials[:1], model.ends)
    assert estimator_error(model, *enumerate_islands(model, 2, 2, scheme, ess_threshold)) < EXACT


@pytest.mark.slow
@settings(max_examples=2, deadline=None, derandomize=True)
@given(model=chains(length=1))
def test_three_islands(model: Chain) -> None:
    assert estimator_error(model, *enumerate_islands(model, 2, 3, "systematic", 0.7)) < EXACT


class EqualIslands(IslandPosterior):
    """Islands averaged with equal weights, whatever their evidence (independent runs pooled as if each were exact)."""

    @property
    def weights(self) -> Tensor:
        return torch.cat([island.weights for island in self.islands]) / len(self.islands)


class GeometricEvidence(IslandPosterior):
    """The mean of the islands' log evidences."""

    @property
    def log_evidence(self) -> Tensor:
        return self.island_log_evidence.mean(0)


class SummedEvidence(IslandPosterior):
    """The sum of the islands' evidences: the number of islands forgotten."""

    @property
    def log_evidence(self) -> Tensor:
        return self.island_log_evidence.logsumexp(0)


@pytest.mark.parametrize("wrong", [EqualIslands, GeometricEvidence, SummedEvidence])
def test_rejects_wrong_pooling(wrong: type[IslandPosterior], monkeypatch: pytest.MonkeyPatch) -> None:
    """Effect size: more than 1 % of the evidence, where the right engine errs by less than 1e-10."""
    model = spiky(seed=1)
    model = Chain(model.init, model.transition, model.potentials[:2], model.ends)
    assert estimator_error(model, *enumerate_islands(model, 2, 2, "systematic", 0.9)) < EXACT
    monkeypatch.setattr("ppl_llm.inference.smc.IslandPosterior", wrong)
    assert estimator_error(model, *enumerate_islands(model, 2, 2, "systematic", 0.9)) > 1e-2


def likelihood(steps: int, z: tuple[float, ...]) -> float:
    return math.prod(1 / (1 + math.exp(-value)) for value in z)


def test_evidence_of_a_reasoning_program() -> None:
    """3000 problems in a plate, each with three filters of two particles; false alarm 1e-6, and a bias of 7 % would show."""
    pyro.set_rng_seed(0)
    exact = sum(p * likelihood(steps, z) for _, steps, p, z, _ in trajectories())

    def replicated(problem: str) -> Context:
        with pyro.plate("problems", 3000, dim=-1):
            return solve([problem] * 3000)

    posterior = SMC(replicated, 2, max_plate_nesting=1, islands=3).run("a")
    z_hat = posterior.log_evidence.exp()
    error = z_hat.std() / math.sqrt(3000)
    assert posterior.log_weights.shape == (6, 3000) and posterior.island_log_evidence.shape == (3, 3000)
    assert abs(z_hat.mean() - exact) < Z * error < 0.07 * exact
    # A posterior probability by the same evidence-weighted estimator: E[Z-hat (W(first = a) - p)] = 0.
    p = sum(mass for x, mass in distribution(likelihood).items() if x[0] == 0)
    residual = z_hat * ((posterior.weights * (posterior.value.tokens[..., 1] == 0)).sum(0) - p)
    assert abs(residual.mean()) < Z * residual.std() / math.sqrt(3000)


def test_results_of_islands() -> None:
    pyro.set_rng_seed(1)
    seen: list[ParticlePosterior] = []
    model = reasoning(LM, PRM, "exact", stop=";", max_tokens=MAX_TOKENS, max_steps=MAX_STEPS, temperature=TEMPERATURE)
    posterior = SMC(model, 500, islands=4, audit=True, callback=seen.append).run("a")
    assert isinstance(posterior, IslandPosterior) and posterior.num_particles == 2000 and posterior.num_barriers == MAX_STEPS
    assert posterior.audit is not None and posterior.audit.error == 0.0
    assert posterior.value.tokens.shape[0] == posterior.sites["step_0"].shape[0] == posterior.lengths.shape[0] == 2000
    for k, island in enumerate(posterior.islands):
        particles = slice(500 * k, 500 * (k + 1))
        assert island.ess.shape == (MAX_STEPS,) and island.ancestors.shape == (MAX_STEPS, 500)
        assert torch.equal(island.log_weights, posterior.log_weights[particles])
        assert torch.equal(island.value.tokens, posterior.value.tokens[particles])
        assert torch.equal(island.sites["step_1"], posterior.sites["step_1"][particles])
    torch.testing.assert_close(posterior.log_evidence, posterior.island_log_evidence.logsumexp(0) - math.log(4))
    assert len(posterior.island_log_evidence.unique()) == 4  # they are independent
    exact = sum(p * likelihood(steps, z) for _, steps, p, z, _ in trajectories())
    assert float(posterior.log_evidence.exp()) == pytest.approx(exact, rel=0.1)
    assert [type(state) for state in seen] == [IslandPosterior] * MAX_STEPS and seen[0].num_particles == 2000
    assert model.choose(posterior) is None and posterior.answers()[None] == pytest.approx(1.0)  # the tables write no answers
    assert "4 islands" in repr(posterior)


def test_islands_over_a_plate_of_problems() -> None:
    pyro.set_rng_seed(2)
    model = reasoning(LM, PRM, "exact", stop=";", max_tokens=MAX_TOKENS, max_steps=MAX_STEPS, temperature=TEMPERATURE)
    posterior = SMC(model, 300, max_plate_nesting=1, islands=3, audit=True).run(["a", "b"])
    assert posterior.log_weights.shape == (900, 2) and posterior.island_log_evidence.shape == (3, 2)
    assert posterior.islands[0].ess.shape == (MAX_STEPS, 2)
    apart = [float(SMC(model, 3000).run(problem).log_evidence) for problem in ("a", "b")]
    torch.testing.assert_close(posterior.log_evidence, torch.tensor(apart).double(), atol=0.15, rtol=0)
    assert len(posterior.marginal(lambda particle: particle.text)) == 2


@pytest.mark.parametrize("islands", [0, 1.5, True])
def test_bad_number_of_islands(islands: Any) -> None:
    with pytest.raises(ValueError, match=rf"islands must be an integer of at least 1, got {islands!r}"):
        SMC(solve, 4, islands=islands)


def test_one_island_is_an_ordinary_filter() -> None:
    pyro.set_rng_seed(3)
    plain = SMC(solve, 20).run("a")
    pyro.set_rng_seed(3)
    one = SMC(solve, 20, islands=1).run("a")
    assert type(one) is ParticlePosterior and torch.equal(one.log_weights, plain.log_weights)
