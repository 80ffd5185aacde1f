"""Deliberately wrong treatment of populations, posteriors and the audit: more of the table of tests/helpers/mutants.py."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_llm import LLMStep, StepProposal
from ppl_llm.inference import DiscreteMarginal, ParticleMessenger, PooledPosterior, SMCFailed, Trajectory, Weights
from ppl_llm.inference.handlers.audit_messenger import AuditMessenger
from ppl_llm.inference.particles.leaves import Comparison
from ppl_llm.inference.particles.pytree import map_leaves
from ppl_llm.inference.resampling import Residual
from ppl_llm.inference.resampling.base import ancestors_from_counts, invert_cdf, scaled_weights
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


# Proposals of another support
@mutant("proposals of another support", "tests/ppl_llm/programs/test_step_proposal.py::test_rejects_proposals_of_another_support")
class UncheckedSupport(StepProposal):
    """Steps that end where the proposing model's context is full, which the model would have continued (StepProposal, once)."""

    def _check_support(self, *args: Any) -> None:
        pass


WRONG_SUPPORTS: dict[str, type[StepProposal]] = {"unchecked": UncheckedSupport}


# Marginals and pools
MARGINALS = "tests/inference/posterior/test_marginals.py"


@mutant("tensors counted by identity", f"{MARGINALS}::test_rejects_marginals_by_identity")
class ByIdentity(DiscreteMarginal):
    """Values as they come: N tensors are N values (DiscreteMarginal, once)."""

    def __init__(self, pairs: Iterable[tuple[Hashable, float]]) -> None:
        mass: dict[Hashable, float] = {}
        for value, weight in pairs:
            mass[value] = mass.get(value, 0.0) + weight
        self.probs = mass


@mutant("evidence of parts that have none", f"{MARGINALS}::test_rejects_the_evidence_of_parts_that_have_none")
class MeanOfAnything(PooledPosterior):
    """The mean weight of whatever was pooled (PooledPosterior, once)."""

    @property
    def log_evidence(self) -> Tensor:
        return self.particles.weights.log_mean[self.particles.public]


WRONG_MARGINALS: dict[str, type[DiscreteMarginal]] = {"identity": ByIdentity}
WRONG_POOLS: dict[str, type[PooledPosterior]] = {"mean of anything": MeanOfAnything}


# Resampling
@mutant(
    "a selection that loses particles",
    "tests/inference/resampling/test_entropic_annealing.py::test_rejects_selections_that_lose_particles",
)
class UncheckedSelection(ParticleMessenger):
    """V = 0 for particles of positive weight: they are never drawn, and nothing makes up for them (ParticleMessenger, once)."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        selection = self.options.selection
        assert selection is not None

        def unchecked(weights: Weights, state: Any, step: int) -> Tensor:
            return selection(weights, state, step).nan_to_num(neginf=-1e6)

        unchecked.keeps_target = selection.keeps_target  # type: ignore[attr-defined]
        self.options = replace(self.options, selection=unchecked)
        try:
            return super().resample(state, ess)
        finally:
            self.options = replace(self.options, selection=selection)


@mutant("certain copies without tolerance", "tests/inference/resampling/test_resampling.py::test_rejects_copies_lost_to_rounding")
class RoundedDown(Residual):
    """``floor(N W)`` as it is computed: 0 for 49 * (1 / 49) (Residual, once)."""

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        expected = scaled_weights(log_weights)
        certain = expected.floor()
        drawn = invert_cdf(expected - certain, u)
        slots = torch.arange(len(certain))
        return torch.where(slots < certain.sum(), ancestors_from_counts(certain), drawn)


WRONG_SELECTIONS: dict[str, type[ParticleMessenger]] = {"unchecked": UncheckedSelection}
WRONG_RESIDUALS: dict[str, type[Residual]] = {"rounded down": RoundedDown}


# States and trajectories
@mutant("a list of plain values through a barrier", "tests/inference/particles/test_pytree.py::test_rejects_lists_that_are_let_through")
def unrefused_list(state: Any, index: Tensor, path: str) -> None:
    """One value for each particle in a Python list stays where it is (reorder, once)."""


@mutant("as many trajectories as there are", "tests/inference/particles/test_trajectory.py::test_rejects_an_order_of_as_many")
class AsManyOnly(Trajectory):
    """An index with plates is taken for one of all N trajectories (Trajectory.reorder, once)."""

    def reorder(self, index: Tensor) -> Trajectory:
        values = {name: tensor.gather(0, _spread(index, tensor)) for name, tensor in self.items()}
        return Trajectory(values, length=self.length, log_likelihood=self.log_likelihood, value=self.value)


def _spread(index: Tensor, tensor: Tensor) -> Tensor:
    return index.reshape(*index.shape, *(1,) * (tensor.dim() - index.dim())).expand_as(tensor)


@mutant(
    "log-probabilities in float32 whatever the default",
    "tests/distributions/test_llm_step.py::test_rejects_log_probabilities_in_float32",
)
class AlwaysFloat32(LLMStep):
    """Drawn log-probabilities in float32 beside scored ones in the default number format (AutoregressiveLM, once)."""

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        value = super().sample(sample_shape)
        drawn = self._drawn
        if drawn is not None and drawn[1] is not None:
            self._drawn = drawn[0], drawn[1].float()
        return value

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        made = AlwaysFloat32.__new__(AlwaysFloat32)
        made._init(self.context, self.options, torch.Size(batch_shape))
        return made


WRONG_STEPS: dict[str, type[LLMStep]] = {"float32": AlwaysFloat32}
WRONG_ORDERS: dict[str, type[Trajectory]] = {"as many": AsManyOnly}


# Audits
AUDITS = "tests/inference/handlers/test_audit.py::test_rejects_weaker_audits"


@mutant("an audit of log-probabilities alone", AUDITS)
class LogProbsOnly(AuditMessenger):
    """What the model returns is not compared (the audit of this package, once)."""

    def compare_result(self, value: Any) -> None:
        pass

    def _compare_deterministic(self, name: str, value: Any) -> None:
        pass


@mutant("an audit without permutations", AUDITS)
class Unpermuted(AuditMessenger):
    """Particles stay where they are: of a run that never resampled everything passes (the audit of this package, once)."""

    def offsets(self) -> Tensor:
        return torch.zeros_like(super().offsets())


@mutant("an audit that begins in place", AUDITS)
class BeginsInPlace(AuditMessenger):
    """Particles are in their own places up to the first barrier: what comes from before it looks right (once here)."""

    def offsets(self) -> Tensor:
        offsets = super().offsets().clone()
        offsets[0] = 0
        return offsets


class _TensorsAndLists(Comparison):
    def parts(self, value: Any) -> dict[str, Any] | None:
        return super().parts(value) if isinstance(value, dict | list | tuple) or hasattr(value, "compared") else None


@mutant("an audit of tensors and lists alone", AUDITS)
class TensorsAndListsOnly(AuditMessenger):
    """Sets, objects and functions in what the model returns are passed over (the audit of this package, once)."""

    def comparison(self) -> Comparison:
        right = super().comparison()
        return _TensorsAndLists(right.atol, right.rtol)


WRONG_AUDITS: dict[str, type[AuditMessenger]] = {
    "log-probabilities only": LogProbsOnly,
    "unpermuted": Unpermuted,
    "begins in place": BeginsInPlace,
    "tensors and lists only": TensorsAndListsOnly,
}


@mutant("an audit that takes the first dimension for the particles", f"{AUDITS.split('::')[0]}::test_rejects_false_accusations")
class FirstDimension(AuditMessenger):
    """Particles end in other places than their own, and what the model returned is moved after them by its first dimension (the audit of
    this package, once)."""

    def offsets(self) -> Tensor:
        return super().offsets() + 1

    def compare_result(self, value: Any) -> None:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.roll(-1, 0) if tensor.dim() and len(tensor) == self.num_particles else tensor

        self.swept = self.swept._replace(value=map_leaves(self.swept.value, lambda item: item, moved))
        super().compare_result(value)


WRONG_ACCUSERS: dict[str, type[AuditMessenger]] = {"first dimension": FirstDimension}
