"""Wrong engines as cells: what the fuzz must find."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

from torch import Tensor

from ppl_llm.inference import RESAMPLERS, SMC, ParticleGibbs, SuffixMH, power
from ppl_llm.inference.mcmc.rejuvenation import Rejuvenation
from ppl_llm.lm import autoregressive
from tests.helpers import mutant_modules, mutants  # noqa: F401 - the former enters all mutants
from tests.helpers.mutants import MUTANTS, with_messenger
from tests.helpers.program_ast import GLOBAL, NO_MASK, AnyProgram, Barrier, Draw, Program, Score, TokenProgram
from tests.helpers.program_cells import CELLS, CHAIN, MANY, Cell

NOT_OF_DISTRIBUTIONS = {
    "tensors counted by identity": "a view of a right posterior",
    **dict.fromkeys(
        (
            "evidence of parts that have none",
            "a place for whatever is odd",
            "widths by log-scores",
            "widths: first of ties",
            "widths rounded one by one",
            "a frontier of the last children",
            "stops at the first answer drawn",
            "the rule sees the last batch alone",
            "the leader against all others together",
            "a stop decided on the batch to come",
            "a last batch beyond the budget",
            "places that are kept",
            "no virtual loss",
            "a value told to the parent alone",
            "a value told to the ancestors of a neighbour",
            "widening ignored",
            "UCT by the child's own visits",
            "going down by the children's own scores",
            "a child by its own score alone",
            "wider where going down was drawn",
            "the worst are kept",
            "a share of all, finished or not",
            "dropped a step late",
            "more for those who go the same way",
            "finished particles take a direction",
            "directions by length",
            "one vote for each candidate, whatever its group",
            "a softmax of log-rewards",
            "the best candidates, however rare their answers",
        ),
        "searches have no target",
    ),
    **dict.fromkeys(
        (
            "standard errors of particles that share ancestors",
            "a tie counts as a turn",
            "the difference of probabilities as a log-factor",
        ),
        "of explanations, which change no weight",
    ),
    **dict.fromkeys(
        (
            "an audit of log-probabilities alone",
            "an audit without permutations",
            "an audit that begins in place",
            "an audit of tensors and lists alone",
            "an audit that takes the first dimension for the particles",
        ),
        "it judges programs, not their weights; tests/inference/handlers/test_audit.py",
    ),
    "a selection that loses particles": "no cell has a selection of that kind",
    **dict.fromkeys(
        (
            "proposals of another support",
            "states of before the resampling",
            "one over the draws until the first that is accepted",
            "one over the draws but one until the second that is accepted",
            "one, as with a mask",
            "a critic that reads on behind its position",
            "the value at the end in place of the verifier",
            "a value of zero on the way",
            "unfinished solutions keep their value at the last step",
            "rollouts drawn again whenever a prefix is scored",
            "rollouts of the first particle for all",
            "the head of the step before",
            "hidden states that stay where they were when particles are resampled",
            "chains without a score count as wrong",
            "a repeated question is a judgement again",
            "the best verdicts count instead of the soundest",
            "the meta judgement upside down",
            "the mean of all temperatures",
            "the temperature of another sequence",
            "multiplied by the temperature",
            "a completion that is full has ended",
            "the model's last step is no end",
            "cut candidates among the finished ones",
        ),
        "of language models and their rewards",
    ),
    "certain copies without tolerance": "the copies are drawn with the same expectations; only their variance is larger",
    "index N from a float32 cumsum": "an index out of range once in thousands of draws of thousands of particles",
    "a particle of weight zero": "a uniform that is exactly zero",
    "ESS on incremental weights": "the ladder's powers lie elsewhere; the estimates have the same expectations",
    "bisection upside down": "the ladder's powers lie elsewhere; the estimates have the same expectations",
    **dict.fromkeys(
        (
            "one messenger for all runs",
            "the first start of all chains",
            "swaps take turns by the kernel's count",
            "step sizes adapt the kernel",
            "a nested run among the handlers of the outer one",
        ),
        "a single run is right; tests/inference/test_runs.py has several runs of one object",
    ),
    "values recorded as the model holds them": "programs do not write in place",
    "a list of plain values through a barrier": "programs have no lists with one value for each particle",
    "as many trajectories as there are": "kernels ask for as many",
    "blocks without the ratio of lengths": "the first state alone is grown in blocks, and chains start from the exact distribution here",
    "log-probabilities in float32 whatever the default": "of language models",
    "a note without the plates for every particle": "notes of programs have all plates",
    "a subsample for every execution": "programs have subsamples of independent problems only, which are refused",
}
"""Mutants that leave distributions and expectations of the algorithms as they are, and why."""


@dataclass(frozen=True)
class Case:
    """How the fuzz meets a mutant.

    :ivar patched: a context in which the engine is wrong.
    :ivar change: makes the program that runs from the one that the oracle sees; ``None`` where it stays as it is.
    """

    cell: Cell
    patched: Callable[[], Any] = nullcontext
    change: Callable[[AnyProgram], AnyProgram | None] | None = None


def messenger(wrong: Any, threshold: float = 1.0, proposes: bool = False) -> Case:
    def build(model: Callable[..., Any], nesting: int, proposals: Any) -> SMC:
        given = proposals if proposes else None
        made = SMC(model, 4, resampler="multinomial", ess_threshold=threshold, proposals=given, max_plate_nesting=nesting)
        with_messenger(wrong)(made)
        return made

    return Case(Cell(build, proposes=proposes))


def scheme(wrong: Any) -> Case:
    return Case(Cell(lambda m, n, q: SMC(m, 3, resampler=wrong, ess_threshold=1.0, max_plate_nesting=n), particles=3))


class Conditional:
    """A conditional scheme with the uniforms that it wants."""

    __name__ = "wrong"

    def __init__(self, wrong: Any, uniforms: Callable[[int], int]) -> None:
        self.conditional, self.num_conditional_uniforms = wrong.conditional, uniforms
        self.num_uniforms = RESAMPLERS["multinomial"].num_uniforms

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        """Where there is no reference, nothing is wrong."""
        return RESAMPLERS["multinomial"](log_weights, u)


def conditional(wrong: Any, uniforms: Callable[[int], int], particles: int) -> Case:
    scheme = Conditional(wrong(), uniforms)
    return Case(
        Cell(
            lambda m, n, q: ParticleGibbs(m, particles, resampler=scheme, ess_threshold=1.0, max_plate_nesting=n),
            CHAIN,
            MANY,
            particles,
        )
    )


def reference(name: str, wrong: Any, ancestors: bool, resampler: str = "multinomial", particles: int = 3) -> Case:
    """ParticleGibbs with another messenger."""

    def build(model: Callable[..., Any], nesting: int, proposals: Any) -> ParticleGibbs:
        return ParticleGibbs(
            model, particles, resampler=resampler, ess_threshold=1.0, ancestor_sampling=ancestors, max_plate_nesting=nesting
        )

    @contextmanager
    def patched() -> Iterator[None]:
        with patch.object(sys.modules[ParticleGibbs.__module__], name, wrong):
            yield

    return Case(Cell(build, CHAIN, MANY, particles, ancestors=ancestors), patched)


def kernel(wrong: Any, *args: Any, replicas: int = 1000, parameter: str = "", **options: Any) -> Case:
    return Case(Cell(lambda m, n, q: wrong(m, *args, max_plate_nesting=n, **options), CHAIN, replicas, 4, parameter=parameter))


def stage(wrong: Any, **options: Any) -> Case:
    def build(model: Callable[..., Any], nesting: int, proposals: Any) -> Any:
        return wrong(model, 6, betas=[0.2, 0.6, 1.0], ess_threshold=0.7, max_plate_nesting=nesting, **options)

    return Case(Cell(build, replicas=1500, particles=6))


def moved(wrong: Any) -> Case:
    """Bridged powers, with moves by a wrong handler."""
    cell = CELLS["SMC, bridged and moved, audited"]

    def build(model: Callable[..., Any], nesting: int, proposals: Any) -> SMC:
        bridged = power(model, 1.0, bridge=[0.4, 1.6])
        return SMC(bridged, 3, ess_threshold=0.6, rejuvenate=SuffixMH, moves=2, max_plate_nesting=nesting)

    return Case(replace(cell, build=build), partial(patch.object, Rejuvenation, "handler", wrong))


def meaning(key: str, cell: str) -> Case:
    """A cell as it is, in an engine where a site means something else."""
    wrong, target, *_ = mutants.WRONG_SEMANTICS[key]
    return Case(CELLS[cell], partial(patch, target, wrong))


def sampler(wrong: Any) -> Case:
    """Steps under a constraint with another sampler."""
    return Case(CELLS["SMC with proposals"], partial(patch.object, autoregressive, "ConstrainedSampler", wrong))


def in_another_language(wrong: Any) -> Case:
    """The constraint of the proposals, changed."""

    def build(model: Callable[..., Any], nesting: int, proposals: Any) -> SMC:
        return SMC(model, 4, ess_threshold=0.6, proposals=wrong(proposals), max_plate_nesting=nesting)

    return Case(Cell(build, proposes=True), change=lambda program: program if is_global(program) else None)


def is_global(program: AnyProgram) -> bool:
    """Whether the proposals are a constraint."""
    return isinstance(program, TokenProgram) and program.constrained == GLOBAL and not program.proposed


def last_variable_only(program: AnyProgram) -> AnyProgram | None:
    """A program that passes one variable through its barriers and uses others as they were."""
    if not isinstance(program, Program) or program.ends:
        return None
    changed = tuple(
        replace(s, variables=s.variables[-1:]) if isinstance(s, Barrier) and s.form != "object" else s for s in program.statements
    )
    return replace(program, statements=changed) if changed != program.statements else None


def scored_again(program: AnyProgram) -> AnyProgram | None:
    """A program that scores particles that have ended."""
    if not isinstance(program, Program) or not program.ends:
        return None
    return replace(program, statements=tuple(replace(s, mask=NO_MASK) if isinstance(s, Score) else s for s in program.statements))


def cases() -> dict[str, Case]:
    wrong = {name: mutant.wrong for name, mutant in MUTANTS.items()}
    found: dict[str, Case] = {name: scheme(engine) for name, (_, engine) in mutants.WRONG_RESAMPLERS.items()}
    for name in ("subtract max", "no reset", "reset to one", "shared ancestors", "summed plates"):
        found[name] = messenger(wrong[name])
    found["weights overwritten"] = messenger(wrong["weights overwritten"], 0.3)
    for name in ("a dead population ends the run", "a dead population counts by its survivors"):
        found[name] = messenger(wrong[name])
    for name in ("q over p", "forgotten proposal", "prior counted twice"):
        found[name] = messenger(wrong[name], proposes=True)
    found["stale locals"] = Case(Cell(lambda m, n, q: SMC(m, 4, ess_threshold=1.0, max_plate_nesting=n)), change=last_variable_only)
    found["finished particles scored again"] = replace(found["stale locals"], change=scored_again)

    one = RESAMPLERS["systematic"].num_uniforms
    each = RESAMPLERS["multinomial"].num_uniforms
    found["systematic, one slot overwritten"] = conditional(wrong["systematic, one slot overwritten"], one, 3)
    found["sorted multinomial"] = conditional(wrong["sorted multinomial"], each, 3)
    found["residual, first slot overwritten"] = conditional(wrong["residual, first slot overwritten"], lambda n: n + 1, 3)
    found["N - 1 systematic plus pinning"] = conditional(wrong["N - 1 systematic plus pinning"], one, 3)

    ancestors, references = "AncestorMessenger", "ReferenceMessenger"
    for name in ("ancestor weights without the suffix", "ancestor weights of whole trajectories"):
        found[name] = reference(ancestors, wrong[name], True)
    found["full weight of the reference among partial weights"] = reference(
        ancestors, wrong["full weight of the reference among partial weights"], True, particles=2
    )
    found["offspring of the reference replays it"] = reference(references, wrong["offspring of the reference replays it"], False)
    found["reference always in the first slot"] = reference(references, wrong["reference always in the first slot"], False, "stratified")

    for name in (
        "increments instead of weights",
        "evidence of the last stage",
        "likelihood upside down",
        "likelihood from before the move",
        "moves one power behind",
    ):
        found[name] = stage(wrong[name])
    for name in ("the first M of N ancestors", "chains keep the weights of their starts"):
        found[name] = stage(wrong[name], chain_length=3)
    for name in ("tempered likelihood in the swap ratio", "swap ratio upside down", "swaps of overlapping pairs"):
        found[name] = kernel(wrong[name], [0.1, 0.5, 1.0])
    dropped = wrong["residual weights dropped"]
    found["residual weights dropped"] = Case(
        Cell(lambda m, n, q: SMC(m, 4, ess_threshold=1.0, selection=dropped("entropy", num_steps=6), max_plate_nesting=n))
    )
    for name in ("a child taken by its value", "leaves of a window all alike"):
        found[name] = kernel(wrong[name])
    for name in ("missing length ratio", "truncated suffix sum"):
        found[name] = kernel(wrong[name])
    for name in (
        "no bridging term",
        "moves only where the ESS is low",
        "moves at the whole power",
        "density from before the move",
        "state from before the move",
        "moves that finish executions",
        "the whole model in the move of a beginning",
    ):
        found[name] = moved(wrong[name])
    for name in ("PIMH accepts always", "PIMH accepts the lower evidence"):
        found[name] = kernel(wrong[name], 3)
    for name in ("PMMH without the Jacobian", "PMMH without the prior", "PMMH keeps no evidence estimate"):
        found[name] = kernel(wrong[name], 3, ["theta"], parameter="theta", step_size=1.0)
    for name in ("no mass of what may follow", "masses of the unwarped model"):
        found[name] = sampler(wrong[name])
    name = "the end of a text wherever it comes"
    found[name] = in_another_language(wrong[name])
    for name, key, cell in (
        ("sites met twice", "names", "SuffixMH"),
        ("splices without the prior of masked values", "splices", "ParticleGibbs, multinomial at 1.0, ancestor sampling"),
        ("enumeration without the prior of masked values", "enumeration", "Enumeration"),
        ("proposals of masked sites", "proposals", "SMC with proposals"),
        ("subsampled problems as populations", "problems", "Importance"),
        ("hidden random numbers under chains", "hidden", "SuffixMH"),
        ("hidden random numbers under tempering", "hidden, tempered", "TemperedSMC"),
        ("an event of each particle's note for every particle", "notes", "Importance"),
        ("given values enumerated", "given", "Enumeration"),
    ):
        found[name] = meaning(key, cell)
    return found


def found_by(case: Case, check: Callable[[Cell, AnyProgram | None], bool], program: AnyProgram) -> bool:
    """Whether ``check(cell, program to run instead)`` rejects the wrong engine on a program."""
    changed = case.change(program) if case.change is not None else None
    if case.change is not None and changed is None:
        return False
    with case.patched():
        return check(case.cell, changed)


__all__ = ["NOT_OF_DISTRIBUTIONS", "Case", "Draw", "cases", "found_by", "partial"]
