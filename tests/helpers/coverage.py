"""What everything that the package exports must have: a row among the exact tests, a wrong version that is rejected, documentation.

Each function returns what is missing, in words; an empty list is complete.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ppl_llm
from ppl_llm import inference
from ppl_llm.inference import RESAMPLERS
from ppl_llm.methods import BY_OPTION, IN_PYTHON_ONLY, METHODS
from ppl_llm.methods.options import RESAMPLER
from ppl_llm.reward.prm.families import FAMILIES
from tests.helpers.algorithms import ALGORITHMS, SEARCHES
from tests.helpers.mutants import MUTANTS
from tests.helpers.tiny_prms import RECIPES

ROOT = Path(__file__).parents[2]

REJECTED_BY = {
    "Adaptive": "tests/inference/adaptive/test_joint_distribution.py::test_rejects_wrong_draws",
    "SMC": "no reset",
    "Importance": "q over p",
    "ParticleGibbs": "sorted multinomial",
    "BlockMH": "tests/inference/mcmc/test_block_mh.py::test_rejects_blocks_without_the_ratio_of_lengths",
    "BeamSearch": "tests/inference/search/test_search.py::test_rejects_wrong_beam_searches",
    "DVTS": "tests/inference/search/test_search.py::test_rejects_wrong_subtrees",
    "BestOfN": "tests/inference/search/test_search_distributions.py::test_best_of_n_rejects_wrong_groups",
    "SoftBestOfN": "tests/inference/search/test_votes_by_answer.py::test_rejects_rewards_as_log_weights",
    "BestOfMajority": "tests/inference/search/test_votes_by_answer.py::test_rejects_the_best_of_all",
    "TwoStageVote": "tests/inference/search/test_votes_by_answer.py::test_rejects_one_vote_for_each_candidate",
    "SelfConsistency": "tests/inference/search/test_search_distributions.py::test_distribution_of_the_majority",
}
"""Of algorithms whose mutant is no subclass of theirs: the mutant's name, or the test that makes and rejects it."""

NO_MUTANT = {"Enumeration": "the oracle: its results are compared with closed forms"}

PROGRAMS: Collection[str] | None = None
"""Algorithms that the random programs run; ``None`` asks for nothing. The table of tests/inference/random_programs.py goes here."""


def algorithms(package: Any = inference) -> dict[str, type]:
    """The exported classes that run a model."""
    found = {name: value for name in package.__all__ if inspect.isclass(value := getattr(package, name))}
    runs = {name: value for name, value in found.items() if callable(getattr(value, "run", None)) and not inspect.isabstract(value)}
    return {name: value for name, value in runs.items() if not issubclass(value, inference.ParticlePosterior)}


@cache
def matrix_rows() -> frozenset[str]:
    """Names of the algorithms that the exact matrix runs."""
    builds: list[Callable[..., Any]] = [*(row.build for row in ALGORITHMS.values()), *SEARCHES.values()]
    return frozenset(
        {"Enumeration", *(type(build(lambda: None, 0)).__name__ for build in builds)}
    )  # its rows have tests of their own there


@cache
def page(path: str) -> str:
    return (ROOT / path).read_text()


def test_exists(path: str) -> bool:
    """Whether ``file::function`` is a test."""
    file, _, function = path.partition("::")
    tree = ast.parse(page(file)) if (ROOT / file).exists() else ast.Module([], [])
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body)


@dataclass(frozen=True)
class Tables:
    """Where an algorithm must be."""

    rows: Collection[str]
    rejected_by: Mapping[str, str]
    registered: Collection[str]
    excused: Mapping[str, str]
    programs: Collection[str] | None

    @classmethod
    def present(cls) -> Tables:
        return cls(matrix_rows(), REJECTED_BY, {*BY_OPTION, *(method.algorithm for method in METHODS.values())}, IN_PYTHON_ONLY, PROGRAMS)


def missing_for_algorithm(name: str, algorithm: type, tables: Tables) -> list[str]:
    lacks = []
    if name not in tables.rows:
        lacks.append(f"{name} has no row in the exact matrix: enter it in tests/helpers/algorithms.py")
    derived = any(inspect.isclass(m.wrong) and issubclass(m.wrong, algorithm) for m in MUTANTS.values())
    proof = tables.rejected_by.get(name)
    if not derived and name not in NO_MUTANT and not (proof in MUTANTS or (proof is not None and test_exists(proof))):
        lacks.append(f"{name} has no mutant: enter one in tests/helpers/mutants.py")
    if f"autoclass:: {name}\n" not in page("docs/api/inference.md"):
        lacks.append(f"{name} is missing from docs/api/inference.md")
    if f"\n### {name}\n" not in page("docs/algorithms.md"):
        lacks.append(f"{name} has no section in docs/algorithms.md")
    if name not in tables.registered and name not in tables.excused:
        lacks.append(f"{name} has no entry in ppl_llm/methods, nor a reason in IN_PYTHON_ONLY")
    if tables.programs is not None and name not in tables.programs:
        lacks.append(f"{name} is run by no random program")
    return lacks


def missing_for_resampler(name: str) -> list[str]:
    """Exact tests run every scheme of ``RESAMPLERS``."""
    lacks = []
    if name not in RESAMPLERS:
        lacks.append(f"{name} is not in RESAMPLERS, from which the exact tests take the schemes")
    if name not in RESAMPLER.choices:
        lacks.append(f"{name} is no choice of --resampler: enter it in ppl_llm/methods/options.py")
    if f".. py:data:: {name}\n" not in page("docs/api/inference.md"):
        lacks.append(f"{name} is missing from docs/api/inference.md")
    if f"`{name}`" not in page("docs/algorithms.md"):
        lacks.append(f"{name} is missing from docs/algorithms.md")
    return lacks


def rewards(package: Any = ppl_llm) -> dict[str, type]:
    """The exported classes that score steps."""
    found = {name: value for name in package.__all__ if inspect.isclass(value := getattr(package, name))}
    scoring = {name: value for name, value in found.items() if hasattr(value, "step_log_odds")}
    return {name: value for name, value in scoring.items() if not getattr(value, "_is_protocol", False)}


def missing_for_reward(name: str) -> list[str]:
    lacks = []
    folders = [ROOT / "tests/ppl_llm/reward", ROOT / "tests/ppl_llm/remote"]
    tests = "".join(path.read_text() for folder in folders for path in folder.glob("**/test_*.py"))
    if not re.search(rf"\b{name}\b", tests):
        lacks.append(f"{name} is used by no test of tests/ppl_llm/reward")
    if f"autoclass:: {name}\n" not in page("docs/api/ppl_llm.md"):
        lacks.append(f"{name} is missing from docs/api/ppl_llm.md")
    if not any(name in guide.read_text() for guide in (ROOT / "docs").glob("*.md")):
        lacks.append(f"{name} is on no page of docs/")
    return lacks


def missing_for_family(name: str) -> list[str]:
    lacks = []
    if name not in FAMILIES:
        lacks.append(f"{name} is not in FAMILIES of ppl_llm/reward/prm/families.py")
    if name not in RECIPES:
        lacks.append(f"{name} has no published recipe to be compared with: enter it in RECIPES of tests/helpers/tiny_prms.py")
    if f"| `{name}` |" not in page("docs/reward_models.md"):
        lacks.append(f"{name} has no row in the table of docs/reward_models.md")
    return lacks
