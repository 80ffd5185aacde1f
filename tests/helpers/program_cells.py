"""What is run on a random program: every algorithm and option, as a cell whose result is held against the oracle.

Estimates are tested by z-tests over independent replicas in one batch. A cell that looks wrong (|z| > 4.9) is run again with other random
numbers and eight times the replicas, and is wrong if it still looks so (|z| > 5.5). A right cell passes for wrong with probability 1e-6
times 4e-8 a test in the normal approximation: with 3e6 tests in a run of 10 000 programs, 1e-7 for the run. Chains start from exact draws,
so that their distribution after any number of iterations is known, and nothing waits for a chain to converge; they are looked at with a
quarter of the replicas first, and at the first test only where that raises suspicion (|z| > 2.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ppl_llm.inference import (
    PIMH,
    PMMH,
    RESAMPLERS,
    SMC,
    Adaptive,
    BestOfN,
    EntropicAnnealing,
    Enumeration,
    Importance,
    ParallelTempering,
    ParticleGibbs,
    SelfConsistency,
    SuffixMH,
    TemperedSMC,
    power,
)
from tests.helpers.algorithms import ALGORITHMS, LISTED, SEARCHES
from tests.helpers.program_ast import (
    GLOBAL,
    LIST,
    NESTED,
    NO_MASK,
    PAD,
    AnyProgram,
    Barrier,
    Draw,
    End,
    GaussianProgram,
    Note,
    Program,
    Score,
    TokenProgram,
)
from tests.helpers.program_enumerated import fits

WEIGHTED, CHAIN, EXACT, SEARCH, ENUMERATED = "weighted", "chain", "exact", "search", "enumerated"

Build = Callable[[Callable[..., Any], int, Any], Any]


@dataclass(frozen=True)
class Cell:
    """An algorithm with its options.

    :ivar build: from a program, its ``max_plate_nesting`` and its proposals.
    :ivar str kind: ``WEIGHTED`` particles with an evidence, a ``CHAIN``, ``EXACT`` enumeration, a ``SEARCH``, which has no target, or
        ``ENUMERATED``: a sweep all of whose randomness is (tests/helpers/program_enumerated.py).
    :ivar int replicas: in one batch.
    :ivar int particles: of a population.
    :ivar bool proposes: whether it uses the program's proposals.
    :ivar bool ancestors: whether it scores a suffix after other prefixes.
    :ivar float bias: of a self-normalised or adaptive estimate, allowed.
    :ivar run: how a weighted posterior is made, if not by ``run()``.
    :ivar str parameter: a site the program must have.
    :ivar str listed: words by which a plate of problems that is no list is refused; ``""`` where it is not.
    :ivar int iterations: of a chain, from exact draws; a kernel that is slightly wrong moves away from them.
    """

    build: Build
    kind: str = WEIGHTED
    replicas: int = 1000
    particles: int = 4
    proposes: bool = False
    ancestors: bool = False
    bias: float = 0.0
    run: Callable[[Any], Any] = lambda built: built.run()
    parameter: str = ""
    iterations: int = 8
    scheme: str = ""
    ess_threshold: float = 1.0
    listed: str = ""


def last_slice(smc: SMC) -> Any:
    return list(smc.iterate())[-1]


def without_proposals(build: Callable[[Callable[..., Any], int], Any]) -> Build:
    return lambda model, nesting, proposals: build(model, nesting)


def smc(n: int, *, proposes: bool = False, **options: Any) -> Cell:
    def build(model: Callable[..., Any], nesting: int, proposals: Any) -> SMC:
        return SMC(model, n, max_plate_nesting=nesting, proposals=proposals if proposes else None, **options)

    return Cell(build, particles=n, proposes=proposes)


def gibbs(n: int, *, proposes: bool = False, ancestor_sampling: bool = False, replicas: int = 1500, **options: Any) -> Cell:
    def build(model: Callable[..., Any], nesting: int, proposals: Any) -> ParticleGibbs:
        given = proposals if proposes else None
        return ParticleGibbs(model, n, max_plate_nesting=nesting, proposals=given, ancestor_sampling=ancestor_sampling, **options)

    return Cell(build, CHAIN, replicas, n, proposes, ancestor_sampling)


def tempered(n: int, betas: Any, kernel: Any, **options: Any) -> Cell:
    ancestors = bool(getattr(kernel, "keywords", {}).get("ancestor_sampling"))
    return Cell(
        lambda model, nesting, _: TemperedSMC(model, n, betas=betas, kernel=kernel, max_plate_nesting=nesting, **options),
        replicas=400,
        particles=n,
        ancestors=ancestors,
    )


def tempering(betas: list[float], kernel: Any) -> Cell:
    return Cell(lambda model, nesting, _: ParallelTempering(model, betas, kernel, max_plate_nesting=nesting), CHAIN, 1000, 1)


def bridged(cell: Cell) -> Cell:
    """The same target along other powers of the prior: those of a bridge, which begins below 1 and goes above."""
    return replace(cell, build=lambda model, nesting, q: cell.build(power(model, 1.0, bridge=[0.4, 1.6]), nesting, q))


def from_matrix() -> dict[str, Cell]:
    """The columns of test_matrix.py; their chains start from the exact distribution."""
    found = {}
    for name, algorithm in ALGORITHMS.items():
        kind = WEIGHTED if algorithm.evidence else CHAIN
        ancestors = "ancestor" in name
        replicas = algorithm.replicas if algorithm.evidence else 1000
        iterations = 1 if name == "PrefixWalk" else 8  # of 80 steps each
        build = without_proposals(algorithm.build)
        found[name] = Cell(build, kind, replicas, 4, ancestors=ancestors, bias=algorithm.bias, iterations=iterations)
    for name, search in SEARCHES.items():
        found[name] = Cell(without_proposals(search), SEARCH, listed=LISTED.get(name, ""))
    return found


def options() -> dict[str, Cell]:
    found = {
        "SMC, 256 particles": replace(smc(256), replicas=120),
        "SMC, two islands at every barrier": smc(2, islands=2, ess_threshold=1.0),
        "SMC, finished populations too": smc(4, ess_threshold=1.0, resample_finished=True),
        "SMC, audited": smc(4, ess_threshold=0.6, audit=True),
        "SMC in slices": replace(smc(4, ess_threshold=0.6), run=last_slice, replicas=500),
        "SMC, annealed at .6": smc(4, ess_threshold=0.6, selection=EntropicAnnealing("entropy", num_steps=3)),
        "SMC with proposals": smc(4, proposes=True, ess_threshold=0.6),
        "SMC with proposals, 2 particles at every barrier": smc(2, proposes=True, ess_threshold=1.0, resampler="multinomial"),
        "SMC with proposals, two islands, audited": smc(3, proposes=True, ess_threshold=0.6, islands=2, audit=True),
        "Importance with proposals": Cell(lambda m, n, q: Importance(m, 4, proposals=q, max_plate_nesting=n), proposes=True),
        "ParticleGibbs with proposals": gibbs(3, proposes=True, ess_threshold=1.0),
        "ParticleGibbs, ancestor sampling with proposals": gibbs(3, proposes=True, ess_threshold=1.0, ancestor_sampling=True),
        "ParticleGibbs, ancestor sampling, two references": gibbs(2, ess_threshold=1.0, ancestor_sampling=True, num_references=2),
        "SuffixMH with proposals": Cell(lambda m, n, q: SuffixMH(m, proposals=q, max_plate_nesting=n), CHAIN, 2000, 2, proposes=True),
        "PIMH with proposals": Cell(lambda m, n, q: PIMH(m, 3, proposals=q, max_plate_nesting=n), CHAIN, 1500, 3, proposes=True),
        "TemperedSMC without moves": tempered(4, [0.3, 1.0], SuffixMH, num_moves=0),
        "TemperedSMC, two moves": tempered(4, [0.5, 1.0], SuffixMH, num_moves=2, ess_threshold=1.0),
        "TemperedSMC of ParticleGibbs with ancestors": tempered(
            3, [0.4, 1.0], partial(ParticleGibbs, num_particles=3, ancestor_sampling=True, ess_threshold=1.0)
        ),
        "TemperedSMC with proposals": Cell(
            lambda m, n, q: TemperedSMC(m, 4, betas=[0.5, 1.0], kernel=partial(SuffixMH, proposals=q), max_plate_nesting=n),
            replicas=400,
            proposes=True,
        ),
        "ParallelTempering, from above": tempering([1.0, 0.4, 0.0], SuffixMH),
        "ParallelTempering of ParticleGibbs": tempering([0.3, 1.0], partial(ParticleGibbs, num_particles=3)),
        "SMC, bridged powers": bridged(smc(4, ess_threshold=0.6)),
        "SMC, bridged powers with proposals": bridged(smc(3, proposes=True, ess_threshold=1.0)),
        "SMC, moved by SuffixMH": smc(4, ess_threshold=0.6, rejuvenate=SuffixMH, moves=2),
        "SMC, moved by SuffixMH with proposals": smc(3, proposes=True, rejuvenate=SuffixMH),
        "SMC, moved by ParticleGibbs": smc(3, ess_threshold=0.6, rejuvenate=partial(ParticleGibbs, num_particles=2, ess_threshold=1.0)),
        "SMC, bridged and moved, audited": bridged(smc(3, ess_threshold=1.0, rejuvenate=SuffixMH, audit=True)),
        "SMC, bridged and moved, in slices": replace(
            bridged(smc(3, ess_threshold=0.6, rejuvenate=SuffixMH, move_every=2)), run=last_slice, replicas=400
        ),
        "ParticleGibbs, bridged powers": bridged(gibbs(3, ess_threshold=1.0)),
        "ParticleGibbs, bridged powers with ancestor sampling": bridged(gibbs(3, ess_threshold=1.0, ancestor_sampling=True)),
        "PMMH of theta": Cell(lambda m, n, q: PMMH(m, 6, ["theta"], max_plate_nesting=n), CHAIN, 1000, 6, parameter="theta"),
        "Enumeration": Cell(lambda m, n, q: Enumeration(m), EXACT, 1),
    }
    for scheme in RESAMPLERS:
        for threshold in (0.6, 1.0):
            found[f"SMC, {scheme} at {threshold}"] = smc(3, resampler=scheme, ess_threshold=threshold)
            found[f"SMC, enumerated, {scheme} at {threshold}"] = replace(
                smc(2, resampler=scheme, ess_threshold=threshold), kind=ENUMERATED, scheme=scheme, ess_threshold=threshold
            )
    found["SMC, never resampled"] = smc(3, ess_threshold=0.0)
    for scheme in ("multinomial", "systematic", "stratified", "residual"):
        for ancestors in (False, True):
            for threshold, replicas in ((0.6, 1500), (1.0, MANY)):
                name = f"ParticleGibbs, {scheme} at {threshold}{', ancestor sampling' if ancestors else ''}"
                given: dict[str, Any] = {"resampler": scheme, "ess_threshold": threshold, "ancestor_sampling": ancestors}
                found[name] = gibbs(3, replicas=replicas, **given)
    return found


MANY = 8000
"""Chains where the errors of wrong conditional schemes are small: of 0.005 in a probability after one sweep."""

CELLS: dict[str, Cell] = {**from_matrix(), **options()}


# What is expected ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """
    :ivar bool exact: whether the exact answer is acceptable.
    :ivar tuple words: if a refusal is acceptable, one of these must be in its message.
    """

    exact: bool
    words: tuple[str, ...] = ()


AGREES = Expected(True)


def expected(program: AnyProgram, name: str, cell: Cell) -> Expected | None:
    """What an algorithm must do on a program; ``None`` where it is not run."""
    if cell.proposes and not program.proposals:
        return None
    words = refusals(program, cell)
    if name == "PMMH":  # of the parameter of another model
        return Expected(False, ("'factor'", *words))
    if isinstance(program, TokenProgram):
        if cell.parameter or cell.kind == ENUMERATED or (program.constrained == GLOBAL and not cell.proposes):
            return None
        if name == "PrefixWalk" and program.steps > 1 and not words:  # steps after the end of a text may have a factor
            return Expected(True, ("complete where an execution is done",))
        return Expected(False, words) if words else AGREES
    if isinstance(program, GaussianProgram):
        if cell.parameter and not program.theta:
            return None
        if cell.kind == ENUMERATED:
            return None
        if cell.kind == EXACT:
            return Expected(False, ("z_0", "theta", "plate"))
        return Expected(False, words) if words else AGREES
    if cell.parameter or (cell.kind == ENUMERATED and not fits(program, cell.particles, cell.scheme)):
        return None
    if words == ("random numbers",) and cell.run is last_slice:  # what comes after the last barrier is run once
        return Expected(True, words)
    # With as many particles as values the barrier cannot tell whether they are one for each particle; other numbers are no question.
    ambiguous = ("as many as there are particles",) if lists_of_plain_values(program) else ()
    return Expected(not words, (*words, *ambiguous))


def runs_once(cell: Cell) -> bool:
    """Whether an algorithm runs the model once, so that it integrates out what it does not see."""
    built = cell.build(lambda: None, 1, None)
    replays = getattr(built, "audit", False) or getattr(built, "rejuvenation", None) is not None
    return isinstance(built, SMC | BestOfN | SelfConsistency | Adaptive) and not replays and cell.run is not last_slice


def refusals(program: AnyProgram, cell: Cell) -> tuple[str, ...]:
    """Words of the errors with one of which a program must be refused."""
    if isinstance(program, TokenProgram):
        words = [cell.listed] if cell.listed and program.problems else []
        words += ["plate"] if cell.kind == EXACT and program.problems else []
        return (*words, *(["ancestor_sampling"] if cell.ancestors and program.constrained == GLOBAL else []))
    if isinstance(program, GaussianProgram):
        return (cell.listed,) if cell.listed and program.problems and program.independent else ()
    words = []
    if cell.listed and program.problems and program.independent:
        words.append(cell.listed)
    if cell.kind == EXACT and program.nesting:
        words += ["plate"]
    if "reused name" in program.features:
        words += ["'z_0' is met twice"]
    if program.subsample:
        words += ["plate 'problems' has a subsample_size"]
    if "shared factor after resampling" in program.features and cell.kind != EXACT:
        words += ["'late'"]
    if any(s.hidden for s in program.draws) and not runs_once(cell):
        words += ["random numbers"]
    return tuple(words)


def lists_of_plain_values(program: Program) -> bool:
    """Whether a list that passes a barrier holds only values that are the same for all particles: those that ``condition`` gives."""
    same = {"done"}
    for s in program.statements:
        if isinstance(s, Draw):
            given = s.site in program.condition and (s.mask in (NO_MASK, PAD) or "done" in same)
            same |= {s.variable} if given else set()
        elif isinstance(s, Note):
            same |= {s.variable} if same.issuperset(s.parents) and not s.over_elements else set()
        elif isinstance(s, End):
            same -= set() if s.variable in same else {"done"}
        elif isinstance(s, Barrier) and s.form in (LIST, NESTED):
            names = [*(["done"] if program.ends else []), *s.variables]
            listed = names if s.form == LIST else names[1:]
            if listed and same.issuperset(listed):
                return True
    return False


def may_kill(program: AnyProgram) -> bool:
    """Whether a particle's weight may be zero."""
    if isinstance(program, GaussianProgram):
        return False
    if isinstance(program, TokenProgram):
        return program.constrained == GLOBAL
    return any(isinstance(s, Score) and not s.observed and holds_zero(s.table) for s in program.statements)


def holds_zero(table: Any) -> bool:
    return any(map(holds_zero, table)) if isinstance(table, tuple) else table == 0
