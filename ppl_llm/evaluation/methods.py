"""Methods at a budget of complete generations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..inference import (
    DVTS,
    SMC,
    BeamSearch,
    Importance,
    ParallelTempering,
    ParticleGibbs,
    ParticlePosterior,
    SuffixMH,
    TemperedSMC,
)
from ..inference.names import unknown_name
from ..lm.decoding import DecodingLM
from ..models import ReasoningModel

_SWEEPS = 4
"""Filters of one particle Gibbs run, the unconditional one that starts it included."""

_EXPAND = 4
"""Candidates per beam or subtree (search-and-learn's default)."""

_LADDER = (0.0, 0.25, 1.0)
"""Likelihood powers of the tempered methods."""

Run = Callable[[ReasoningModel, list[str], int], ParticlePosterior]


@dataclass(frozen=True)
class Method:
    """How a method spends a budget of B complete generations per problem.

    :ivar str name: as on the command line.
    :ivar str line: what it does.
    :ivar Run run: from a model, problems and a budget to a posterior with a plate of problems; ``None`` for a vote over independent
        samples, which all such methods share.
    :ivar str vote: how the answer is chosen from the candidates, see ``VOTES`` in :mod:`ppl_llm.evaluation.votes`.
    :ivar int least: smallest budget.
    """

    name: str
    line: str
    run: Run | None
    vote: str
    least: int = 1

    def vote_under(self, preset_vote: str) -> str:
        """The name of the vote; ``preset`` leaves it to the preset's, see :class:`~ppl_llm.Preset`."""
        if self.vote != "preset":
            return self.vote
        return "best-of-n" if preset_vote == "argmax" else "posterior"


def independent(model: ReasoningModel, problems: list[str], budget: int) -> ParticlePosterior:
    """The samples that every vote shares, with their log-probabilities where sampling in this process gives them anyway."""
    local = isinstance(model.lm, DecodingLM)
    return Importance(model, budget, record_log_probs=local, max_plate_nesting=1).run(problems)


def _smc(model: ReasoningModel, problems: list[str], budget: int) -> ParticlePosterior:
    return SMC(model, budget, max_plate_nesting=1, **model.preset.smc).run(problems)


def _particle_gibbs(model: ReasoningModel, problems: list[str], budget: int) -> ParticlePosterior:
    # The first filter writes N solutions, the others N - 1: their reference costs nothing.
    kernel = ParticleGibbs(model, (budget + _SWEEPS - 1) // _SWEEPS, max_plate_nesting=1)
    return kernel.run(_SWEEPS - 1, problems)


def _beam_search(model: ReasoningModel, problems: list[str], budget: int) -> ParticlePosterior:
    return BeamSearch(model, budget // _EXPAND, _EXPAND, max_plate_nesting=1).run(problems)


def _dvts(model: ReasoningModel, problems: list[str], budget: int) -> ParticlePosterior:
    return DVTS(model, budget // _EXPAND, _EXPAND, max_plate_nesting=1).run(problems)


def _tempered_smc(model: ReasoningModel, problems: list[str], budget: int) -> ParticlePosterior:
    # A move writes half a solution anew on average: N (1 + 2 / 2) generations.
    return TemperedSMC(model, budget // 2, betas=list(_LADDER), kernel=SuffixMH, max_plate_nesting=1).run(problems)


def _parallel_tempering(model: ReasoningModel, problems: list[str], budget: int) -> ParticlePosterior:
    # Every replica starts with a solution, and a round writes half of each anew on average.
    rounds = max(1, 2 * budget // len(_LADDER) - 2)
    warmup = rounds // 4
    return ParallelTempering(model, list(_LADDER), SuffixMH, max_plate_nesting=1).run(rounds - warmup, problems, warmup_steps=warmup)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("importance", "independent samples, weighted by the model's factors", None, "posterior"),
        Method("self-consistency", "majority of independent samples", None, "majority"),
        Method("best-of-n", "independent samples, the one with the best score", None, "best-of-n"),
        Method("weighted-best-of-n", "independent samples, each votes with its score", None, "weighted"),
        Method("smc", "particle filter with the preset's resampling", _smc, "preset"),
        Method(
            "particle-gibbs",
            f"{_SWEEPS} filters of B / {_SWEEPS} particles, each around a solution of the one before",
            _particle_gibbs,
            "posterior",
            2 * _SWEEPS,
        ),
        Method("beam-search", f"B / {_EXPAND} beams, {_EXPAND} continuations each", _beam_search, "weighted", _EXPAND),
        Method("dvts", f"B / {_EXPAND} subtrees, {_EXPAND} continuations each", _dvts, "weighted", _EXPAND),
        Method("tempered-smc", "whole solutions, reweighted and moved along a ladder of powers", _tempered_smc, "posterior", 2),
        Method("parallel-tempering", "chains at several powers that swap their solutions", _parallel_tempering, "posterior", len(_LADDER)),
    )
}


def get_method(name: str) -> Method:
    """A method by name.

    :raises ValueError: for an unknown name, with the nearest known one.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
