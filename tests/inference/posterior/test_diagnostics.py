"""Every posterior describes itself: the same keys, plain values, and those that its algorithm adds."""

from __future__ import annotations

import json
from typing import Any

import pyro
import pytest
import torch

from ppl_llm.inference import ParticlePosterior
from tests.helpers.algorithms import ALGORITHMS, LISTED, SEARCHES
from tests.helpers.models import MODELS

CHAIN = {"iterations", "distinct_iterations"}
ADDED: dict[str, set[str]] = {
    "SMC, three islands": {"islands"},
    "TemperedSMC": {"betas", "move_rates"},
    "TemperedSMC of ParticleGibbs": {"betas", "move_rates"},
    "TemperedSMC, adaptive": {"betas", "move_rates"},
    "WasteFreeSMC": {"betas", "move_rates"},
    "ParticleGibbs": CHAIN,
    "ParticleGibbs, systematic": CHAIN,
    "ParticleGibbs, ancestor sampling": CHAIN,
    "ParticleGibbs, two references": CHAIN,
    "SuffixMH": CHAIN | {"acceptance_rate"},
    "BlockMH": CHAIN | {"acceptance_rate"},
    "PrefixWalk": CHAIN | {"acceptance_rate"},
    "PIMH": CHAIN | {"acceptance_rate"},
    "PMMH": CHAIN | {"acceptance_rate", "step_size_scale"},
    "ParallelTempering": CHAIN | {"betas", "swap_rates"},
    "BeamSearch": {"method", "scores"},
    "BeamSearch without duplicates": {"method", "scores"},
    "DVTS": {"method", "scores"},
    "REBASE": {"method", "scores"},
    "BestFirst": {"method", "scores"},
    "MCTS": {"method", "scores"},
    "MCTS, rollouts": {"method", "scores"},
    "BeamSearch, lookahead": {"method", "scores"},
    "DVTS, lookahead": {"method", "scores"},
    "ABMCTS": {"method", "scores"},
    "SpeculativeRejection": {"method", "scores"},
    "DORA": {"method", "scores"},
    "BestOfN": {"method", "scores"},
    "SelfConsistency": {"method"},
    "SoftBestOfN": {"method", "scores"},
    "BestOfMajority": {"method", "scores"},
    "TwoStageVote": {"method"},
    "Adaptive": {"method", "batches", "num_drawn", "stopped"},
}
EVERY = {"num_particles", "ess", "resampled", "complete", "dead"}


def run(name: str, plates: bool) -> ParticlePosterior:
    pyro.set_rng_seed(0)
    model = MODELS["calibrated" if name == "PMMH" else "problems" if plates else "hmm"]()
    build, options = (ALGORITHMS[name].build, ALGORITHMS[name].run) if name in ALGORITHMS else (SEARCHES[name], {})
    posterior: ParticlePosterior = build(model.program, model.nesting).run(**{option: min(count, 6) for option, count in options.items()})
    return posterior


@pytest.mark.parametrize(
    ("name", "plates"), [(name, plates) for name in (*ALGORITHMS, *SEARCHES) for plates in (False, True) if not (plates and name in LISTED)]
)
def test_every_posterior_describes_itself(name: str, plates: bool) -> None:
    posterior = run(name, plates)
    found = posterior.diagnostics()
    evidence = "log_evidence" if name in ALGORITHMS and ALGORITHMS[name].evidence else "no_evidence"
    assert found.keys() == EVERY | {evidence} | ADDED.get(name, set())
    assert json.loads(json.dumps(found)) == found
    assert found["num_particles"] == posterior.num_particles and found["complete"] is True
    assert len(found["ess"]) == len(found["resampled"]) > 0 or name in ("SelfConsistency", "TwoStageVote")
    for key, value in found.items():
        attribute: Any = getattr(posterior, key, None)
        if isinstance(attribute, torch.Tensor) and key not in ("ess", "resampled"):
            assert value == attribute.tolist()
    if evidence == "no_evidence":
        with pytest.raises(ValueError, match=r"gives no evidence") as caught:
            _ = posterior.log_evidence
        assert found["no_evidence"] == str(caught.value)


def test_what_is_listed_by_iteration_island_and_stage() -> None:
    chain = run("ParticleGibbs", False)
    assert chain.unit == "iteration" and len(chain.diagnostics()["ess"]) == len(chain.iterations) == 6
    assert chain.diagnostics()["resampled"] == [bool(each.resampled.any()) for each in chain.iterations]
    islands = run("SMC, three islands", False)
    assert islands.unit == "step" and islands.parts_at == "islands"
    assert islands.diagnostics()["ess"] == torch.stack([each.ess for each in islands.parts]).amin(0).tolist()
    ladder = run("TemperedSMC", False)
    assert ladder.unit == "stage" and ladder.diagnostics()["ess"] == ladder.ess.tolist() and len(ladder.ess) == 3
