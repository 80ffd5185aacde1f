"""Deliberately wrong treatment of populations, posteriors and the audit: more of the table of tests/helpers/mutants.py."""

from __future__ import annotations

from typing import Any

import torch

from ppl_llm.inference import ParticleMessenger, SMCFailed, Weights
from tests.helpers.mutants import mutant

# Populations that die
DEATHS = "tests/inference/test_dead_populations.py::test_rejects_deaths_that_do_not_count"


@mutant("a dead population ends the run", DEATHS)
class FatalDeath(ParticleMessenger):
    """One dead island or problem of many loses the others (SMC of this package, once)."""

    def check_alive(self) -> None:
        pending = list(self.system.unchecked)
        super().check_alive()
        for site, weights in pending:
            if bool(weights.dead.any()):
                raise SMCFailed(site, weights.num_particles, weights.dead.numel())


@mutant("a dead population counts by its survivors", DEATHS)
class CountedSurvivors(ParticleMessenger):
    """The mean of the weights that are not zero: what has died is forgotten."""

    def posterior(self, snapshot: Any) -> Any:
        log_w = snapshot.weights.log_weights
        alive = (log_w > -torch.inf).sum(0).clamp(min=1)
        return super().posterior(snapshot._replace(weights=Weights(log_w + (len(log_w) / alive).log())))


WRONG_DEATHS: dict[str, type[ParticleMessenger]] = {"fatal": FatalDeath, "survivors": CountedSurvivors}
