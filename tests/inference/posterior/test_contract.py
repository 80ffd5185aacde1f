"""One contract: every algorithm's result answers the same questions, or refuses them in the same words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm import Context
from ppl_llm.inference import DiscreteMarginal, Enumeration, Importance, ParticlePosterior, PooledPosterior, Trajectory, barrier
from tests.helpers.algorithms import ALGORITHMS, LISTED, SEARCHES
from tests.helpers.reasoning import MAX_STEPS, solve

EVERY = [*ALGORITHMS, *SEARCHES, "Enumeration", "a pool", "a replica of particle Gibbs", "an iteration of particle Gibbs"]
NO_PLATES = ("Enumeration", *LISTED)  # the latter run each problem alone, and give a list of results
NO_EVIDENCE = {name for name, algorithm in ALGORITHMS.items() if not algorithm.evidence} | {*SEARCHES, *EVERY[-3:]}


def asked(problem: Any) -> Context:
    """A program with a parameter, which PMMH needs; enumeration takes a coin."""
    pyro.sample("factor", dist.Gamma(torch.tensor(3.0), torch.tensor(2.0)))
    return solve(problem)


def problem() -> Context:
    return asked("a")


def problems() -> Context:
    with pyro.plate("problems", 3, dim=-1):
        return asked(["a", "b", "ba"])


def half_dead() -> Tensor:
    """Two problems, of which the second is impossible."""
    with pyro.plate("problems", 2, dim=-1):
        pyro.sample("factor", dist.Gamma(torch.full((2,), 3.0), torch.tensor(2.0)))
        x = pyro.sample("x", dist.Bernoulli(torch.full((2,), 0.5)))
        pyro.factor("wall", torch.where(torch.arange(2) == 1, -torch.inf, x))
        return barrier(x)


def run(name: str, program: Callable[[], Any], nesting: int) -> ParticlePosterior:
    pyro.set_rng_seed(0)
    if name == "Enumeration":
        return Enumeration(lambda: solve("a")).run()
    if name == "a pool":
        parts = [Importance(program, 4, max_plate_nesting=nesting).run() for _ in range(2)]
        return PooledPosterior(parts, [part.particles.weights.normalized.log() for part in parts], {"seconds": 1.0})
    if "of particle Gibbs" in name:
        chain = run("ParticleGibbs, two references" if "replica" in name else "ParticleGibbs", program, nesting)
        found = chain.iterations[-1]
        found.cost = chain.cost
        return found
    build, options = (ALGORITHMS[name].build, ALGORITHMS[name].run) if name in ALGORITHMS else (SEARCHES[name], {})
    posterior: ParticlePosterior = build(program, nesting).run(**{option: min(count, 5) for option, count in options.items()})
    return posterior


def flat(marginals: Any) -> list[DiscreteMarginal]:
    return [each for nested in marginals for each in flat(nested)] if isinstance(marginals, list) else [marginals]


CASES = [(name, plates) for name in EVERY for plates in (False, True) if not (plates and name in NO_PLATES)]


@pytest.mark.parametrize(("name", "plates"), CASES)
def test_every_result_answers_the_same_questions(name: str, plates: bool) -> None:
    posterior = run(name, problems if plates else problem, int(plates))
    n, shape = posterior.num_particles, (3,) if plates else ()
    alike = {"log_weights": posterior.log_weights, "weights": posterior.weights}
    for tensor in alike.values():
        assert tensor.shape == (n, *shape) and tensor.dtype == torch.float64
    torch.testing.assert_close(posterior.weights.sum(0), torch.ones(shape, dtype=torch.float64))
    assert posterior.dead.shape == shape and posterior.dead.dtype == torch.bool and not posterior.dead.any()
    assert all(value.shape[: 1 + len(shape)] == (n, *shape) for value in posterior.sites.values())
    steps = len(posterior.ess)
    assert posterior.ess.shape == posterior.resampled.shape == (steps, *shape) and posterior.resampled.dtype == torch.bool
    assert posterior.ancestors.shape == (steps, n, *shape) and posterior.ancestors.dtype == torch.long
    assert posterior.complete is True and posterior.cost["seconds"] > 0
    assert posterior.audit is None and posterior.num_barriers >= 0
    for marginal in flat(posterior.answers()) + flat(posterior.marginal(lambda ctx: ctx.text)):
        assert isinstance(marginal, DiscreteMarginal) and sum(marginal.probs.values()) == pytest.approx(1.0)
    assert len(flat(posterior.answers())) == (3 if plates else 1)
    assert isinstance(posterior.draw(), Trajectory) and posterior.value.num_steps <= MAX_STEPS


@pytest.mark.parametrize(("name", "plates"), CASES)
def test_evidence_or_a_refusal_in_the_same_words(name: str, plates: bool) -> None:
    posterior = run(name, problems if plates else problem, int(plates))
    figures = posterior.diagnostics()
    assert json.loads(json.dumps(figures)) == figures
    if name in NO_EVIDENCE:
        with pytest.raises(ValueError, match=r"\bgives no evidence\b") as caught:
            _ = posterior.log_evidence
        assert figures["no_evidence"] == str(caught.value) and "log_evidence" not in figures
    else:
        evidence = posterior.log_evidence
        assert evidence.shape == ((3,) if plates else ()) and evidence.dtype == torch.float64
        assert figures["log_evidence"] == evidence.tolist() and "no_evidence" not in figures
    for question in ("lengths", "log_likelihood"):
        try:
            assert getattr(posterior, question).shape == posterior.weights.shape
        except ValueError as refusal:
            assert re.fullmatch(rf"this \w+ does not know {question}, which only algorithms that run and score particles do", str(refusal))


@pytest.mark.parametrize("name", [name for name in EVERY if name not in NO_PLATES])
def test_every_result_tells_what_is_dead(name: str) -> None:
    """A problem that nothing can satisfy, beside one that is alive; only votes without rewards do not look."""
    posterior = run(name, half_dead, 1)
    if name in ("SelfConsistency", "TwoStageVote"):
        assert not posterior.dead.any()
        return
    assert posterior.dead.tolist() == [False, True] == posterior.diagnostics()["dead"]
    torch.testing.assert_close(posterior.weights.sum(0), torch.tensor([1.0, 0.0], dtype=torch.float64))
    alive, dead = posterior.marginal(float)
    assert sum(alive.probs.values()) == pytest.approx(1.0) and len(dead) == 0
    with pytest.raises(ValueError, match="every particle of problem 1 has weight zero, so there is nothing to draw"):
        posterior.draw()
    assert "nan" not in repr(posterior)
    if name not in NO_EVIDENCE:
        assert torch.equal(posterior.log_evidence == -torch.inf, posterior.dead)


def test_refusals_of_answers_and_files_are_the_same() -> None:
    for name in (*ALGORITHMS, *(search for search in SEARCHES if search not in LISTED)):
        posterior = run(name, half_dead, 1)
        with pytest.raises(TypeError, match=r"answers\(\) needs a model that returns its context, this one returned Tensor"):
            posterior.answers()
        if posterior.checkpoint is None:
            with pytest.raises(ValueError, match=r"this \w+ cannot be saved; states of SMC.run, SMC.iterate and its callback can"):
                posterior.save("nowhere")
