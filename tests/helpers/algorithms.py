"""Every algorithm as the tests run it: the columns of test_matrix.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_llm.inference import (
    ABMCTS,
    DORA,
    DVTS,
    MCTS,
    PIMH,
    PMMH,
    REBASE,
    SMC,
    Adaptive,
    BeamSearch,
    BestFirst,
    BestOfMajority,
    BestOfN,
    BlockMH,
    EntropicAnnealing,
    Importance,
    ParallelTempering,
    ParticleGibbs,
    PrefixWalk,
    SelfConsistency,
    SoftBestOfN,
    SpeculativeRejection,
    SuffixMH,
    TemperedSMC,
    TwoStageVote,
    WasteFreeSMC,
    power,
)

ALL = "*"


@dataclass(frozen=True)
class Algorithm:
    """An algorithm with few particles: what is wrong shows there.

    :ivar build: from a program and its ``max_plate_nesting``.
    :ivar bool evidence: whether it estimates the evidence; if not, it is a chain.
    :ivar dict run: keywords of ``run``.
    :ivar int replicas: independent runs, in one batch.
    :ivar float bias: of the estimates at this number of particles, at most.
    :ivar dict not_for: for a model's name, or ``ALL``, the words of the error it gives.
    """

    build: Callable[[Callable[..., Any], int], Any]
    evidence: bool = True
    run: dict[str, int] = field(default_factory=dict)
    replicas: int = 1000
    not_for: dict[str, str] = field(default_factory=dict)
    bias: float = 0.0


def chain(build: Callable[[Callable[..., Any], int], Any], num_samples: int = 12, warmup_steps: int = 12, replicas: int = 250) -> Algorithm:
    return Algorithm(build, evidence=False, run={"num_samples": num_samples, "warmup_steps": warmup_steps}, replicas=replicas)


ALGORITHMS: dict[str, Algorithm] = {
    "Importance": Algorithm(lambda model, nesting: Importance(model, 8, max_plate_nesting=nesting)),
    "SMC": Algorithm(lambda model, nesting: SMC(model, 4, max_plate_nesting=nesting)),
    "SMC, multinomial at every barrier": Algorithm(
        lambda model, nesting: SMC(model, 4, resampler="multinomial", ess_threshold=1.0, max_plate_nesting=nesting)
    ),
    "SMC, three islands": Algorithm(lambda model, nesting: SMC(model, 3, islands=3, max_plate_nesting=nesting)),
    "SMC, annealed resampling": Algorithm(
        lambda model, nesting: SMC(
            model, 8, ess_threshold=1.0, selection=EntropicAnnealing("entropy", num_steps=6), max_plate_nesting=nesting
        )
    ),
    "SMC of one power after another, moved": Algorithm(
        lambda model, nesting: SMC(
            power(model, 1.0, bridge=[0.5, 0.8]), 3, ess_threshold=1.0, max_plate_nesting=nesting, rejuvenate=SuffixMH, moves=2
        ),
        replicas=1000,
    ),
    "TemperedSMC": Algorithm(lambda model, nesting: TemperedSMC(model, 6, betas=[0.2, 0.6, 1.0], max_plate_nesting=nesting)),
    "TemperedSMC of ParticleGibbs": Algorithm(
        lambda model, nesting: TemperedSMC(
            model, 6, betas=[0.2, 1.0], kernel=partial(ParticleGibbs, num_particles=3), ess_threshold=1.0, max_plate_nesting=nesting
        ),
        replicas=800,
    ),
    "TemperedSMC, adaptive": Algorithm(lambda model, nesting: TemperedSMC(model, 64, max_plate_nesting=nesting), replicas=100, bias=0.02),
    "WasteFreeSMC": Algorithm(
        lambda model, nesting: WasteFreeSMC(model, 6, chain_length=3, betas=[0.2, 0.6, 1.0], max_plate_nesting=nesting)
    ),
    "ParticleGibbs": chain(lambda model, nesting: ParticleGibbs(model, 6, max_plate_nesting=nesting)),
    "ParticleGibbs, systematic": chain(
        lambda model, nesting: ParticleGibbs(model, 6, resampler="systematic", ess_threshold=1.0, max_plate_nesting=nesting)
    ),
    "ParticleGibbs, ancestor sampling": chain(
        lambda model, nesting: ParticleGibbs(model, 4, ancestor_sampling=True, ess_threshold=1.0, max_plate_nesting=nesting), 6, 6, 150
    ),
    "ParticleGibbs, two references": chain(
        lambda model, nesting: ParticleGibbs(model, 5, num_references=2, resampler="stratified", max_plate_nesting=nesting), 6, 12, 150
    ),
    "SuffixMH": chain(lambda model, nesting: SuffixMH(model, max_plate_nesting=nesting), 30, 50),
    "BlockMH": chain(lambda model, nesting: BlockMH(model, moves=2, max_plate_nesting=nesting), 30, 50),
    "PrefixWalk": chain(lambda model, nesting: PrefixWalk(model, steps=80, max_plate_nesting=nesting), 3, 9, 250),
    "PIMH": chain(lambda model, nesting: PIMH(model, 8, max_plate_nesting=nesting), 12, 12),
    "PMMH": replace(
        chain(lambda model, nesting: PMMH(model, 16, ["factor"], step_size=0.8, max_plate_nesting=nesting), 40, 40),
        not_for={model: "'factor'" for model in ("hmm", "tabular", "two sites", "problems", "linear gaussian", "prefix")},
    ),
    "ParallelTempering": chain(lambda model, nesting: ParallelTempering(model, [0.1, 0.5, 1.0], max_plate_nesting=nesting), 25, 40),
}


def numbered(num_particles: int, nesting: int) -> Callable[[Any], Tensor]:
    """Directions of particles by number, whatever their state."""
    angle = torch.arange(num_particles, dtype=torch.float64).view(-1, *(1,) * nesting)
    return lambda state: torch.stack([angle.cos(), angle.sin()], -1)


SEARCHES: dict[str, Callable[[Callable[..., Any], int], Any]] = {
    "BeamSearch": lambda model, nesting: BeamSearch(model, 2, 3, max_plate_nesting=nesting),
    "BeamSearch, lookahead": lambda model, nesting: BeamSearch(model, 2, 3, lookahead=1, filter_duplicates=True, max_plate_nesting=nesting),
    "BeamSearch without duplicates": lambda model, nesting: BeamSearch(model, 2, 3, filter_duplicates=True, max_plate_nesting=nesting),
    "DVTS": lambda model, nesting: DVTS(model, 2, 3, max_plate_nesting=nesting),
    "DVTS, lookahead": lambda model, nesting: DVTS(model, 2, 3, lookahead=2, filter_duplicates=True, max_plate_nesting=nesting),
    "REBASE": lambda model, nesting: REBASE(model, 6, max_plate_nesting=nesting),
    "BestFirst": lambda model, nesting: BestFirst(model, expand=6, budget=48, max_plate_nesting=nesting),
    "MCTS": lambda model, nesting: MCTS(model, 48, 6, max_plate_nesting=nesting),
    "MCTS, rollouts": lambda model, nesting: MCTS(model, 48, 6, value="rollout", max_plate_nesting=nesting),
    "ABMCTS": lambda model, nesting: ABMCTS(model, 48, 6, max_plate_nesting=nesting),
    "SpeculativeRejection": lambda model, nesting: SpeculativeRejection(model, 6, max_plate_nesting=nesting),
    "DORA": lambda model, nesting: DORA(model, 6, embed=numbered(6, nesting), max_plate_nesting=nesting),
    "BestOfN": lambda model, nesting: BestOfN(model, 6, max_plate_nesting=nesting),
    "SelfConsistency": lambda model, nesting: SelfConsistency(model, 6, max_plate_nesting=nesting),
    "SoftBestOfN": lambda model, nesting: SoftBestOfN(model, 6, max_plate_nesting=nesting),
    "BestOfMajority": lambda model, nesting: BestOfMajority(model, 6, 2, answer=repr, max_plate_nesting=nesting),
    "TwoStageVote": lambda model, nesting: TwoStageVote(model, 6, answer=repr, max_plate_nesting=nesting),
    "Adaptive": lambda model, nesting: Adaptive(
        SMC(model, 2, max_plate_nesting=nesting), until=lambda posterior: posterior.num_particles >= 6, max_particles=8
    ),
}
"""They have no target: their own tests hold them to their definitions."""

LISTED = {"Adaptive": "give the problems as a list"}
"""Searches that run each problem alone, and the words by which they refuse a plate of problems that is no list."""
