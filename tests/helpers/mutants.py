"""Deliberately wrong engines. Each is a bug that a published library had, or an easy slip; the suite must reject every one.

The decorator ``mutant`` enters an engine in the table that tests/inference/test_mutant_table.py holds complete.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_llm.inference import (
    ABMCTS,
    DORA,
    MCTS,
    PIMH,
    PMMH,
    REBASE,
    SMC,
    BestFirst,
    EntropicAnnealing,
    ParallelTempering,
    ParticleMessenger,
    ParticlePosterior,
    PrefixWalk,
    ReferenceMessenger,
    SpeculativeRejection,
    SuffixMH,
    TemperedSMC,
    TemperMessenger,
    Trajectory,
    WasteFreeSMC,
    Weights,
    multinomial,
    residual,
    systematic,
)
from ppl_llm.inference.handlers.ancestor_messenger import AncestorMessenger
from ppl_llm.inference.handlers.parameter_messenger import ParameterMessenger
from ppl_llm.inference.handlers.particle_plate import ParticlePlate
from ppl_llm.inference.handlers.suffix_log_prob import Splice, SuffixLogProb
from ppl_llm.inference.mcmc.suffix_mh import SuffixMessenger
from ppl_llm.inference.particles.history import Site
from ppl_llm.inference.particles.site_util import SiteParts, give, scaled
from ppl_llm.inference.resampling.base import ancestors_from_counts, invert_cdf, pin, scaled_weights
from ppl_llm.inference.search.dora import DoraMessenger
from ppl_llm.inference.search.prefix_tree import PrefixTree
from ppl_llm.inference.search.rebase import RebaseMessenger
from ppl_llm.inference.search.score_posterior import Scores
from ppl_llm.inference.search.simulation_search import continued
from ppl_llm.inference.search.speculative_rejection import RejectionMessenger
from tests.helpers.exact import Chain

EXACT_SMC = "tests/inference/test_smc_exact.py"
FIGURES = "tests/inference/test_figures.py"
T = TypeVar("T")


class Mutant(NamedTuple):
    """A wrong engine and the tests that reject it, as ``path::function``."""

    wrong: Any
    rejected_by: tuple[str, ...]


MUTANTS: dict[str, Mutant] = {}


def mutant(name: str, *rejected_by: str) -> Callable[[T], T]:
    """Enter a class or function under a name; ``rejected_by`` are tests as ``path::function``."""

    def enter(wrong: T) -> T:
        assert name not in MUTANTS, f"two mutants are called {name!r}"
        MUTANTS[name] = Mutant(wrong, rejected_by)
        return wrong

    return enter


# Row 1: resamplers that are not unbiased
class _Wrong:
    def __init__(self, name: str, uniforms: Callable[[int], int], fn: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.__name__, self.num_uniforms, self.fn = name, uniforms, fn

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        return self.fn(log_weights, u)


@mutant("residual remainder without N", f"{EXACT_SMC}::test_rejects_wrong_resamplers")
def _residual_of_weights(log_weights: Tensor, u: Tensor) -> Tensor:
    """The remainder taken from W instead of N W (Labbe, Kalman-and-Bayesian-Filters #481)."""
    expected = scaled_weights(log_weights)
    certain = expected.floor()
    rest = (expected / expected.shape[-1] - certain).clamp(min=0)
    drawn = invert_cdf(rest + 1e-300, u.movedim(0, -1))
    slots = torch.arange(expected.shape[-1]).expand_as(expected).contiguous()
    return torch.where(slots < certain.sum(-1, keepdim=True), ancestors_from_counts(certain).movedim(0, -1), drawn).movedim(-1, 0)


@mutant("cdf off by one", f"{EXACT_SMC}::test_rejects_wrong_resamplers")
def _exclusive_cdf(log_weights: Tensor, u: Tensor) -> Tensor:
    """Off by one in the cumulative sum."""
    n = log_weights.shape[0]
    cdf = scaled_weights(log_weights).cumsum(-1)
    comb = (torch.arange(n) + u.movedim(0, -1)).contiguous()
    return (torch.searchsorted(cdf, comb, right=True) - 1).clamp(0, n - 1).movedim(-1, 0)


@mutant("copies of the best", f"{EXACT_SMC}::test_rejects_wrong_resamplers")
def _argmax(log_weights: Tensor, u: Tensor) -> Tensor:
    return log_weights.argmax(0, keepdim=True).expand_as(log_weights)


@mutant(
    "systematic at the midpoint",
    f"{EXACT_SMC}::test_rejects_wrong_resamplers",
    "tests/inference/test_smc.py::test_monte_carlo_has_the_power_to_reject",
)
def _midpoint(log_weights: Tensor, u: Tensor) -> Tensor:
    """No randomness at all."""
    return systematic(log_weights, torch.full_like(u, 0.5))


WRONG_RESAMPLERS: dict[str, tuple[str, _Wrong]] = {
    "residual remainder without N": ("residual", _Wrong("residual_of_weights", lambda n: n, _residual_of_weights)),
    "systematic at the midpoint": ("systematic", _Wrong("midpoint", lambda n: 1, _midpoint)),
    "cdf off by one": ("systematic", _Wrong("exclusive_cdf", lambda n: 1, _exclusive_cdf)),
    "copies of the best": ("systematic", _Wrong("argmax", lambda n: 1, _argmax)),
}


# Row 2: indices
@mutant("index N from a float32 cumsum", "tests/inference/resampling/test_resampling.py::test_rejects_unsafe_indices")
def pyro_style_systematic(log_weights: Tensor, u: Tensor) -> Tensor:
    """float32 cumulative sum, no clamp: index N where the sum rounds below 1 (pyro.infer.SMCFilter)."""
    n = log_weights.shape[0]
    probs = log_weights.float().softmax(0).movedim(0, -1)
    return torch.searchsorted(probs.cumsum(-1), ((torch.arange(n) + u.movedim(0, -1)) / n).float()).movedim(-1, 0)


@mutant("a particle of weight zero", "tests/inference/resampling/test_resampling.py::test_rejects_unsafe_indices")
def left_search_multinomial(log_weights: Tensor, u: Tensor) -> Tensor:
    """A search from the left picks a particle of zero weight at u = 0."""
    return torch.searchsorted(scaled_weights(log_weights).cumsum(-1), u.movedim(0, -1).contiguous() * log_weights.shape[0]).movedim(-1, 0)


# Row 3: bookkeeping of weights
@mutant("subtract max", f"{EXACT_SMC}::test_rejects_wrong_weights")
class SubtractMax(ParticleMessenger):
    """Weights rescaled by their maximum for numerical comfort: the evidence is lost (pyro.infer.SMCFilter)."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        state = super().resample(state, ess)
        weights = self.system.weights.log_weights
        self.system.weights = Weights(weights - weights.amax(0))
        return state


@mutant("no reset", f"{EXACT_SMC}::test_rejects_wrong_weights")
class NoReset(ParticleMessenger):
    """Weights kept after resampling."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        before = self.system.weights
        state = super().resample(state, ess)
        took = self.system.records[-1]
        self.system.weights = Weights(before.log_weights.gather(0, took.ancestors))
        return state


@mutant("weights overwritten", f"{EXACT_SMC}::test_rejects_wrong_weights")
class OverwriteWeights(ParticleMessenger):
    """Weights thrown away at every barrier where nothing was resampled."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        state = super().resample(state, ess)
        self.system.weights = self.system.weights.set_to_mean(torch.ones_like(ess, dtype=torch.bool))
        return state


@mutant("reset to one", f"{EXACT_SMC}::test_rejects_wrong_weights")
class ResetToOne(ParticleMessenger):
    """Weights set to one instead of their mean."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        state = super().resample(state, ess)
        self.system.weights = Weights(torch.where(self.system.records[-1].resampled, 0.0, self.system.weights.log_weights))
        return state


@mutant("finished particles scored again", f"{EXACT_SMC}::test_rejects_finished_particles_scored_again")
def score_finished_again(model: Chain) -> Chain:
    """Finished particles get their last factor again at every step (its_hub, the paper's released code)."""

    class Repeating(Chain):
        def log_factor(self, t: int, code: Tensor, done: Tensor) -> Tensor:
            last = torch.where(code % (self.num_symbols + 1) == 0, code // (self.num_symbols + 1), code)
            return torch.where(
                done, self.potentials[t][last.clamp(max=len(self.potentials[t]) - 1)].log(), super().log_factor(t, code, done)
            )

    return Repeating(**vars(model))


# Row 4: populations
@mutant("shared ancestors", f"{EXACT_SMC}::test_rejects_wrong_weights")
class SharedAncestors(ParticleMessenger):
    """One set of ancestors for all problems."""

    def draw_ancestors(self, chosen: Tensor, selection: Weights) -> Tensor:
        ancestors = super().draw_ancestors(chosen, selection)
        return ancestors[:, :1].expand_as(ancestors)


@mutant("summed plates", f"{EXACT_SMC}::test_rejects_wrong_weights")
class SummedPlates(ParticleMessenger):
    """Weights summed over the problems, as SMCFilter does with inner plates."""

    def __enter__(self) -> SummedPlates:
        super().__enter__()
        right = self.system.add
        self.system.add = lambda name, increment, **more: right(name, increment.mean(-1, keepdim=True).expand_as(increment), **more)
        return self


# Row 5: proposals
@mutant("q over p", f"{EXACT_SMC}::test_rejects_wrong_proposals")
class SwappedRatio(ParticleMessenger):
    """q / p instead of p / q."""

    def reweight(self, msg: Any, log_prob: Tensor) -> None:
        if "proposal" in msg["infer"]:
            log_prob = 2 * msg["infer"]["proposal"].log_prob(msg["value"]) - log_prob
        super().reweight(msg, log_prob)


@mutant("forgotten proposal", f"{EXACT_SMC}::test_rejects_wrong_proposals")
class ForgottenProposal(ParticleMessenger):
    """Proposed values weighed as if drawn from the prior."""

    def reweight(self, msg: Any, log_prob: Tensor) -> None:
        if "proposal" not in msg["infer"]:
            super().reweight(msg, log_prob)


@mutant("prior counted twice", f"{EXACT_SMC}::test_rejects_wrong_proposals")
class CountedTwice(ParticleMessenger):
    """The prior of proposed values counted twice."""

    def reweight(self, msg: Any, log_prob: Tensor) -> None:
        super().reweight(msg, 2 * log_prob if "proposal" in msg["infer"] else log_prob)


# Row 6: conditional resampling
_CONDITIONAL = "tests/inference/mcmc/test_particle_gibbs.py::test_rejects_wrong_conditional_schemes"


@mutant("systematic, one slot overwritten", _CONDITIONAL)
class Overwritten:
    """Systematic resampling with the reference written over one slot."""

    def conditional(self, log_weights: Tensor, reference: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        slot = torch.zeros_like(reference)
        return pin(systematic(log_weights, u), slot, reference), slot


@mutant("sorted multinomial", _CONDITIONAL)
class SortedMultinomial:
    """Sorted draws with the first overwritten (particles.mcmc.CSMC)."""

    def conditional(self, log_weights: Tensor, reference: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        slot = torch.zeros_like(reference)
        return pin(multinomial(log_weights, u).sort(0).values, slot, reference), slot


@mutant("residual, first slot overwritten", _CONDITIONAL)
class NaiveResidual:
    """Residual resampling with the reference written over the first slot."""

    def conditional(self, log_weights: Tensor, reference: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        slot = torch.zeros_like(reference)
        return pin(residual(log_weights, u[:-1]), slot, reference), slot


@mutant("N - 1 systematic plus pinning", _CONDITIONAL)
class OneFewer:
    """Systematic resampling of N - 1 particles, the reference beside them (AdvancedPS)."""

    def conditional(self, log_weights: Tensor, reference: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        n = log_weights.shape[0]
        cdf = scaled_weights(log_weights).cumsum(-1) / n
        comb = ((torch.arange(n - 1) + u.movedim(0, -1)) / (n - 1)).contiguous()
        others = torch.searchsorted(cdf, comb, right=True).clamp(max=n - 1).movedim(-1, 0)
        return torch.cat([others, reference[None]]), torch.full_like(reference, n - 1)


WRONG_CONDITIONAL: dict[str, tuple[Any, str, int]] = {
    "overwritten": (Overwritten(), "systematic", 2),
    "sorted": (SortedMultinomial(), "multinomial", 2),
    "naive": (NaiveResidual(), "residual", 2),
    "one fewer": (OneFewer(), "one fewer", 3),
}
"""With the cells of its uniforms, and the number of particles that shows the bug."""

WRONG_WEIGHTS = {"subtract max": SubtractMax, "no reset": NoReset, "overwrite": OverwriteWeights, "reset to one": ResetToOne}
WRONG_POPULATIONS = {"shared ancestors": SharedAncestors, "summed plates": SummedPlates}
WRONG_PROPOSALS = {"swapped ratio": SwappedRatio, "forgotten proposal": ForgottenProposal, "counted twice": CountedTwice}


def with_messenger(messenger: type[ParticleMessenger]) -> Callable[[SMC], None]:
    """Makes an SMC object run a wrong engine."""

    def mutate(smc: SMC) -> None:
        smc.messenger = lambda: messenger(smc.options)  # type: ignore[method-assign]

    return mutate


@mutant("stale locals", f"{EXACT_SMC}::test_the_audit_rejects_stale_state_that_the_evidence_does_not_show")
def forget_particle_state(model: Chain) -> Chain:
    """A model that does not thread its state through the barrier (pyro #2138): only the symbol is permuted."""
    from ppl_llm.inference import barrier

    def partial(state: Any) -> Any:
        x, code, done = state
        return barrier(x), code, done

    return replace(model, barriers=partial)


# Row 7: references of conditional filters
_ANCESTORS = "tests/inference/mcmc/test_ancestor_sampling.py::test_rejects_wrong_ancestor_weights"
_REFERENCES = "tests/inference/mcmc/test_ancestor_sampling.py::test_rejects_wrong_references"


@mutant("ancestor weights without the suffix", _ANCESTORS)
class WithoutSuffix(AncestorMessenger):
    """The reference's ancestor drawn by the filter's weights alone."""

    def ancestor_weights(self, weights: Weights, log_density: Tensor) -> Weights:
        return weights


@mutant("ancestor weights of whole trajectories", _ANCESTORS)
class WholeTrajectories(AncestorMessenger):
    """The density of the whole spliced trajectory, not its ratio to the prefix's: the prefix counts twice."""

    def ancestor_weights(self, weights: Weights, log_density: Tensor) -> Weights:
        here = self.slot.expand(weights.log_weights.shape[1:])
        system = self.system
        splice = Splice(self.posterior(system.snapshot(None)).sites, self.reference, here, barriers=0)
        everywhere = torch.ones_like(here, dtype=torch.bool)
        whole = SuffixLogProb(system.num_particles, system.max_plate_nesting, system.plates, splice, everywhere)
        return weights.add(whole.run(self.program))


@mutant("full weight of the reference among partial weights", _REFERENCES)
class FullReferenceWeight(AncestorMessenger):
    """The reference enters resampling with the weight of its whole trajectory, the others with theirs so far (its_hub#54)."""

    def draw_ancestors(self, chosen: Tensor, selection: Weights) -> Tensor:
        here = self.slot.expand(chosen.shape)
        program, self.program = self.program, TemperMessenger(prior=0.0)(self.program)  # the suffix's factors only
        factors = self.suffix_log_density(here, chosen)
        self.program = program
        self.draw_reference(selection)
        is_reference = self.system.numbers == here
        return ReferenceMessenger.draw_ancestors(self, chosen, selection.add(torch.where(is_reference, factors, 0.0)))


@mutant("offspring of the reference replays it", _REFERENCES)
class CopiedReference(ReferenceMessenger):
    """Every descendant of the reference's particle continues along the reference: copied where it should branch (Turing.jl#2855)."""

    def __enter__(self) -> CopiedReference:
        self.copies: Tensor | None = None
        super().__enter__()
        return self

    def pinned(self, device: torch.device) -> Tensor:
        return super().pinned(device) if self.copies is None else self.copies

    def draw_ancestors(self, chosen: Tensor, selection: Weights) -> Tensor:
        before = self.pinned(chosen.device).expand_as(selection.log_weights)
        ancestors = super().draw_ancestors(chosen, selection)
        self.copies = torch.where(chosen, before.gather(0, ancestors), before)
        return ancestors


@mutant("reference always in the first slot", _REFERENCES)
class FirstSlot(ReferenceMessenger):
    """A scheme that treats particles differently around a reference that always starts in the same one."""

    def draw_rotation(self) -> Tensor:
        return torch.zeros_like(super().draw_rotation())


WRONG_ANCESTORS = {"without suffix": WithoutSuffix, "whole trajectories": WholeTrajectories}
WRONG_REFERENCES: dict[str, tuple[type[ReferenceMessenger], bool, str, int]] = {
    "full weight": (FullReferenceWeight, True, "multinomial", 2),
    "copied": (CopiedReference, False, "multinomial", 3),
    "first slot": (FirstSlot, False, "stratified", 3),
}
"""Messengers, whether they take the program, and the scheme and number of particles that show the bug."""


# Row 11: tempering
TEMPERED = "tests/inference/test_tempered_smc.py"


@mutant("increments instead of weights", f"{TEMPERED}::test_rejects_wrong_stages")
class IncrementsOnly(TemperedSMC):
    """Weights overwritten by the increment of the stage where the stage before did not resample."""

    def reweight(self, weights: Weights, log_likelihood: Tensor, increment: Tensor) -> Weights:
        return super().reweight(Weights(torch.zeros_like(weights.log_weights)), log_likelihood, increment)


@mutant("evidence of the last stage", f"{TEMPERED}::test_rejects_wrong_stages")
class LastStageEvidence(TemperedSMC):
    """Weights set to one by resampling: only the last factor of the path remains."""

    def resample(self, weights: Weights, particles: Trajectory) -> Any:
        step, weights, particles = super().resample(weights, particles)
        return step, Weights(torch.where(step.resampled, 0.0, weights.log_weights)), particles


@mutant("likelihood upside down", f"{TEMPERED}::test_rejects_wrong_stages")
class FlippedLikelihood(TemperedSMC):
    """``L^(b - b')``."""

    def reweight(self, weights: Weights, log_likelihood: Tensor, increment: Tensor) -> Weights:
        return super().reweight(weights, -log_likelihood, increment)


@mutant("likelihood from before the move", f"{TEMPERED}::test_rejects_wrong_stages")
class StaleLikelihood(TemperedSMC):
    """The next stage is weighted by the likelihood of the executions before they moved."""

    def move(self, particles: Trajectory, *args: Any) -> Any:
        moved, rate = super().move(particles, *args)
        moved.log_likelihood = particles.log_likelihood
        return moved, rate


@mutant("moves one power behind", f"{TEMPERED}::test_rejects_wrong_stages")
class BehindKernel(TemperedSMC):
    """A kernel for the power before."""

    def move(self, particles: Trajectory, beta: Tensor, *args: Any) -> Any:
        ladder = [0.0, *(self.betas or ())]
        return super().move(particles, torch.full_like(beta, ladder[ladder.index(float(beta.max())) - 1]), *args)


@mutant("ESS on incremental weights", f"{TEMPERED}::test_rejects_wrong_ladders")
class IncrementalESS(TemperedSMC):
    """The bisection forgets the weights that the particles already have (MacroEconometricModels #133)."""

    def next_beta(self, stage: int, weights: Weights, *args: Any) -> Tensor:
        return super().next_beta(stage, Weights(torch.zeros_like(weights.log_weights)), *args)


@mutant("bisection upside down", f"{TEMPERED}::test_rejects_wrong_ladders")
class FlippedBisection(TemperedSMC):
    """A sign flipped in the bisection: invisible where log-likelihoods lie symmetrically (blackjax #914)."""

    def next_beta(self, stage: int, weights: Weights, log_likelihood: Tensor, beta: Tensor) -> Tensor:
        return super().next_beta(stage, weights, -log_likelihood, beta)


WASTE_FREE = "tests/inference/test_waste_free_smc.py::test_rejects_wrong_chains"


@mutant("the first M of N ancestors", WASTE_FREE)
class FirstAncestors(WasteFreeSMC):
    """Starts cut from the front of a comb over all N, which comes in order: the last particles are never resampled."""

    def draw_starts(self, log_weights: Tensor) -> Tensor:
        u = torch.rand(self.resampler.num_uniforms(self.num_particles), *log_weights.shape[1:], dtype=torch.float64)
        self.draw_offset(log_weights.shape[1:], log_weights.device)
        return self.resampler(log_weights, u)[: self.num_chains]


@mutant("chains keep the weights of their starts", WASTE_FREE)
class WeightedStarts(WasteFreeSMC):
    """All states of a chain weighted by its start, which was resampled by that weight already."""

    def resample(self, weights: Weights, particles: Trajectory) -> Any:
        step, _, starts = super().resample(weights, particles)
        return step, Weights(weights.log_weights.gather(0, step.ancestors)), starts


WRONG_CHAINS = [FirstAncestors, WeightedStarts]
WRONG_STAGES = [IncrementsOnly, LastStageEvidence, FlippedLikelihood, StaleLikelihood, BehindKernel]
WRONG_LADDERS = [IncrementalESS, FlippedBisection]


# Row 12: swaps
SWAPS = "tests/inference/mcmc/test_parallel_tempering.py"


@mutant("tempered likelihood in the swap ratio", f"{SWAPS}::test_rejects_wrong_swaps")
class TemperedSwap(ParallelTempering):
    """``l`` already multiplied by the power of its replica."""

    def acceptance(self, log_likelihood: Tensor) -> Tensor:
        return super().acceptance(self._powers * log_likelihood)


@mutant("swap ratio upside down", f"{SWAPS}::test_rejects_wrong_swaps")
class FlippedSwap(ParallelTempering):
    """``exp((b_i - b_j) (l_i - l_j))``."""

    def acceptance(self, log_likelihood: Tensor) -> Tensor:
        return super().acceptance(-log_likelihood)


@mutant("swaps of overlapping pairs", f"{SWAPS}::test_rejects_wrong_swaps")
class OverlappingSwaps(ParallelTempering):
    """Pairs (0, 1) and (1, 2) at once: a state is lost and another copied."""

    def exchange(self, accepted: Tensor, turn: int) -> Tensor:
        even, odd = super().exchange(accepted.clone(), 0), super().exchange(accepted.clone(), 1)
        return even + odd - torch.arange(len(even)).view(-1, *(1,) * (even.dim() - 1))


WRONG_SWAPS = [TemperedSwap, FlippedSwap, OverlappingSwaps]


# Annealed resampling
@mutant("residual weights dropped", "tests/inference/resampling/test_entropic_annealing.py::test_rejects_dropped_residual_weights")
class DroppedResidual(EntropicAnnealing):
    """Resampling by annealed weights as if they were the weights (the published entropic particle filter)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "keeps_target": False})


# Row 8: Metropolis-Hastings over trajectories
_SUFFIX = "tests/inference/mcmc/test_suffix_mh.py::test_rejects_wrong_acceptance"


@mutant("missing length ratio", _SUFFIX, "tests/inference/mcmc/test_suffix_mh.py::test_power_posterior_of_a_language_model")
class NoLengthRatio(SuffixMH):
    """The choice of the cut among |x| steps is not corrected for (code of the power sampling paper)."""

    def accept(self, posterior: ParticlePosterior) -> Tensor:
        acceptance = posterior.particles.weights.log_weights.diff(dim=0)[0].clamp(max=0.0).exp()
        return torch.stack([1 - acceptance, acceptance])


class _TruncatedMessenger(SuffixMessenger):
    def __enter__(self) -> _TruncatedMessenger:
        self.history: list[Tensor] = []
        super().__enter__()
        return self

    def _pyro_barrier(self, msg: Any) -> None:
        self.history.append(self.system.weights.log_weights)
        super()._pyro_barrier(msg)

    def posterior(self, snapshot: Any) -> ParticlePosterior:
        made = super().posterior(snapshot)
        weights, lengths = made.particles.weights.log_weights, made.particles.lengths
        history = torch.stack([*self.history, weights])
        present = history[:, 0].gather(0, (lengths[1:] - 1).clamp(max=len(history) - 1))
        return made.reweighted(Weights(torch.cat([present, weights[1:]])))


@mutant("truncated suffix sum", _SUFFIX)
class TruncatedSuffix(SuffixMH):
    """The present trajectory's terms summed only up to the proposed one's length (code of the power sampling paper)."""

    def messenger(self, reference: Any, cut: Tensor) -> SuffixMessenger:
        return _TruncatedMessenger(self.max_plate_nesting, reference=reference, cut=cut, proposals=self.proposals)


WRONG_SUFFIX: dict[str, type[SuffixMH]] = {"no length ratio": NoLengthRatio, "truncated": TruncatedSuffix}


_PIMH = "tests/inference/mcmc/test_particle_mh.py::test_rejects_wrong_pimh"
_PMMH = "tests/inference/mcmc/test_particle_mh.py::test_rejects_wrong_pmmh"


@mutant("PIMH accepts always", _PIMH)
class AcceptsAlways(PIMH):
    """The next filter whatever its evidence: the distribution of an average filter, which is biased for few particles."""

    def accept(self, present: Any, proposed: Any) -> Tensor:
        return torch.ones_like(proposed.log_density)


@mutant("PIMH accepts the lower evidence", _PIMH)
class AcceptsInverse(PIMH):
    """Z / Z' for Z' / Z."""

    def accept(self, present: Any, proposed: Any) -> Tensor:
        return super().accept(proposed, present)


class _NoJacobianMessenger(ParameterMessenger):
    def reweight(self, msg: Any, log_prob: Tensor) -> None:
        if msg["name"] in self.parameters:
            self._log_jacobian[msg["name"]] = torch.zeros_like(self._log_jacobian[msg["name"]])
        super().reweight(msg, log_prob)


class _NoPriorMessenger(ParameterMessenger):
    def reweight(self, msg: Any, log_prob: Tensor) -> None:
        super().reweight(msg, torch.zeros_like(log_prob) if msg["name"] in self.parameters else log_prob)


def _with_parameter_messenger(messenger: type[ParameterMessenger]) -> type[PMMH]:
    class Conditional(messenger, ReferenceMessenger):  # type: ignore[misc, valid-type]
        pass

    class Wrong(PMMH):
        messengers = messenger, Conditional

    return Wrong


@mutant("PMMH without the Jacobian", _PMMH)
class NoJacobian(_with_parameter_messenger(_NoJacobianMessenger)):  # type: ignore[misc]
    """A walk in unconstrained space accepted with densities of the constrained one."""


@mutant("PMMH without the prior", _PMMH)
class NoPrior(_with_parameter_messenger(_NoPriorMessenger)):  # type: ignore[misc]
    """The parameters' prior left out, as if proposals came from it."""


@mutant("PMMH keeps no evidence estimate", _PMMH)
class FreshEvidence(PMMH):
    """The present parameters' evidence estimated again for each comparison (the noisy chain, biased for few particles)."""

    def _renew(self, state: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.arguments = args, kwargs
        return super()._renew(state, args, kwargs)

    def accept(self, present: Any, proposed: Any) -> Tensor:
        return super().accept(self.filter(present.unconstrained, *self.arguments), proposed)


WRONG_PIMH: dict[str, type[PIMH]] = {"always": AcceptsAlways, "inverse": AcceptsInverse}
WRONG_PMMH: dict[str, type[PMMH]] = {"no Jacobian": NoJacobian, "no prior": NoPrior, "fresh evidence": FreshEvidence}


# Runs that share what should be their own
RUNS = "tests/inference/test_runs.py"


@mutant(
    "one messenger for all runs",
    f"{RUNS}::test_rejects_a_messenger_that_runs_share",
    f"{FIGURES}::test_rejects_one_messenger_in_four_programs",
)
class SharedMessenger(SMC):
    """The handler of the sweep, and with it the particles, belongs to the algorithm object (SMC of this package, once)."""

    def messenger(self) -> ParticleMessenger:
        if not hasattr(self, "_messenger"):
            self._messenger = super().messenger()
        return self._messenger


@mutant("swaps take turns by the kernel's count", f"{RUNS}::test_rejects_kernels_that_chains_share")
class SharedTurns(ParallelTempering):
    """Which pairs swap is counted by the kernel, over all of its chains."""

    _turn = 0

    def exchange(self, accepted: Tensor, turn: int) -> Tensor:
        self._turn += 1
        return super().exchange(accepted, self._turn % 2)


@mutant("step sizes adapt the kernel", f"{RUNS}::test_rejects_kernels_that_chains_share")
class SharedAdaptation(PMMH):
    """A chain begins with the step size of the chain before."""

    _scale = 1.0

    def propose(self, present: Any, chain: Any) -> Any:
        return super().propose(present, replace(chain, step_size_scale=self._scale))

    def adapted(self, chain: Any, acceptance: Tensor) -> Any:
        adapted = super().adapted(replace(chain, step_size_scale=self._scale), acceptance)
        self._scale = adapted.step_size_scale
        return adapted


@mutant("the first start of all chains", f"{RUNS}::test_rejects_a_kernel_that_remembers_its_first_start")
class RememberedStart(PIMH):
    """Under Pyro's MCMC a chain on other data starts from the first data's filter, whose evidence the new ones do not reach."""

    _first: Any = None

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        if self._first is not None:
            self.initial_params = self._first
        super().setup(warmup_steps, *args, **kwargs)
        self._first = self.initial_params


@mutant("a nested run among the handlers of the outer one", f"{RUNS}::test_rejects_nested_runs_that_share_plates")
def only_blocked() -> AbstractContextManager[Any]:
    """The sites of a nested run are hidden from the handlers around it, but it runs in their plates."""
    return poutine.block()  # type: ignore[no-any-return]


SHARED_KERNELS: dict[str, type[ParallelTempering] | type[PMMH]] = {"turns": SharedTurns, "adaptation": SharedAdaptation}


# What sites mean
IDIOMS_TEST = "tests/inference/test_idioms.py::test_rejects_other_meanings"
_PROCESS = ParticlePlate._process_message


@mutant("sites met twice", IDIOMS_TEST)
def unchecked_names(plate: Any, msg: Any) -> None:
    """Values are kept by name, and nothing notices that a name comes again."""
    plate.met.clear()
    _PROCESS(plate, msg)


@mutant("splices without the prior of masked values", IDIOMS_TEST, f"{FIGURES}::test_rejects_splices_that_leave_out_a_masked_latent")
def masked_splice(parts: SiteParts, value: Tensor) -> Tensor:
    """A masked latent scores 0 after another particle's past, though its value came from the prior."""
    return scaled(parts.log_probs(value)[0], parts.scale)


@mutant("enumeration without the prior of masked values", IDIOMS_TEST, f"{FIGURES}::test_rejects_enumeration_that_counts_masked_values")
def masked_enumeration(parts: SiteParts, value: Tensor) -> Tensor:
    """Every value of a masked latent weighs one."""
    return masked_splice(parts, value)


@mutant("proposals of masked sites", IDIOMS_TEST, f"{FIGURES}::test_rejects_a_proposal_that_is_not_masked")
def unmasked_proposal(parts: SiteParts, name: str) -> Tensor | None:
    """Where log p is masked log q is not, and values come from q."""
    return None


@mutant("a subsample for every execution", IDIOMS_TEST, f"{FIGURES}::test_rejects_a_subsample_for_every_execution")
def fresh_subsample(plate: Any, msg: Any) -> None:
    """Replays and iterations draw other data."""


@mutant("subsampled problems as populations", IDIOMS_TEST, f"{FIGURES}::test_rejects_problems_that_count_for_others")
def no_subsampled_plates(msg: Any) -> set[Any]:
    """Each problem of the subsample is weighed by its likelihood to the power P / S."""
    return set()


@mutant("hidden random numbers under chains", IDIOMS_TEST)
def unchecked_randomness(start: str, before: Any, end: str, now: Any) -> None:
    """What a chain's trajectory does not hold is drawn at random whenever it is run again."""


@mutant("hidden random numbers under tempering", IDIOMS_TEST)
def unchecked_tempered_randomness(start: str, before: Any, end: str, now: Any) -> None:
    """The likelihood of a particle changes between its stages."""


@mutant("values recorded as the model holds them", IDIOMS_TEST)
def aliased_record(system: Any, msg: Any, log_prob: Tensor | None) -> None:
    """A model that writes to its own tensors overwrites what was drawn."""
    if not msg["is_observed"]:
        system.sites.append(Site(msg["name"], msg["value"], None, len(system.records)))


@mutant("an event of each particle's note for every particle", IDIOMS_TEST)
def note_of_pairs(system: Any, msg: Any, value: Tensor) -> Tensor:
    """``pyro.deterministic`` takes all dimensions for the event, the plate adds the particles once more: ``[N, N]``."""
    return value.expand(msg["fn"].shape())


@mutant("a note without the plates for every particle", "tests/inference/test_idioms.py::test_rejects_notes_of_pairs_in_plates")
def note_of_whole_plates(system: Any, msg: Any, value: Tensor) -> Tensor:
    """Only a value with all of the plates' dimensions is one for each particle: ``[N]`` inside of a plate is recorded ``[N, P, N]``."""
    fn, ndim = msg["fn"], 1 + system.max_plate_nesting
    own, batch = value.shape[:ndim], fn.batch_shape
    fits = len(own) == ndim and own[0] == system.num_particles and all(a in (1, b) for a, b in zip(own, batch, strict=True))
    return value.expand([*batch, *value.shape[ndim:]] if fits and len(fn.event_shape) == value.dim() else fn.shape())


@mutant("given values enumerated", IDIOMS_TEST)
def drawn_given(msg: Any) -> None:
    """A value that poutine.replay gives is scored as if it had been drawn from another distribution."""
    give(msg)
    del msg["infer"]["given"]


_DEFINED = "ppl_llm.inference.particles.site_util"
_HANDLERS = "ppl_llm.inference.handlers"
WRONG_SEMANTICS: dict[str, tuple[Any, str, str, str, str]] = {
    "names": (unchecked_names, f"{_HANDLERS}.particle_plate.ParticlePlate._process_message", "a site's name twice", "chains", "SuffixMH"),
    "splices": (masked_splice, f"{_DEFINED}.SiteParts.log_density", "`fn.mask(m)`, latent", "chains", "ancestor sampling"),
    "enumeration": (masked_enumeration, f"{_DEFINED}.SiteParts.log_density", "`poutine.mask`, latent", "enumeration", "Enumeration"),
    "proposals": (unmasked_proposal, f"{_DEFINED}.SiteParts.mask_of_events", "a masked site with a proposal", "SMC, importance", "SMC"),
    "subsamples": (
        fresh_subsample,
        f"{_HANDLERS}.particle_plate.ParticlePlate._hold",
        "`subsample_size`, shared latent",
        "chains",
        "SuffixMH",
    ),
    "problems": (
        no_subsampled_plates,
        "ppl_llm.inference.particles.particle_system.subsampled_plates",
        "`subsample_size`, problems",
        "SMC, importance",
        "SMC",
    ),
    "hidden": (unchecked_randomness, f"{_HANDLERS}.randomness_messenger.require_same", "`poutine.block`", "chains", "SuffixMH"),
    "hidden, tempered": (
        unchecked_tempered_randomness,
        f"{_HANDLERS}.randomness_messenger.require_same",
        "random numbers without a site",
        "tempering",
        "TemperedSMC",
    ),
    "aliases": (
        aliased_record,
        "ppl_llm.inference.particles.particle_system.ParticleSystem.record",
        "operations in place",
        "SMC, importance",
        "SMC",
    ),
    "notes": (
        note_of_pairs,
        "ppl_llm.inference.particles.particle_system.ParticleSystem.note",
        "`pyro.deterministic`",
        "SMC, importance",
        "Importance",
    ),
    "given": (drawn_given, "ppl_llm.inference.enumeration.give", "`poutine.replay`", "enumeration", "Enumeration"),
}
"""A meaning, what it stands for, and the cell of test_idioms.py that shows it."""


# Searches that share out their particles
_REBASE = "tests/inference/search/test_rebase.py::test_rejects_wrong_widths"


class _LogScoresMessenger(RebaseMessenger):
    def widths(self, log_weights: Tensor, active: Tensor, left: Tensor) -> Tensor:
        return super().widths((log_weights + 100.0).log(), active, left)  # a softmax does not see what is added


class _FirstOfTiesMessenger(RebaseMessenger):
    def widths(self, log_weights: Tensor, active: Tensor, left: Tensor) -> Tensor:
        return super().widths(log_weights.flip(0), active.flip(0), left).flip(0)


class _AllPlacesMessenger(RebaseMessenger):
    def widths(self, log_weights: Tensor, active: Tensor, left: Tensor) -> Tensor:
        expected = left * torch.where(active, log_weights.exp() / self.temperature, -torch.inf).softmax(0)
        widths = expected.ceil().long()  # each by itself: more than there are places
        return torch.minimum(widths, (left - (widths.cumsum(0) - widths)).clamp(min=0))


def _with_widths(made: type[RebaseMessenger]) -> type[REBASE]:
    class Wrong(REBASE):
        def messenger(self) -> RebaseMessenger:
            return made(self.options, self.temperature)

    return Wrong


@mutant("widths by log-scores", _REBASE)
class WidthsByLogScores(_with_widths(_LogScoresMessenger)):  # type: ignore[misc]
    """A softmax over log-odds or log-probabilities, which the temperature is not meant for."""


@mutant("widths: first of ties", _REBASE)
class FirstOfTies(_with_widths(_FirstOfTiesMessenger)):  # type: ignore[misc]
    """A stable descending sort; the released code sorts upwards and turns the list round."""


@mutant("widths rounded one by one", _REBASE)
class RoundedOneByOne(_with_widths(_AllPlacesMessenger)):  # type: ignore[misc]
    """Each width rounded up by itself, in the order of the particles, until there are no places."""


WRONG_WIDTHS: dict[str, type[REBASE]] = {
    "log-scores": WidthsByLogScores,
    "first of ties": FirstOfTies,
    "rounded one by one": RoundedOneByOne,
}


# Walks on prefixes
_WALK = "tests/inference/mcmc/test_prefix_walk.py::test_rejects_wrong_walks"


@mutant("a child taken by its value", _WALK)
class TakenByValue(PrefixWalk):
    """The one-try rejection shortcut: a drawn child is taken with probability V(child), the parent with V(here). It has the prior."""

    def acceptance(self, here: Tensor, there: Tensor, up: Tensor) -> Tensor:
        return torch.where(up, there, here).clamp(max=0.0).exp()


@mutant("leaves of a window all alike", _WALK)
class LeavesAlike(PrefixWalk):
    """Each leaf of a window counted once, however long the walk stayed there."""

    def visit_weights(self, spent: Tensor) -> Tensor:
        return (spent > 0).double()


WRONG_WALKS: dict[str, type[PrefixWalk]] = {"by value": TakenByValue, "leaves alike": LeavesAlike}


# Searches with a frontier
_FRONTIER = "tests/inference/search/test_best_first.py::test_rejects_wrong_pops"


@mutant("a frontier of the last children", _FRONTIER)
class LastChildren(BestFirst):
    """Only the continuations drawn last are looked at: a greedy search, which never turns back."""

    def pop(self, tree: PrefixTree, open_: Tensor) -> Tensor:
        last = torch.where(open_, self.priority(tree), -torch.inf)
        last[: -self.expand] = -torch.inf
        return torch.where(last.amax(0) > -torch.inf, last.argmax(0), super().pop(tree, open_))


@mutant("stops at the first answer drawn", _FRONTIER)
class FirstDrawn(BestFirst):
    """A complete execution ends the search as soon as it is drawn, though better prefixes are open."""

    def pop(self, tree: PrefixTree, open_: Tensor) -> Tensor:
        complete = torch.where(open_ & tree.done, self.priority(tree), -torch.inf)
        return torch.where(complete.amax(0) > -torch.inf, complete.argmax(0), super().pop(tree, open_))


WRONG_POPS: dict[str, type[BestFirst]] = {"last children": LastChildren, "first drawn": FirstDrawn}


# Searches by simulations
_SIMULATIONS = "tests/inference/search/test_mcts.py::test_rejects_wrong_simulations"


@mutant("no virtual loss", _SIMULATIONS)
class NoVirtualLoss(MCTS):
    """The simulations of a batch do not see each other, and all choose the same prefix; visits are counted when values are known."""

    def select(self, tree: PrefixTree, known: Any, number: int) -> Tensor:
        possible, before, after = continued(tree), known.number, known.number
        parents = []
        for _ in range(number):
            known.number = before
            parents.append(self.descend(tree, known, possible))
            after = after + (known.number - before)
        known.number = after
        known.add(number)
        return torch.stack(parents)


@mutant("a value told to the parent alone", _SIMULATIONS)
class ToldToParents(MCTS):
    """Ancestors beyond the parent do not hear of a value."""

    def backup(self, tree: PrefixTree, known: Any, nodes: Tensor, values: Tensor) -> None:
        known.total[nodes] = values
        known.total = known.total.scatter_add(0, tree.parent[nodes], values)


@mutant("a value told to the ancestors of a neighbour", _SIMULATIONS)
class ToldToNeighbours(MCTS):
    """Values of a batch reach the lines of other children: rows of one order, values of another."""

    def backup(self, tree: PrefixTree, known: Any, nodes: Tensor, values: Tensor) -> None:
        super().backup(tree, known, nodes, values.roll(1, 0))
        known.total[nodes] = values


@mutant("widening ignored", _SIMULATIONS)
class NeverWidens(MCTS):
    """A prefix that has a child is never given another."""

    def widens(self, visits: Tensor, children: Tensor) -> Tensor:
        return children < 1


@mutant("UCT by the child's own visits", _SIMULATIONS)
class OwnVisits(MCTS):
    """ln N of the child in place of its parent's."""

    def uct(self, known: Any, visits: Tensor) -> Tensor:
        return known.total / known.number + self.exploration * (known.number.log() / known.number).sqrt()


WRONG_SIMULATIONS: dict[str, type[MCTS]] = {
    "no virtual loss": NoVirtualLoss,
    "parents alone": ToldToParents,
    "neighbours": ToldToNeighbours,
    "never widens": NeverWidens,
    "own visits": OwnVisits,
}


_BRANCHES = "tests/inference/search/test_ab_mcts.py::test_rejects_wrong_branches"


@mutant("going down by the children's own scores", _BRANCHES)
class ChildrenCountTwice(ABMCTS):
    """The scores of children decide for a new child and for going down, too: there is no telling wider from deeper."""

    def continues(self, known: Any, node: Tensor, children: Tensor) -> Tensor:
        new = Scores(*(torch.where(children, scores[:, None], 0.0).sum(0) for scores in known.own))
        here, own = (Scores(*(scores.gather(0, node) for scores in group)) for group in (known.all, known.own))
        wider, deeper = self.draw(new), self.draw(here.minus(own))
        return deeper > wider


@mutant("a child by its own score alone", _BRANCHES)
class OwnScores(ABMCTS):
    """What lies below a child is not told to it."""

    def backup(self, tree: PrefixTree, known: Any, nodes: Tensor, values: Tensor) -> None:
        super().backup(tree, known, nodes, values)
        inner = torch.ones(tree.size, *(1,) * len(tree.plates), dtype=torch.bool)
        inner[0] = False
        known.all = Scores(*(torch.where(inner, own, every) for own, every in zip(known.own, known.all, strict=True)))


@mutant("wider where going down was drawn", _BRANCHES)
class WiderInstead(ABMCTS):
    """The greatest draw decides the other way round."""

    def continues(self, known: Any, node: Tensor, children: Tensor) -> Tensor:
        return ~super().continues(known, node, children)


WRONG_BRANCHES: dict[str, type[ABMCTS]] = {
    "children count twice": ChildrenCountTwice,
    "own scores": OwnScores,
    "wider instead": WiderInstead,
}


_REJECTIONS = "tests/inference/search/test_speculative_rejection.py::test_rejects_wrong_rejections"


class _WorstMessenger(RejectionMessenger):
    def kept(self, log_weights: Tensor, running: Tensor) -> Tensor:
        return super().kept(-log_weights, running)


class _OfAllMessenger(RejectionMessenger):
    def kept(self, log_weights: Tensor, running: Tensor) -> Tensor:
        best_first = log_weights.argsort(dim=0, descending=True, stable=True)
        return best_first.argsort(dim=0) < (self.keep * len(running))


class _LateMessenger(RejectionMessenger):
    def at_mark(self, done: Tensor) -> bool:
        before, self.next = getattr(self, "next", False), super().at_mark(done)
        return before


def _with_rejections(made: type[RejectionMessenger]) -> type[SpeculativeRejection]:
    class Wrong(SpeculativeRejection):
        def messenger(self) -> RejectionMessenger:
            right = super().messenger()
            return made(right.options, right.keep, right.marks, right.unit)

    return Wrong


@mutant("the worst are kept", _REJECTIONS)
class KeepsTheWorst(_with_rejections(_WorstMessenger)):  # type: ignore[misc]
    """A sort the wrong way round."""


@mutant("a share of all, finished or not", _REJECTIONS)
class ShareOfAll(_with_rejections(_OfAllMessenger)):  # type: ignore[misc]
    """Finished and dropped completions take places among those kept."""


@mutant("dropped a step late", _REJECTIONS)
class DroppedLate(_with_rejections(_LateMessenger)):  # type: ignore[misc]
    """The mark that has been passed is noticed at the next barrier."""


WRONG_REJECTIONS: dict[str, type[SpeculativeRejection]] = {
    "keeps the worst": KeepsTheWorst,
    "share of all": ShareOfAll,
    "late": DroppedLate,
}


_DORA = "tests/inference/search/test_dora.py::test_rejects_wrong_directions"


class _OffDiagonalMessenger(DoraMessenger):
    def log_distinct(self, like: Tensor, active: Tensor) -> Tensor:
        return -super().log_distinct(like, active)


class _AllParticlesMessenger(DoraMessenger):
    def log_distinct(self, like: Tensor, active: Tensor) -> Tensor:
        return super().log_distinct(like, torch.ones_like(active))


class _AnyScoreMessenger(DoraMessenger):
    def worth_a_place(self, log_weights: Tensor, active: Tensor, left: Tensor) -> Tensor:
        return active


class _LengthsMessenger(DoraMessenger):
    def _embeddings(self, like: Tensor) -> Tensor:
        found = super()._embeddings(like)
        return torch.cat([found, torch.ones_like(found[..., :1])], -1)


def _with_directions(made: type[DoraMessenger]) -> type[DORA]:
    class Wrong(DORA):
        def messenger(self) -> DoraMessenger:
            right = super().messenger()
            return made(right.options, right.temperature, right.diversity_temperature, right.embed)

    return Wrong


@mutant("more for those who go the same way", _DORA)
class MoreOfTheSame(_with_directions(_OffDiagonalMessenger)):  # type: ignore[misc]
    """The sum of similarities in place of one's own share of it."""


@mutant("finished particles take a direction", _DORA)
class FinishedDirections(_with_directions(_AllParticlesMessenger)):  # type: ignore[misc]
    """Particles that are not continued make those like them fewer."""


@mutant("a place for whatever is odd", _DORA)
class PlacesForTheOdd(_with_directions(_AnyScoreMessenger)):  # type: ignore[misc]
    """Directions count before scores have sorted out what is worth no place."""


@mutant("directions by length", _DORA)
class DirectionsByLength(_with_directions(_LengthsMessenger)):  # type: ignore[misc]
    """Similarity that depends on the length of an embedding, as that of vectors that are not centred at 0."""


WRONG_DIRECTIONS: dict[str, type[DORA]] = {
    "more of the same": MoreOfTheSame,
    "finished": FinishedDirections,
    "odd": PlacesForTheOdd,
    "by length": DirectionsByLength,
}
