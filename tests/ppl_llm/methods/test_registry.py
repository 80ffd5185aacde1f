"""Nothing is exported without its exact test, its mutant, its documentation and its entry in the registry; and this test sees a lack."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import ppl_llm
from ppl_llm import inference
from ppl_llm.inference import RESAMPLERS
from ppl_llm.methods import BUDGETED, IN_PYTHON_ONLY, METHODS, SOLVING, Option, get_method, markdown_table, parse_method
from ppl_llm.methods.base import moves
from ppl_llm.methods.options import BATCH_NAMES, KERNELS, MODEL_OPTIONS
from ppl_llm.reward.prm.families import FAMILIES
from tests.helpers import coverage
from tests.helpers.coverage import (
    NO_MUTANT,
    REJECTED_BY,
    Tables,
    algorithms,
    missing_for_algorithm,
    missing_for_family,
    missing_for_resampler,
    missing_for_reward,
    rewards,
)

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", algorithms())
def test_every_algorithm_is_complete(name: str) -> None:
    assert missing_for_algorithm(name, algorithms()[name], Tables.present()) == []


def test_the_algorithms_are_found() -> None:
    assert {"SMC", "Importance", "Enumeration", "WasteFreeSMC", "PMMH", "DVTS", "SelfConsistency"} <= algorithms().keys()
    assert not {"TrajectoryKernel", "ParticleMessenger", "CostMeter", "ParticlePosterior"} & algorithms().keys()
    assert set(REJECTED_BY) | set(NO_MUTANT) | set(IN_PYTHON_ONLY) <= algorithms().keys()


@pytest.mark.parametrize("name", RESAMPLERS)
def test_every_resampler_is_complete(name: str) -> None:
    assert missing_for_resampler(name) == []


def test_every_resampler_has_a_name() -> None:
    exported = {n for n in inference.__all__ if callable(getattr(getattr(inference, n), "num_uniforms", None))}
    assert {name for name in exported if not inspect.isclass(getattr(inference, name))} == set(RESAMPLERS)


@pytest.mark.parametrize("name", rewards())
def test_every_reward_is_complete(name: str) -> None:
    assert missing_for_reward(name) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_every_prm_family_is_complete(name: str) -> None:
    assert missing_for_family(name) == []


# The test of the test


class MadeUp:
    """An algorithm that nobody has entered anywhere."""

    def run(self) -> None: ...


LACKS = [
    "no row in the exact matrix",
    "no mutant",
    "docs/api/inference.md",
    "no section in docs/algorithms.md",
    "no entry in ppl_llm/methods",
]


def test_a_made_up_algorithm_is_refused_for_each_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "MadeUp", MadeUp, raising=False)
    monkeypatch.setattr(inference, "__all__", [*inference.__all__, "MadeUp"])
    assert algorithms()["MadeUp"] is MadeUp
    lacks = missing_for_algorithm("MadeUp", MadeUp, replace(Tables.present(), programs=[]))
    for lack, expected in zip(lacks, [*LACKS, "run by no random program"], strict=True):
        assert lack.startswith("MadeUp ") and expected in lack


@pytest.mark.parametrize("lack", range(len(LACKS)))
def test_each_lack_is_seen_by_itself(monkeypatch: pytest.MonkeyPatch, lack: int) -> None:
    """With everything entered but one."""
    pages = {"docs/api/inference.md": ".. autoclass:: MadeUp\n", "docs/algorithms.md": "\n### MadeUp\n"}
    if lack in (2, 3):
        pages[[*pages][lack - 2]] = "\n"
    monkeypatch.setattr(coverage, "page", pages.__getitem__)
    tables = Tables({"MadeUp"} - ({"MadeUp"} if lack == 0 else set()), {"MadeUp": "no reset"}, {"MadeUp"}, {}, None)
    tables = replace(tables, rejected_by={}) if lack == 1 else replace(tables, registered=()) if lack == 4 else tables
    found = missing_for_algorithm("MadeUp", MadeUp, tables)
    assert len(found) == 1 and LACKS[lack] in found[0]


def test_made_up_others_are_refused_for_each_lack() -> None:
    for found, number in (
        (missing_for_resampler("made_up"), 4),
        (missing_for_reward("MadeUpReward"), 3),
        (missing_for_family("made-up"), 3),
    ):
        assert len(found) == number and all("made" in lack.lower() for lack in found)


# The registry itself


def test_names_and_options_are_spelled_once() -> None:
    """An option of several methods is the same one but for its default, so that a flag of ``solve`` means one thing."""
    seen: dict[str, Option] = {}
    for name, method in METHODS.items():
        assert name == method.name and (hasattr(inference, method.algorithm) or hasattr(ppl_llm, method.algorithm))
        extra = () if method.budget is None else method.budget.extra
        for option in (*method.options, *extra):
            assert option.by_default(None) == seen.setdefault(option.name, option.by_default(None))
            assert option.name not in MODEL_OPTIONS
            if option.default is not None:
                option.check(option.default)
        if method.budget is not None:
            assert set(method.budget.free) | set(method.budget.defaults) <= {option.name for option in method.options}


@pytest.mark.parametrize("name", SOLVING)
def test_every_option_reaches_the_name(name: str) -> None:
    """``name:option=default`` is the method itself."""
    for option in METHODS[name].options:
        if option.default is not None:
            text = str(option.default).lower() if option.kind is bool else str(option.default)
            assert parse_method(f"{name}:{option.name}={text}").options == {option.name: option.default}


@pytest.mark.parametrize("name", BUDGETED)
def test_what_a_budget_allows_is_accepted(name: str) -> None:
    method, budget = METHODS[name], METHODS[name].budget
    assert budget is not None
    rule = "pandora:0.01" if name == "best-of-n" else "share:0.75"
    for option in (*method.options, *budget.extra):
        value = {**{option.name: option.default}, **budget.defaults}[option.name]
        text = {"resampler": "multinomial", "ess_threshold": "0.5", "until": rule, "batch": "2"}.get(option.name, str(value).lower())
        if option.name in BATCH_NAMES[1:]:
            assert get_method(f"{name}:until={rule}:{option.name}={text}").least >= 1
        elif option.name in budget.free or option in budget.extra:
            assert get_method(f"{name}:{option.name}={text}").least >= 1
        else:
            with pytest.raises(ValueError, match="takes no options" if budget.shared else f"{option.name} follows from the budget"):
                get_method(f"{name}:{option.name}={text}")


def test_kernels_are_algorithms() -> None:
    assert all(moves(name).func is getattr(inference, algorithm) for name, (algorithm, _) in KERNELS.items())


def test_the_documentation_has_exactly_the_table() -> None:
    printed = subprocess.run([sys.executable, "-m", "ppl_llm.methods"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed == markdown_table() + "\n"
    assert printed in (ROOT / "docs/algorithms.md").read_text(), "copy the output of: python -m ppl_llm.methods"


def test_the_registry_does_not_wait_for_torch() -> None:
    code = "import sys, ppl_llm.methods as m; m.parse_method('smc:islands=4:preset=twisted'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
