"""Every cell of the table in docs/model.md: what an idiom of Pyro means under each kind of algorithm.

Programs and exact answers are those of tests/helpers/idioms.py. Estimates are averages over independent replicas in one batch with fixed
seeds; a right one passes for wrong with probability 1e-5 a number if the seed is changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppl_llm.inference import (
    ABMCTS,
    DVTS,
    MCTS,
    PIMH,
    PMMH,
    BeamSearch,
    BestFirst,
    BestOfN,
    Enumeration,
    Importance,
    ParallelTempering,
    ParticleGibbs,
    SelfConsistency,
    SpeculativeRejection,
    SuffixMH,
    TemperedSMC,
    WasteFreeSMC,
    barrier,
    replicate,
)
from ppl_llm.inference import (
    SMC as ParticleFilter,
)
from tests.helpers.idioms import CHAINS, ENUMERATION, IDIOMS, KINDS, SEARCHES, SMC, TEMPERING, Idiom, named
from tests.helpers.mutants import WRONG_SEMANTICS, note_of_whole_plates

REPLICAS, ITERATIONS, LIMIT = 1500, 25, 4.4

Build = Callable[[Callable[..., Any], int, Any], Any]

ALGORITHMS: dict[str, dict[str, Build]] = {
    SMC: {
        "SMC": lambda m, n, q: ParticleFilter(m, 3, ess_threshold=1.0, proposals=q, max_plate_nesting=n),
        "Importance": lambda m, n, q: Importance(m, 3, proposals=q, max_plate_nesting=n),
    },
    CHAINS: {
        "ParticleGibbs": lambda m, n, q: ParticleGibbs(m, 3, ess_threshold=1.0, proposals=q, max_plate_nesting=n),
        "ancestor sampling": lambda m, n, q: ParticleGibbs(
            m, 3, ess_threshold=1.0, ancestor_sampling=True, proposals=q, max_plate_nesting=n
        ),
        "SuffixMH": lambda m, n, q: SuffixMH(m, proposals=q, max_plate_nesting=n),
        "PIMH": lambda m, n, q: PIMH(m, 3, proposals=q, max_plate_nesting=n),
    },
    TEMPERING: {
        "TemperedSMC": lambda m, n, q: TemperedSMC(
            m, 4, betas=[0.4, 1.0], kernel=partial(SuffixMH, proposals=q), ess_threshold=1.0, max_plate_nesting=n
        ),
        "WasteFreeSMC": lambda m, n, q: WasteFreeSMC(
            m, 4, chain_length=2, betas=[0.4, 1.0], kernel=partial(SuffixMH, proposals=q), max_plate_nesting=n
        ),
        "ParallelTempering": lambda m, n, q: ParallelTempering(m, [0.4, 1.0], partial(SuffixMH, proposals=q), max_plate_nesting=n),
    },
    ENUMERATION: {"Enumeration": lambda m, n, q: Enumeration(m)},
    SEARCHES: {
        "BeamSearch": lambda m, n, q: BeamSearch(m, 2, 2, max_plate_nesting=n),
        "DVTS": lambda m, n, q: DVTS(m, 2, 2, max_plate_nesting=n),
        "lookahead": lambda m, n, q: BeamSearch(m, 2, 2, lookahead=1, filter_duplicates=True, max_plate_nesting=n),
        "SpeculativeRejection": lambda m, n, q: SpeculativeRejection(m, 4, max_plate_nesting=n),
        "BestFirst": lambda m, n, q: BestFirst(m, expand=2, budget=12, max_plate_nesting=n),
        "MCTS": lambda m, n, q: MCTS(m, 12, 3, max_plate_nesting=n),
        "ABMCTS": lambda m, n, q: ABMCTS(m, 12, 3, value="rollout", max_plate_nesting=n),
    },
}

CELLS = [
    (row, kind, name)
    for row, idiom in IDIOMS.items()
    for kind in KINDS
    if idiom.cells.get(kind, "") is not None
    for name in ALGORITHMS[kind]
]


def wrong(idiom: Idiom, kind: str, name: str) -> str:
    """What a cell does that it should not; nothing is ``""``."""
    pyro.set_rng_seed(1)
    idiom.seen.clear()
    words = idiom.cells.get(kind)
    try:
        posterior = run(idiom, kind, ALGORITHMS[kind][name])
        if words:
            return f"was not refused: {words}"
        compare = {ENUMERATION: enumerates, SEARCHES: votes}.get(kind, evidence if has_evidence(posterior) else distribution)
        return compare(idiom, posterior)
    except Exception as error:  # a wrong engine may break anything
        refused = isinstance(error, ValueError) and words and re.search(words, str(error))
        return "" if refused else f"{type(error).__name__}: {error}"


def run(idiom: Idiom, kind: str, build: Build) -> Any:
    """The posterior; of a chain that after some iterations."""
    if kind in (ENUMERATION, SEARCHES):
        return build(idiom.program, idiom.nesting if kind == SEARCHES else 0, None).run()
    built = build(replicate(idiom.program, REPLICAS, idiom.nesting), idiom.nesting + 1, idiom.proposals)
    if not hasattr(built, "step"):
        return built.run()
    state = built.start()
    for _ in range(ITERATIONS):
        posterior, state = built.step(state)
    posterior.of_chain = True
    return posterior


def has_evidence(posterior: Any) -> bool:
    return not hasattr(posterior, "of_chain")


def evidence(idiom: Idiom, posterior: Any) -> str:
    """Evidence, and means weighted by it: both are unbiased for any number of particles."""
    ratio = posterior.log_evidence.exp() / idiom.evidence()
    estimates = {"evidence": (ratio, 1.0)}
    for site, mean in named(posterior, idiom.means()).items():
        estimates[site] = (ratio * mean, idiom.means()[site])
    return compared(estimates)


def distribution(idiom: Idiom, posterior: Any) -> str:
    """Of the chains after so many iterations."""
    means = idiom.means()
    return compared({site: (mean, means[site]) for site, mean in named(posterior, means).items()})


def compared(estimates: dict[str, tuple[Tensor, float]]) -> str:
    found = []
    for what, (values, exact) in estimates.items():
        assert values.shape == (REPLICAS,)
        error = float(values.mean()) - exact
        deviation = float(values.std()) / math.sqrt(REPLICAS)
        if not abs(error) <= LIMIT * deviation + 1e-5:
            found.append(f"{what}: {exact + error:.4f}, exactly {exact:.4f}, z = {error / deviation if deviation else math.inf:.1f}")
    return "; ".join(found)


def enumerates(idiom: Idiom, posterior: Any) -> str:
    pairs = [("evidence", float(posterior.log_evidence.exp()), idiom.evidence())]
    for site, mean in named(posterior, [site for site in idiom.means() if site in posterior.sites]).items():
        pairs.append((site, float(mean), idiom.means()[site]))
    return "; ".join(f"{what}: {found:.6f}, exactly {exact:.6f}" for what, found, exact in pairs if not abs(found - exact) < 1e-5)


def votes(idiom: Idiom, posterior: Any) -> str:
    """Searches have no target: their weights are normalised over candidates."""
    weights = posterior.weights.reshape(posterior.num_particles, -1)
    return "" if torch.allclose(weights.sum(0), torch.ones((), dtype=torch.float64)) else "the weights do not add up to one"


@pytest.mark.parametrize(("row", "kind", "name"), CELLS, ids=[f"{row}-{name}" for row, _, name in CELLS])
def test_a_cell_of_the_table(row: str, kind: str, name: str) -> None:
    assert wrong(IDIOMS[row], kind, name) == ""


@pytest.mark.parametrize("name", WRONG_SEMANTICS)
def test_rejects_other_meanings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this package did before: each gives wrong numbers, or none of the refusals."""
    mutant, target, row, kind, algorithm = WRONG_SEMANTICS[name]
    assert wrong(IDIOMS[row], kind, algorithm) == ""
    monkeypatch.setattr(target, mutant)
    assert wrong(IDIOMS[row], kind, algorithm) != ""


def documented() -> dict[str, tuple[str, ...]]:
    """The table of docs/model.md: a verdict for each kind of algorithm."""
    section = (Path(__file__).parents[2] / "docs/model.md").read_text().split("## What each Pyro idiom means here")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("| ")]
    assert tuple(rows[0][2:]) == KINDS
    return {row[0]: tuple(row[2:]) for row in rows[1:]}


def test_the_table_says_what_the_cells_do() -> None:
    def verdict(idiom: Idiom, kind: str) -> str:
        words = idiom.cells.get(kind, "")
        return "-" if words is None else "refused" if words else "runs" if kind == SEARCHES else "exact"

    assert documented() == {row: tuple(verdict(idiom, kind) for kind in KINDS) for row, idiom in IDIOMS.items()}


# Beyond the table ------------------------------------------------------------------------------------------------------------------------


def test_votes_run_a_model_once_and_integrate_hidden_sites_out() -> None:
    hidden = IDIOMS["`poutine.block`"].program
    for search in (BestOfN(hidden, 4), SelfConsistency(hidden, 4)):
        assert float(search.run().weights.sum()) == pytest.approx(1.0)


def test_slices_and_audits_refuse_random_numbers_that_they_would_not_meet_again() -> None:
    """The first slice is not the place: nothing is run again yet. The error tells between which sites they were drawn."""

    def model() -> Tensor:
        z = torch.zeros(())
        for t in range(2):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(z.sigmoid()))
            z = z + torch.rand_like(z)
            pyro.factor(f"f_{t}", -z)
            z = barrier(z)
        return z

    where = "between sample site 'z_0' and sample site 'f_0'"
    ParticleFilter(model, 3).run()
    with pytest.raises(ValueError, match=where):
        ParticleFilter(model, 3, audit=True).run()
    slices = ParticleFilter(model, 3).iterate()
    assert not next(slices).complete
    with pytest.raises(ValueError, match="outside of visible sites, between the start of the model and its barrier"):
        next(slices)
    with pytest.raises(ValueError, match=where):
        Enumeration(model).run()


@pytest.mark.parametrize("source", ["random.random()", "np.random.rand()"])
def test_random_numbers_of_python_and_numpy_are_noticed_too(source: str) -> None:
    import random

    import numpy as np

    def model() -> Tensor:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        z = barrier(z)
        pyro.factor("f", z * eval(source, {"random": random, "np": np}))
        return z

    with pytest.raises(ValueError, match=r"between barrier 0 and the end of the model"):
        SuffixMH(model).run(3)


def test_a_random_number_from_the_initial_value_of_a_parameter_is_no_hidden_one() -> None:
    pyro.clear_param_store()

    def model() -> Tensor:
        scale = pyro.param("scale", lambda: torch.rand(()) + 1.0)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", -scale * z**2)
        return barrier(z)  # type: ignore[no-any-return]

    assert SuffixMH(model).run(3).sites["z"].shape == (6,)
    pyro.clear_param_store()


def test_states_in_slices_keep_the_values_that_a_model_overwrites() -> None:
    """Exactly: each step adds one to what was drawn, wherever it resamples."""

    def model() -> Tensor:
        total = torch.zeros(6)
        for t in range(3):
            x = pyro.sample(f"x_{t}", dist.Bernoulli(0.5))
            pyro.factor(f"f_{t}", x)
            total += x
            x += 5
            total = barrier(total)
        total += 100
        return total

    for threshold in (0.0, 1.0):
        pyro.set_rng_seed(0)
        states = list(ParticleFilter(model, 6, ess_threshold=threshold).iterate())
        for t, state in enumerate(states[:-1]):
            sites = [state.sites[f"x_{s}"] for s in range(t + 1)]
            assert set(torch.stack(sites).unique().tolist()) <= {0.0, 1.0}
            assert torch.equal(state.value, sum(sites))
        assert torch.equal(states[-1].value, states[-1].sites["x_0"] + states[-1].sites["x_1"] + states[-1].sites["x_2"] + 100)


def test_an_audit_leaves_a_posterior_as_it_is() -> None:
    program = IDIOMS["operations in place"].program
    pyro.set_rng_seed(0)
    plain = ParticleFilter(program, 8, ess_threshold=1.0).run()
    pyro.set_rng_seed(0)
    audited = ParticleFilter(program, 8, ess_threshold=1.0, audit=True).run()
    for name in ("z_0", "z_1"):
        assert torch.equal(plain.sites[name], audited.sites[name])


def test_deterministic_sites_have_the_shape_of_their_values() -> None:
    """One value for each particle, or one for all that takes no memory for each."""
    posterior = ParticleFilter(replicate(IDIOMS["`pyro.deterministic`"].program, 5, 0), 400, max_plate_nesting=1).run()
    assert posterior.sites["note"].shape == (400, 5)
    assert torch.equal(posterior.sites["note"], 1 - posterior.sites["z_0"])
    assert posterior.sites["shared"].shape == (400, 5, 7) and posterior.sites["shared"].stride()[:2] == (0, 0)

    def model() -> Tensor:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("pair", torch.stack([z, -z], -1), event_dim=1)
        pyro.deterministic("three", torch.stack([z, z, z], -1))
        return barrier(z)  # type: ignore[no-any-return]

    posterior = ParticleFilter(model, 4, ess_threshold=1.0).run()
    assert posterior.sites["pair"].shape == (4, 2) and posterior.sites["three"].shape == (4, 3)
    assert torch.equal(posterior.sites["pair"][:, 0], posterior.sites["z"])


def notes_in_plates() -> dict[str, Any]:
    """Deterministic sites of 4 particles, 3 problems and 2 elements that lack some of the plates' dimensions."""

    def model() -> Tensor:
        with pyro.plate("problems", 3, dim=-2):
            x = pyro.sample("x", dist.Normal(torch.zeros(3, 1), 1.0))
            pyro.factor("f", 0.3 * x)
            x = barrier(x)
            with pyro.plate("elements", 2, dim=-1):
                y = pyro.sample("y", dist.Normal(x, torch.ones(2)))
                pyro.deterministic("by particle", x.sum((-2, -1)))
                pyro.deterministic("by problem", x[..., 0])
                pyro.deterministic("full", x + y)
                pyro.deterministic("five", x.sum((-2, -1))[:, None].expand(4, 5))
                pyro.deterministic("pair of each problem", torch.stack([x[..., 0]] * 7, -1))
                pyro.deterministic("shared", torch.arange(7))
        return y

    pyro.set_rng_seed(0)
    return ParticleFilter(model, 4, ess_threshold=1.0, max_plate_nesting=2).run().sites


def shapes_of_notes(sites: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in sites.items() if name not in ("x", "y")}


NOTES = {
    "by particle": (4, 3, 2),
    "by problem": (4, 3, 2),
    "full": (4, 3, 2),
    "five": (4, 3, 2, 5),
    "pair of each problem": (4, 3, 2, 7),
    "shared": (4, 3, 2, 7),
}


def test_deterministic_sites_may_lack_the_dimensions_of_plates() -> None:
    """``[N]`` inside of a plate is one value for each particle, wherever it is resampled."""
    sites = notes_in_plates()
    assert shapes_of_notes(sites) == NOTES
    assert torch.equal(sites["by problem"], sites["x"].expand(4, 3, 2)) and torch.equal(sites["full"], sites["x"] + sites["y"])
    assert torch.equal(sites["pair of each problem"][..., 6], sites["x"].expand(4, 3, 2))
    torch.testing.assert_close(sites["by particle"], sites["x"].sum((-2, -1), keepdim=True).expand(4, 3, 2))


def test_rejects_notes_of_pairs_in_plates() -> None:
    """What was recorded before: 4 x 3 x 2 x 4 numbers for 4."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppl_llm.inference.particles.particle_system.ParticleSystem.note", note_of_whole_plates)
        assert shapes_of_notes(notes_in_plates())["by particle"] == (4, 3, 2, 4)


def test_masks_of_parameters_keep_their_prior() -> None:
    """PMMH walks in a parameter whose mask is false as in one of the prior: P(theta > 0) is .5, not that of a flat density."""

    def model() -> Tensor:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0).mask(torch.tensor(False)))
        pyro.factor("f", 0.0 * theta)
        return barrier(theta)  # type: ignore[no-any-return]

    pyro.set_rng_seed(0)
    kernel = PMMH(replicate(model, 2000, 0), 1, ["theta"], step_size=2.0, max_plate_nesting=1)
    state = kernel.start()
    for _ in range(15):
        _, state = kernel.step(state)
    assert float(state["theta"].square().mean()) == pytest.approx(1.0, abs=4.4 * math.sqrt(2 / 2000))


def test_what_cannot_be_taken_apart_is_refused_by_name() -> None:
    def hidden_mask() -> Tensor:
        base = dist.Normal(0.0, 1.0).mask(torch.tensor(True))
        return pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.ExpTransform()]))  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="the mask of site 'z' lies inside of its TransformedDistribution; mask the whole"):
        SuffixMH(hidden_mask).run(2)

    def model() -> Tensor:
        return pyro.sample("z", dist.Normal(0.0, 1.0))  # type: ignore[no-any-return]

    masked = dist.Normal(0.0, 1.0).mask(torch.tensor(True))
    with pytest.raises(ValueError, match="the proposal of site 'z' is masked; mask the site itself"):
        ParticleFilter(model, 4, proposals={"z": masked}).run()


def test_a_run_keeps_its_subsample_and_another_run_draws_its_own() -> None:
    """Under Pyro's driver, in slices from a file, and in the step after a step."""
    idiom = IDIOMS["`subsample_size`, shared latent"]
    seen = idiom.seen
    drawn = set()
    for seed in range(6):
        pyro.set_rng_seed(seed)
        seen.clear()
        pyro.infer.MCMC(PIMH(idiom.program, 2, max_plate_nesting=1), num_samples=3, warmup_steps=1, disable_progbar=True).run()
        assert len(seen) > 3 and all(index == seen[0] for index in seen)
        drawn.add(tuple(seen[0]))
        seen.clear()
        list(ParticleFilter(idiom.program, 2, max_plate_nesting=1).iterate())
        assert len(seen) > 1 and all(index == seen[0] for index in seen)
        drawn.add(tuple(seen[0]))
    assert len(drawn) > 2


def test_two_runs_inside_of_a_model_are_runs_of_their_own() -> None:
    """The subsamples of a nested run are none of those of the run around it."""
    idiom = IDIOMS["`subsample_size`, shared latent"]
    idiom.seen.clear()

    def outer() -> Tensor:
        for _ in range(8):
            ParticleFilter(idiom.program, 2, max_plate_nesting=1).run()
        return pyro.sample("x", dist.Bernoulli(0.5))  # type: ignore[no-any-return]

    pyro.set_rng_seed(0)
    ParticleFilter(outer, 3).run()
    assert len(idiom.seen) == 8 and len(set(map(tuple, idiom.seen))) > 1


def test_given_values_belong_to_every_particle() -> None:
    posterior = ParticleFilter(replicate(IDIOMS["`poutine.replay`"].program, 3, 0), 4, max_plate_nesting=1).run()
    assert posterior.sites["z_0"].shape == (4, 3) and bool((posterior.sites["z_0"] == 1).all())
    assert poutine.trace(IDIOMS["`poutine.replay`"].program).get_trace().nodes["z_0"]["value"].item() == 1


@pytest.mark.parametrize("shown", [True, False])
def test_a_mask_without_dimensions_is_that_of_all_particles(shown: bool) -> None:
    """P(y) = .6 * .3 + .4 * .9 = .54 where the observation counts, 1 where it does not."""

    def model() -> Tensor:
        z = pyro.sample("z", dist.Bernoulli(0.4))
        with poutine.mask(mask=torch.tensor(shown)):
            pyro.sample("masked", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Bernoulli(0.3 + 0.6 * z), obs=torch.tensor(1.0))
        return barrier(z)

    assert Enumeration(model).run().log_evidence.exp().item() == pytest.approx(0.54 if shown else 1.0)
    SuffixMH(model).run(2)
    ParticleGibbs(model, 2, ancestor_sampling=True, ess_threshold=1.0).run(2)
