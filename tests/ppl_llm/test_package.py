"""The package's face: what it exports, and that importing it is cheap."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import ppl_llm


def test_every_export_exists_and_is_listed() -> None:
    assert sorted(ppl_llm._MODULES) == sorted(ppl_llm.__all__)
    for name in ppl_llm.__all__:
        assert getattr(ppl_llm, name) is not None
    assert set(ppl_llm.__all__) <= set(dir(ppl_llm))
    with pytest.raises(AttributeError, match="has no attribute 'SCM'"):
        _ = ppl_llm.SCM


def test_importing_the_command_line_loads_no_heavy_library() -> None:
    packages = "ppl_llm, ppl_llm.cli, ppl_llm.answers, ppl_llm.programs, ppl_llm.remote, ppl_llm.reward.prm.formats, ppl_llm.tasks"
    code = f"import sys, {packages}; print([m for m in ('torch', 'pyro', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_both_top_level_folders_are_one_package() -> None:
    import ppl_llm.distributions
    import ppl_llm.inference

    assert ppl_llm.SMC is ppl_llm.inference.SMC
    assert ppl_llm.LLMStep.__module__ == "ppl_llm.distributions.llm_step"


@pytest.mark.parametrize("name", ["answers", "programs", "remote", "reward", "reward.prm", "reward.prm.formats", "tasks"])
def test_packages_export_on_first_use(name: str) -> None:
    package = import_module(f"ppl_llm.{name}")
    assert sorted(package._MODULES) == sorted(package.__all__) and set(package.__all__) <= set(dir(package))
    for exported in package.__all__:
        assert getattr(package, exported) is getattr(import_module(f"ppl_llm.{name}.{package._MODULES[exported]}"), exported)
    with pytest.raises(AttributeError, match=f"module 'ppl_llm.{name}' has no attribute 'nothing'"):
        _ = package.nothing
