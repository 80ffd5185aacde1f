"""All algorithms x all models, every cell against the exact answer.

A cell runs independent replicas of an algorithm in one batch (a plate to the left of the model's own) and asks by z-tests whether means
over the replicas are exact: of the evidence, of evidence times posterior mean (both unbiased for any number of particles), for chains of
the posterior mean. Each test has a false alarm rate of 1e-6 (|z| < 4.9, normal approximation); with fewer than 1000 tests that is 1e-3 for
the whole table, once, since seeds are fixed. What a cell can see is bounded too.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from functools import cache
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm.inference import SMC, Enumeration
from ppl_llm.inference.mcmc.replicate import replicate
from tests.helpers import mutants
from tests.helpers.algorithms import ALGORITHMS, ALL, LISTED, SEARCHES, Algorithm
from tests.helpers.models import MODELS, Known
from tests.helpers.mutants import WRONG_WEIGHTS, with_messenger

Z = 4.9


@cache
def known(name: str) -> Known:
    return MODELS[name]()


def z_scores(values: Tensor, exact: float | Tensor, bias: float) -> Tensor:
    """Of the mean over the replicas ``[R, ...]``, ``bias`` allowed; a quantity that never varies must be exact."""
    error, deviation = values.mean(0) - exact, values.std(0) / math.sqrt(len(values))
    error = (error.abs() - bias).clamp(min=0.0)
    return torch.where(deviation > 1e-9, error / deviation.clamp(min=1e-300), torch.where(error < 1e-6, 0.0, math.inf))


def cell(algorithm: Algorithm, model: Known, seed: str, mutate: Any = lambda built: None) -> tuple[Tensor, Tensor]:
    """z-scores of all tests of a cell, and the standard errors they had (relative to Z for evidence)."""
    pyro.set_rng_seed(zlib.crc32(seed.encode()))
    built = algorithm.build(replicate(model.program, algorithm.replicas, model.nesting), model.nesting + 1)
    mutate(built)
    posterior = built.run(**algorithm.run)
    mean = (posterior.weights[..., None] * model.statistic(posterior.sites)).sum(0)  # [R, *plates, K]
    if not algorithm.evidence:
        tests = [(mean, model.mean)]
    else:
        ratio = posterior.log_evidence.exp() / model.evidence
        tests = [(ratio, torch.ones(())), (ratio[..., None] * (mean - model.mean), torch.zeros(()))]
    scores = torch.cat([z_scores(values, exact, algorithm.bias).flatten() for values, exact in tests])
    errors = torch.cat([(values.std(0) / math.sqrt(len(values))).flatten() for values, _ in tests])
    return scores, errors


CELLS = [(a, m) for a, algorithm in ALGORITHMS.items() for m in MODELS if not {m, ALL} & set(algorithm.not_for)]


@pytest.mark.parametrize(("algorithm", "model"), CELLS)
def test_agrees_with_the_exact_answer(algorithm: str, model: str) -> None:
    scores, errors = cell(ALGORITHMS[algorithm], known(model), f"{algorithm} on {model}")
    assert float(scores.max()) < Z
    assert float(errors.max()) < 0.06  # the test can see: an error of 0.3 (of an evidence: 30 %) in the worst cell


@pytest.mark.parametrize("model", [name for name in MODELS if known(name).enumerable])
def test_enumeration_is_exact(model: str) -> None:
    exact = known(model)
    posterior = Enumeration(exact.program).run()
    assert float(posterior.log_evidence.exp()) == pytest.approx(float(exact.evidence), rel=1e-6)
    torch.testing.assert_close(posterior.weights @ exact.statistic(posterior.sites), exact.mean, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("problems", "a plate of the model lies at dim -1, where the particles are: .* enumeration takes models without plates"),
        ("linear gaussian", r"site 'z_0' \(Normal\) has no finite support to enumerate; use SMC or Importance"),
        ("calibrated", r"site 'factor' \(Gamma\) has no finite support to enumerate; use SMC or Importance"),
    ],
)
def test_enumeration_explains_what_it_cannot_do(model: str, message: str) -> None:
    assert not known(model).enumerable
    with pytest.raises(ValueError, match=message):
        Enumeration(known(model).program).run()


@pytest.mark.parametrize(
    ("algorithm", "model", "message"), [(a, m, words) for a, each in ALGORITHMS.items() for m, words in each.not_for.items()]
)
def test_cells_left_out_explain_themselves(algorithm: str, model: str, message: str) -> None:
    """Where an algorithm does not apply, it says why."""
    for name in MODELS if model == ALL else [model]:
        with pytest.raises(ValueError, match=message):
            ALGORITHMS[algorithm].build(known(name).program, known(name).nesting).run(**ALGORITHMS[algorithm].run)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("search", SEARCHES)
def test_searches_run_and_have_no_evidence(search: str, model: str) -> None:
    pyro.set_rng_seed(0)
    exact = known(model)
    if search in LISTED and exact.evidence.dim():
        with pytest.raises(ValueError, match=LISTED[search]):
            SEARCHES[search](exact.program, exact.nesting).run()
        return
    posterior = SEARCHES[search](exact.program, exact.nesting).run()
    plates = exact.evidence.shape
    assert posterior.weights.shape == (6, *plates)
    torch.testing.assert_close(posterior.weights.sum(0), torch.ones(plates, dtype=torch.float64))
    assert exact.statistic(posterior.sites).shape[: 1 + len(plates)] == (6, *plates)
    with pytest.raises(ValueError, match=r"gives no evidence: it .* Run SMC or Importance on the same model"):
        _ = posterior.log_evidence


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_runs_without_plates_and_knows_its_evidence(algorithm: str) -> None:
    """A single population: scalar sites have no batch dimension but that of the particles."""
    pyro.set_rng_seed(0)
    each, name = ALGORITHMS[algorithm], next(name for name in ("hmm", "calibrated") if name not in ALGORITHMS[algorithm].not_for)
    posterior = each.build(known(name).program, 0).run(**{option: min(n, 2) for option, n in each.run.items()})
    assert posterior.weights.shape == (posterior.num_particles,)
    assert float(posterior.weights.sum()) == pytest.approx(1.0)
    assert known(name).statistic(posterior.sites).shape == (posterior.num_particles, known(name).mean.shape[-1])
    if each.evidence:
        assert posterior.log_evidence.shape == () and posterior.log_evidence.isfinite()
    else:
        with pytest.raises(ValueError, match="a Markov chain over trajectories gives no evidence; run SMC, TemperedSMC or Importance"):
            _ = posterior.log_evidence


@pytest.mark.parametrize("model", ["hmm", "tabular", "two sites", "problems", "linear gaussian", "prefix"])
@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_a_wrong_engine_is_rejected_in_its_cell(wrong: str, model: str) -> None:
    """Resampling at every barrier; the engines differ from the right one by 10 % of the evidence and more."""
    if wrong == "overwrite":
        algorithm = Algorithm(lambda model, nesting: SMC(model, 4, ess_threshold=0.3, max_plate_nesting=nesting))
    else:
        algorithm = ALGORITHMS["SMC, multinomial at every barrier"]
    scores, _ = cell(algorithm, known(model), "wrong", with_messenger(WRONG_WEIGHTS[wrong]))
    assert float(scores.max()) > Z


@pytest.mark.parametrize(
    ("wrong", "arguments", "cell_of", "model"),
    [
        (mutants.NoLengthRatio, {}, "SuffixMH", "tabular"),
        (mutants.AcceptsAlways, {"num_particles": 8}, "PIMH", "problems"),
        (mutants.TemperedSwap, {"betas": [0.1, 0.5, 1.0]}, "ParallelTempering", "calibrated"),
        (mutants.StaleLikelihood, {"num_particles": 6, "betas": [0.2, 0.6, 1.0]}, "TemperedSMC", "prefix"),
        (mutants.BehindKernel, {"num_particles": 6, "betas": [0.2, 0.6, 1.0]}, "TemperedSMC", "linear gaussian"),
    ],
)
def test_a_wrong_kernel_is_rejected_in_its_cell(wrong: Any, arguments: dict[str, Any], cell_of: str, model: str) -> None:
    """By more than 8 standard errors, where the right one has less than 4.9."""
    right = ALGORITHMS[cell_of]
    scores, _ = cell(replace(right, build=lambda m, nesting: wrong(m, **arguments, max_plate_nesting=nesting)), known(model), "wrong")
    assert float(scores.max()) > 8
