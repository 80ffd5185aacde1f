"""Forty random programs, the same in every run, and what the fuzz itself must be able to do; ``make fuzz`` runs as many as wanted.

Seeds are fixed, so nothing here fails by chance; how often a right engine would fail with other seeds stands in
tests/helpers/program_cells.py. Every program meets twelve cells.
"""

from __future__ import annotations

import ast
import json
import math
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import pyro.poutine as poutine
import pytest
import torch
from hypothesis import given, settings

from ppl_llm.inference import SMC
from tests.helpers import mutants, program_ast, program_gaussian_oracle, program_oracle, program_token_oracle
from tests.helpers.algorithms import ALGORITHMS, SEARCHES
from tests.helpers.program_ast import NESTED, SHARED, AnyProgram, Barrier, Draw, Note, Program
from tests.helpers.program_cells import CELLS
from tests.helpers.program_check import Checker
from tests.helpers.program_code import build, code_of
from tests.helpers.program_features import FEATURES
from tests.helpers.program_gaussian_oracle import oracle_of
from tests.helpers.program_mutants import NOT_OF_DISTRIBUTIONS, cases
from tests.helpers.program_oracle import Oracle
from tests.helpers.program_shrink import shrink
from tests.helpers.program_strategies import Choices, generate, programs, random_program
from tests.helpers.program_values import stacked
from tests.inference.random_programs import main, programs_needed

SEED, PROGRAMS, CELLS_EACH = 15, 40, 12


def spread_over_features() -> list[int]:
    """Indices of programs, one after the other that with the rarest features of which fewer than three programs are chosen yet."""
    pool = {index: random_program(SEED, index)[0].features for index in range(400)}
    frequency = Counter(feature for features in pool.values() for feature in features)
    seen: Counter[str] = Counter()
    chosen: list[int] = []
    while len(chosen) < PROGRAMS:
        best = max(pool, key=lambda index: (math.fsum(1 / frequency[f] for f in pool[index] if seen[f] < 3), -index))
        chosen.append(best)
        seen.update(pool.pop(best))
    return chosen


FIXED = spread_over_features()


@cache
def allotted() -> dict[int, list[str]]:
    """Cells of each program: of those that apply to it, the ones that the fewest programs before it have, and can have."""
    possible: dict[int, list[str]] = {}
    for index in FIXED:
        checker = checker_of(index)
        possible[index] = [name for name, cell in CELLS.items() if checker.wanted(name, cell) is not None]
    programs_of = Counter(name for names in possible.values() for name in names)
    taken: Counter[str] = Counter()
    cells = {}
    for index, names in possible.items():
        cells[index] = sorted(names, key=lambda name: (taken[name], programs_of[name]))[:CELLS_EACH]
        taken.update(cells[index])
    return cells


def checker_of(index: int) -> Checker:
    return Checker(random_program(SEED, index)[0], f"{SEED}/{index}", 0.5)


@pytest.mark.parametrize("index", FIXED)
def test_a_random_program(index: int) -> None:
    report = checker_of(index).run(allotted()[index])
    assert not report.passed_over
    assert not report.failures, "\n".join([*map(str, report.failures), code_of(random_program(SEED, index)[0])])


def test_the_programs_have_every_feature_and_meet_every_cell() -> None:
    drawn = Counter(feature for index in FIXED for feature in random_program(SEED, index)[0].features)
    assert len(FIXED) == PROGRAMS and set(drawn) == FEATURES
    assert min(drawn.values()) >= 2
    met = Counter(name for names in allotted().values() for name in names)
    assert set(met) == set(CELLS)
    assert min(met.values()) >= 2
    assert set(ALGORITHMS) | set(SEARCHES) <= set(CELLS)


# The oracle ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [program_ast, program_oracle, program_gaussian_oracle, program_token_oracle])
def test_the_oracle_shares_no_code_with_what_it_judges(module: Any) -> None:
    nodes = list(ast.walk(ast.parse(Path(module.__file__).read_text())))
    imported = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    plain = {"__future__", "collections.abc", "dataclasses", "itertools", "math", "random", "typing"}
    assert imported <= plain | {f"tests.helpers.program_{name}" for name in ("ast", "oracle", "token_oracle")}


NOT_IN_TRACES = {"gaussian", "tokens", "replay", "fn.mask ends", "poutine.mask ends", "block", "reused name", "subsample of problems"}


@settings(max_examples=40)
@given(program=programs(FEATURES - NOT_IN_TRACES))
def test_paths_have_the_mass_that_pyro_gives_them(program: AnyProgram) -> None:
    """Log-probabilities of Pyro's own trace, with the latent sites at the values of a path."""
    assert isinstance(program, Program)
    oracle = Oracle(program)
    rng = random.Random(0)
    for _ in range(3):
        mass, shared, each = rng.choice([root for root, total in zip(oracle.roots, oracle.totals, strict=True) if total > 0])
        chosen = [rng.choice(paths) for paths in each]
        mass = math.prod([mass, *(part for part, _ in chosen)])
        raw = oracle.raw(shared, tuple(env for _, env in chosen))
        checker = Checker(program, "")
        data = {site: stacked(program, site, [raw]) for site in raw}
        with pyro.plate("one", 1, dim=-1 - program.nesting):
            trace = poutine.trace(poutine.condition(checker.model, data=data)).get_trace()
        assert float(trace.log_prob_sum()) == pytest.approx(math.log(mass), abs=1e-4)


@settings(max_examples=20)
@given(program=programs(frozenset({"gaussian", "gaussian parameter", "scaled score", "problems"})))
def test_gaussian_evidence_agrees_with_importance_of_pyro(program: AnyProgram) -> None:
    """Bayes' rule at one point: evidence = joint density / posterior density, for chains of one latent site."""
    if isinstance(program, Program) or len(program.steps) > 1 or program.theta or program.problems or not program.steps[0].scale:
        return
    model, _ = build(program)
    joint = oracle_of(program).joints[0]
    point = 0.3
    trace = poutine.trace(poutine.condition(model, data={"z_0": torch.tensor(point)})).get_trace()
    posterior = -0.5 * (point - joint.mean[0]) ** 2 / joint.cov[0][0] - 0.5 * math.log(2 * math.pi * joint.cov[0][0])
    assert joint.log_evidence == pytest.approx(float(trace.log_prob_sum()) - posterior, abs=1e-4)


# The fuzz itself -------------------------------------------------------------------------------------------------------------------------


def test_every_mutant_is_a_case_of_the_fuzz_or_leaves_distributions_alone() -> None:
    assert set(cases()) | set(NOT_OF_DISTRIBUTIONS) == set(mutants.MUTANTS)
    assert not set(cases()) & set(NOT_OF_DISTRIBUTIONS)


@pytest.mark.parametrize(
    "name",
    [
        "subtract max",
        "no reset",
        "reset to one",
        "weights overwritten",
        "shared ancestors",
        "forgotten proposal",
        "stale locals",
        "finished particles scored again",
        "ancestor weights without the suffix",
        "likelihood upside down",
        "PIMH accepts always",
        "residual weights dropped",
        "no mass of what may follow",
        "the end of a text wherever it comes",
    ],
)
def test_finds_wrong_engines_soon(name: str) -> None:
    """Today each is found by 6 programs or fewer; ``--mutants`` tells for all."""
    assert programs_needed(name, cases()[name], 0, 40) is not None


def test_a_failure_shrinks_to_what_it_needs() -> None:
    """A plate and two steps, and neither ends, scales nor proposals."""

    def fails(candidate: AnyProgram) -> bool:
        return isinstance(candidate, Program) and candidate.problems > 0 and len(candidate.draws) > 1

    program, choices = next(
        (p, c) for p, c in (random_program(0, k) for k in range(100)) if isinstance(p, Program) and p.ends and p.proposals and fails(p)
    )
    small = shrink(choices, FEATURES, fails)
    assert fails(program) and fails(small)
    assert isinstance(small, Program) and small.problems == 1 and len(small.draws) == 2
    assert not (small.ends or small.proposals) and len(small.statements) == 2
    assert "torch.tensor([[1.0, 1.0]])" in code_of(small)


def test_a_list_of_given_values_is_refused_where_it_may_be_one_for_each_particle() -> None:
    """Found by the fuzz (program 182 of seed 0): what ``condition`` gives has no particles, nor has a note of it."""
    program = Program(
        (
            Draw("s", "s", 2, (), (1.0, 1.0), where=SHARED),
            Draw("z_0", "z_0", 3, (), (1.0, 1.0, 1.0)),
            Note("d_0", ("z_0",), 3, "d_0"),
            Barrier(("s", "z_0", "d_0"), NESTED),
        ),
        condition={"z_0": 0},
    )
    model, _ = build(program)
    with pytest.raises(ValueError, match=r"state\[1\]\['rest'\] is a list of 2 plain values, as many as there are particles"):
        SMC(model, 2, ess_threshold=1.0).run()
    assert float(SMC(model, 3, ess_threshold=1.0).run().log_evidence.exp()) == pytest.approx(1 / 3)
    report = Checker(program, "given").run(["SMC, two islands at every barrier", "SMC, three islands", "Enumeration", "ParticleGibbs"])
    assert report.checked == 4 and not report.failures


def test_choices_repeat_a_program() -> None:
    for index in range(20):
        program, choices = random_program(SEED, index)
        assert generate(Choices(recorded=choices), FEATURES) == program


def test_a_run_resumes_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "programs.jsonl"
    command = ["--seed", "3", "--resume", str(path), "--cells", "SelfConsistency", "Importance"]
    assert main([*command, "--programs", "2"]) == 0
    assert main([*command, "--programs", "3"]) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert "3 programs" in capsys.readouterr().out


def test_a_wrong_result_is_printed_as_a_program_that_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With an oracle whose evidence is a tenth too large."""
    right = Oracle.answer

    def wrong(self: Oracle) -> Any:
        answer = right(self)
        return type(answer)([1.1 * z for z in answer.evidence], answer.means)

    monkeypatch.setattr(Oracle, "answer", wrong)
    assert main(["--seed", "0", "--only", "2", "--cells", "SMC, 256 particles"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED program 2 of seed 0, SMC, 256 particles: evidence [0]: z = -" in printed
    code = printed[printed.index("import pyro\n") : printed.rindex("}\n") + 2]
    names: dict[str, Any] = {}
    exec(code, names)
    assert isinstance(poutine.trace(names["model"])(), dict)
    pyro.clear_param_store()
