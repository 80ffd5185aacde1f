"""Particle Gibbs leaves the posterior invariant, exactly: pi K = pi by transition matrices of the real conditional sweep."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from pyro.infer import MCMC
from torch import Tensor

from ppl_llm.inference import ParticleGibbs, ReferenceMessenger, ssp
from ppl_llm.inference.resampling import CONDITIONAL_RESAMPLERS
from tests.exact import PAD, Chain, Path, chains
from tests.inference.test_smc_exact import EXACT, spiky
from tests.mutants import WRONG_CONDITIONAL

exactly = settings(max_examples=4, deadline=None, derandomize=True)


def conditional_cuts(scheme: str, log_weights: Tensor, reference: Tensor, k: int) -> Tensor:
    """Edges of the cells of the k-th uniform in which the outcome of conditional resampling is constant: ``[C + 1, columns]``."""
    n = log_weights.shape[0]
    weights = log_weights.softmax(0)
    cdf = weights.cumsum(0)
    mass = weights.gather(0, reference[None])[0]
    below = cdf.gather(0, reference[None])[0] - mass
    inner = cdf[:-1]
    last = k == (n if scheme in ("stratified", "residual") else -1)
    if scheme == "systematic":
        # Slots change at integers of N v, the others' ancestors where the comb meets a step of the distribution function.
        offsets = torch.cat([torch.zeros_like(inner[:1]), (n * inner) % 1.0])
        points = (torch.arange(n)[:, None, None] + offsets).flatten(0, 1)
        inner = (points / n - below) / mass
    elif scheme == "stratified":
        inner = (torch.arange(1, n)[:, None] / n - below) / mass if last else n * inner - k
    elif scheme == "residual":
        expected = n * weights
        certain = expected.floor()
        if last:
            copies, drawn = certain.gather(0, reference[None])[0], n - certain.sum(0)
            rest = n * mass - copies
            whole = torch.arange(1, n + 1)[:, None].expand(n, len(mass)).minimum(copies)
            parts = copies + rest * (torch.arange(1, n + 1)[:, None] / drawn.clamp(min=1)).clamp(max=1)
            inner = torch.cat([whole, parts]) / (n * mass)
        else:
            rest = expected - certain
            inner = rest.cumsum(0)[:-1] / rest.sum(0).clamp(min=1e-300)
    elif scheme == "one fewer":
        inner = (((n - 1) * inner) % 1.0).repeat(n, 1)
    edges = torch.cat([torch.zeros_like(mass)[None], inner.clamp(0, 1).sort(0).values, torch.ones_like(mass)[None]])
    return edges


def num_cells(scheme: str, n: int) -> list[int]:
    """Cells of each uniform."""
    if scheme in ("systematic", "one fewer"):
        return [n * n + 1 if scheme == "systematic" else n * (n - 1) + 1]
    return [n] * n if scheme == "multinomial" else [n] * n + [n if scheme == "stratified" else 2 * n + 1]


class EnumeratedConditional:
    """Calls the real conditional scheme at the midpoint of a cell of its uniforms, a cell per column."""

    def __init__(self, scheme: Any, cuts: str, cells: Tensor) -> None:
        self.scheme, self.cuts, self.cells = scheme, cuts, cells
        self.log_prob: list[Tensor] = []
        self.__name__ = cuts

    def num_uniforms(self, n: int) -> int:
        return 1

    num_conditional_uniforms = num_uniforms

    def conditional(self, log_weights: Tensor, reference: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        points, total = [], torch.zeros(log_weights.shape[1], dtype=torch.float64)
        for k, cell in enumerate(self.cells[len(self.log_prob)]):
            edges = conditional_cuts(self.cuts, log_weights, reference, k)
            low, high = edges.gather(0, cell[None])[0], edges.gather(0, cell[None] + 1)[0]
            points.append((low + high) / 2)
            total = total + (high - low).clamp(min=0).log()
        self.log_prob.append(total)
        return self.scheme.conditional(log_weights, reference, torch.stack(points))


def invariance_error(model: Chain, n: int, scheme: str, ess_threshold: float, wrong: Any = None) -> float:
    """max |pi K - pi| of one conditional sweep followed by a draw from its weights."""
    v, length = model.num_symbols, model.length
    paths = model.paths()
    references = torch.tensor(list(paths))
    cells = num_cells(scheme, n)
    sizes = [len(paths)] + [v] * (length * (n - 1)) + cells * length
    grid = torch.tensor(list(itertools.product(*map(range, sizes)))).T.contiguous()
    columns = grid.shape[1]
    which, chosen_cells = grid[0], grid[1 + length * (n - 1) :].view(length, len(cells), columns)
    free = grid[1 : 1 + length * (n - 1)].view(length, n - 1, columns)
    path = Path(columns)
    reference = {f"x_{t}": references[which, t] for t in range(length)}
    resampler = EnumeratedConditional(wrong or CONDITIONAL_RESAMPLERS[scheme], scheme, chosen_cells)

    class Forced(ReferenceMessenger):
        """Free lanes take the enumerated values; the reference's lane is left to the real engine."""

        def _pyro_sample(self, msg: Any) -> None:
            if msg["name"] not in self.reference:
                return
            t = int(msg["name"].split("_")[1])
            lanes = torch.arange(n)[:, None]
            slot = self.slot.expand(columns)
            place = (lanes - (lanes > slot).long()).clamp(max=n - 2)
            forced = free[t].gather(0, place) if n > 1 else torch.zeros(1, columns, dtype=torch.long)
            is_free = lanes != slot
            msg["value"] = torch.where(msg["fn"].active, forced, PAD)
            log_p = torch.where(msg["fn"].active, msg["fn"].log_prob(msg["value"]), -math.log(v))
            path.log_prob = path.log_prob + torch.where(is_free, log_p, 0.0).sum(0)
            super()._pyro_sample(msg)

    messenger = Forced(n, 1, resampler, ess_threshold, reference=reference)  # type: ignore[arg-type]
    with torch.no_grad(), messenger, pyro.plate("_particles", n, dim=-2):
        value = model(columns)
    posterior = messenger.posterior(value)
    unused = -sum(map(math.log, cells))
    calls = iter(resampler.log_prob)
    for taken in posterior.resampled:
        path.log_prob = path.log_prob + (torch.where(taken, next(calls), unused) if bool(taken.any()) else unused)
    pi = torch.tensor(list(paths.values()), dtype=torch.float64)
    pi = pi / pi.sum()
    codes = sum((posterior.sites[f"x_{t}"] + 1) * (v + 1) ** t for t in range(length))
    table = torch.zeros((v + 1) ** length, dtype=torch.float64)
    table.index_add_(0, codes.flatten(), (pi[which] * path.log_prob.exp() * posterior.weights).flatten())
    expected = torch.zeros_like(table)
    expected[sum((references[:, t] + 1) * (v + 1) ** t for t in range(length))] = pi
    return float((table - expected).abs().max())


@pytest.mark.parametrize("ess_threshold", [0.7, 1.0])
@pytest.mark.parametrize(("scheme", "length"), [("multinomial", 3), ("systematic", 3), ("stratified", 2), ("residual", 2)])
@exactly
@given(data=chains(length=3))
def test_two_particles(scheme: str, length: int, ess_threshold: float, data: Chain) -> None:
    model = Chain(data.init, data.transition, data.potentials[:length], data.ends)
    assert invariance_error(model, 2, scheme, ess_threshold) < EXACT


@pytest.mark.parametrize("scheme", ["multinomial", "systematic"])
def test_three_particles(scheme: str) -> None:
    """Two are too few to tell some wrong schemes from right ones."""
    model = spiky()
    model.potentials = model.potentials[:2]
    assert invariance_error(model, 3, scheme, 1.0) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["stratified", "residual"])
def test_three_particles_slow(scheme: str) -> None:
    model = spiky(ends=False)
    model.potentials = model.potentials[:1]
    model.potentials.append(torch.ones(9, dtype=torch.float64))
    assert invariance_error(model, 3, scheme, 0.7) < EXACT


@pytest.mark.parametrize("name", WRONG_CONDITIONAL)
def test_rejects_wrong_conditional_schemes(name: str) -> None:
    """Two particles are too few to tell the last one."""
    wrong, cells, n = WRONG_CONDITIONAL[name]
    model = spiky(ends=False)
    model.potentials = model.potentials[:2]
    assert invariance_error(model, n, cells, 1.0, wrong=wrong) > 1e-3


@pytest.mark.parametrize("ess_threshold", [0.5, 1.0])
def test_the_engine_keeps_the_posterior_with_references_of_any_length(ess_threshold: float) -> None:
    """100 000 references from the exact posterior, one sweep: chi-square over all paths (false alarm 1e-6)."""
    pyro.set_rng_seed(0)
    model, replicates = spiky(), 100_000
    paths = model.paths()
    table = torch.tensor(list(paths))
    pi = torch.tensor(list(paths.values())) / sum(paths.values())
    drawn = table[torch.multinomial(pi, replicates, replacement=True)]
    kernel = ParticleGibbs(model, 3, ess_threshold=ess_threshold, max_plate_nesting=1)
    after = kernel.sweep({f"x_{t}": drawn[:, t] for t in range(3)}, replicates).draw()
    moved = torch.stack([after[f"x_{t}"] for t in range(3)], -1)
    counts = torch.tensor([int((moved == row).all(-1).sum()) for row in table])
    expected = replicates * pi
    chi2, df = float(((counts - expected) ** 2 / expected).sum()), len(table) - 1
    assert chi2 < df + 4.9 * math.sqrt(2 * df) + 16  # Laurent & Massart (2000): P < 1e-5 beyond
    assert 0.2 < float((moved == drawn).all(-1).double().mean()) < 0.95  # it moves


def single(model: Chain) -> Any:
    return lambda: model(1)


def test_one_particle_never_moves() -> None:
    pyro.set_rng_seed(1)
    kernel = ParticleGibbs(single(spiky()), 1, max_plate_nesting=1)
    posterior = kernel.run(5)
    assert len({tuple(posterior.sites[f"x_{t}"][i].item() for t in range(3)) for i in range(5)}) == 1


def test_chain_of_filters_finds_the_posterior() -> None:
    pyro.set_rng_seed(2)
    model = spiky()
    paths = model.paths()
    total = sum(paths.values())
    posterior = ParticleGibbs(single(model), 8, max_plate_nesting=1).run(600, warmup_steps=10)
    assert posterior.num_particles == 4800 and len(posterior.iterations) == 600
    code = {sum((v + 1) * 3 ** (2 - t) for t, v in enumerate(path)): mass / total for path, mass in paths.items()}
    marginal = posterior.marginal(int)
    answer = marginal[0] if isinstance(marginal, list) else marginal
    assert sum(abs(answer.prob(c) - p) for c, p in code.items()) / 2 < 0.06
    with pytest.raises(ValueError, match="gives no evidence"):
        _ = posterior.log_evidence


def test_pyro_drives_the_kernel() -> None:
    pyro.set_rng_seed(3)
    model = spiky()
    paths = model.paths()
    chain = MCMC(ParticleGibbs(single(model), 6, max_plate_nesting=1), num_samples=500, warmup_steps=5, disable_progbar=True)
    chain.run()
    samples = chain.get_samples()
    first = samples["x_0"].flatten()
    p = sum(mass for path, mass in paths.items() if path[0] == 1) / sum(paths.values())
    assert abs(float((first == 1).double().mean()) - p) < 0.12


def test_bad_arguments_and_interruption() -> None:
    with pytest.raises(ValueError, match=r"unknown conditional resampler 'ssp'\. Known: multinomial"):
        ParticleGibbs(spiky(), 4, resampler="ssp")
    with pytest.raises(ValueError, match="'ssp' has no conditional form"):
        ParticleGibbs(spiky(), 4, resampler=ssp)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_particles must be an integer of at least 1, got 0"):
        ParticleGibbs(spiky(), 0)
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1, got 0"):
        ParticleGibbs(single(spiky()), 2, max_plate_nesting=1).run(0)
    calls = []

    def stops() -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return spiky()(1)

    with pytest.raises(KeyboardInterrupt) as caught:
        ParticleGibbs(stops, 2, max_plate_nesting=1).run(100)
    assert len(caught.value.partial_posterior.iterations) == 3  # type: ignore[attr-defined]
