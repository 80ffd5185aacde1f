"""The table of wrong engines is complete: every one is entered, and a test that asserts its rejection names it."""

from __future__ import annotations

import ast
import importlib
import inspect
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.mutant_modules import MODULES
from tests.helpers.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
NAMES = {name: value for module in MODULES for name, value in vars(module).items()}
"""Of all files of mutants."""

NAMED = {
    "resamplers that are not unbiased": [
        "residual remainder without N",
        "systematic at the midpoint",
        "cdf off by one",
        "copies of the best",
        "certain copies without tolerance",
    ],
    "unsafe indices": ["index N from a float32 cumsum", "a particle of weight zero"],
    "bookkeeping of weights": ["subtract max", "no reset", "weights overwritten", "reset to one", "finished particles scored again"],
    "populations": ["shared ancestors", "summed plates"],
    "populations that die": ["a dead population ends the run", "a dead population counts by its survivors"],
    "proposals": ["q over p", "forgotten proposal", "prior counted twice", "proposals of another support"],
    "conditional resampling": [
        "sorted multinomial",
        "systematic, one slot overwritten",
        "residual, first slot overwritten",
        "N - 1 systematic plus pinning",
    ],
    "references": [
        "full weight of the reference among partial weights",
        "offspring of the reference replays it",
        "reference always in the first slot",
    ],
    "ancestor sampling": ["ancestor weights without the suffix", "ancestor weights of whole trajectories"],
    "stale state": [
        "stale locals",
        "an audit of log-probabilities alone",
        "an audit without permutations",
        "an audit that begins in place",
        "an audit of tensors and lists alone",
        "an audit that takes the first dimension for the particles",
    ],
    "tempering": [
        "increments instead of weights",
        "evidence of the last stage",
        "likelihood upside down",
        "likelihood from before the move",
        "moves one power behind",
        "ESS on incremental weights",
        "bisection upside down",
    ],
    "swaps": ["tempered likelihood in the swap ratio", "swap ratio upside down", "swaps of overlapping pairs"],
    "power targets and moves of filters": [
        "no bridging term",
        "the whole model in the move of a beginning",
        "blocks without the ratio of lengths",
        "moves only where the ESS is low",
        "moves that finish executions",
        "moves at the whole power",
        "density from before the move",
        "state from before the move",
    ],
    "annealed resampling": ["residual weights dropped", "a selection that loses particles"],
    "numbers and orders": [
        "log-probabilities in float32 whatever the default",
        "as many trajectories as there are",
        "a list of plain values through a barrier",
        "a note without the plates for every particle",
    ],
    "adaptive budgets": [
        "the rule sees the last batch alone",
        "the leader against all others together",
        "a stop decided on the batch to come",
        "a last batch beyond the budget",
        "places that are kept",
    ],
    "posteriors": ["tensors counted by identity", "evidence of parts that have none"],
    "suffixes": ["missing length ratio", "truncated suffix sum"],
    "runs that share their state": [
        "one messenger for all runs",
        "swaps take turns by the kernel's count",
        "step sizes adapt the kernel",
        "the first start of all chains",
        "a nested run among the handlers of the outer one",
    ],
    "twists": [
        "the value at the end in place of the verifier",
        "a value of zero on the way",
        "rollouts drawn again whenever a prefix is scored",
    ],
    "judges": [
        "the best verdicts count instead of the soundest",
        "the meta judgement upside down",
        "chains without a score count as wrong",
        "a repeated question is a judgement again",
    ],
    "solutions that are cut": [
        "a completion that is full has ended",
        "the model's last step is no end",
        "cut candidates among the finished ones",
    ],
    "hidden states": ["the head of the step before", "hidden states that stay where they were when particles are resampled"],
    "constraints": [
        "no mass of what may follow",
        "masses of the unwarped model",
        "states of before the resampling",
        "the end of a text wherever it comes",
        "one over the draws until the first that is accepted",
        "one over the draws but one until the second that is accepted",
        "one, as with a mask",
        "a critic that reads on behind its position",
    ],
    "temperatures": ["the mean of all temperatures", "the temperature of another sequence", "multiplied by the temperature"],
    "explanations": [
        "standard errors of particles that share ancestors",
        "a tie counts as a turn",
        "the difference of probabilities as a log-factor",
    ],
    "votes by answer": [
        "one vote for each candidate, whatever its group",
        "a softmax of log-rewards",
        "the best candidates, however rare their answers",
    ],
    "particle Metropolis-Hastings": [
        "PIMH accepts always",
        "PIMH accepts the lower evidence",
        "PMMH without the Jacobian",
        "PMMH without the prior",
        "PMMH keeps no evidence estimate",
    ],
}
"""What must not be missing, by the kind of bug."""

HELPERS = {"Mutant", "mutant", "with_messenger"}
"""Public names of the files of mutants that are no mutants."""


@cache
def functions(path: str) -> dict[str, ast.FunctionDef]:
    """Test functions of a file, decorators included."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def identifiers(node: ast.AST) -> set[str]:
    named = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return named | {str(n.value) for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def holds(collection: Any, wrong: Any) -> bool:
    """Whether a collection holds a mutant, its instance, or what calls it."""
    if isinstance(collection, dict):
        return any(holds(item, wrong) for item in collection.values())
    if isinstance(collection, list | tuple):
        return any(holds(item, wrong) for item in collection)
    return collection is wrong or type(collection) is wrong or getattr(collection, "fn", None) is wrong


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_rejected_by_a_test(name: str) -> None:
    """The tests named exist, use the mutant (by its name or through a table that holds it), and assert something."""
    mutant = MUTANTS[name]
    assert mutant.rejected_by, f"no test rejects the mutant {name!r}"
    tables = {table for table, value in NAMES.items() if isinstance(value, dict | list) and holds(value, mutant.wrong)}
    for test in mutant.rejected_by:
        path, function = test.split("::")
        node = functions(path).get(function)
        assert node is not None and function.startswith("test_"), f"{test} does not exist, so mutant {name!r} may survive"
        assert identifiers(node) & {mutant.wrong.__name__, *tables}, f"{test} does not use the mutant {name!r}"
        asserts = any(isinstance(n, ast.Assert) or (isinstance(n, ast.Attribute) and n.attr == "raises") for n in ast.walk(node))
        assert asserts, f"{test} asserts nothing"
        marks = {n.attr for decorator in node.decorator_list for n in ast.walk(decorator) if isinstance(n, ast.Attribute)}
        assert not marks & {"skip", "skipif", "xfail", "slow"}, f"{test} does not run every time"


@pytest.mark.parametrize("kind", NAMED)
def test_every_named_bug_has_a_mutant(kind: str) -> None:
    assert [name for name in NAMED[kind] if name not in MUTANTS] == []


def test_every_wrong_engine_is_entered() -> None:
    """A class or function added to a file of mutants without an entry fails here."""
    own = {module.__name__ for module in MODULES}
    defined = {
        name
        for name, value in NAMES.items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ in own and not name.startswith("_")
    }
    assert defined - HELPERS - {mutant.wrong.__name__ for mutant in MUTANTS.values()} == set()


def right_engine(wrong: Any) -> Any:
    """What a wrong class is derived from."""
    return next((base for base in wrong.__mro__ if base.__module__.startswith("ppl_llm.")), None) if inspect.isclass(wrong) else None


def with_right_engine(entry: Any, wrong: Any) -> Any:
    """A table's entry with the right engine in the place of the wrong one."""
    return (
        tuple(with_right_engine(item, wrong) for item in entry)
        if isinstance(entry, tuple)
        else right_engine(wrong)
        if entry is wrong
        else entry
    )


CONTROLS = [(name, test) for name, mutant in MUTANTS.items() if right_engine(mutant.wrong) is not None for test in mutant.rejected_by]


@pytest.mark.parametrize(("name", "test"), CONTROLS)
def test_the_right_engine_fails_the_rejecting_test(name: str, test: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter-test: with the right engine in the place of the wrong one nothing is rejected, so it is the bug that is."""
    wrong = MUTANTS[name].wrong
    path, function = test.split("::")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    fn = getattr(module, function)
    tables = [value for value in NAMES.values() if isinstance(value, dict | list) and value is not MUTANTS and holds(value, wrong)]
    keys = [key for table in tables if isinstance(table, dict) for key, entry in table.items() if holds(entry, wrong)]
    for table in tables:
        for key in [key for key in keys if isinstance(table, dict) and key in table and holds(table[key], wrong)]:
            monkeypatch.setitem(table, key, with_right_engine(table[key], wrong))
    if hasattr(module, wrong.__name__):
        monkeypatch.setattr(module, wrong.__name__, right_engine(wrong))
    arguments = {"name": keys[0] if keys else None, "wrong": right_engine(wrong)}
    marked = {mark.args[0]: next(iter(mark.args[1])) for mark in getattr(fn, "pytestmark", []) if mark.name == "parametrize"}
    with pytest.raises(AssertionError):
        fn(**{parameter: arguments.get(parameter, marked.get(parameter)) for parameter in inspect.signature(fn).parameters})
