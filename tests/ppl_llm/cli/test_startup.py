"""What commands import, by name: times are for ``benchmarks/startup.py``. Each command has a process of its own, as from a shell."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ppl_llm.cli import startup

PROBLEM = "Begin with 12. First: take away 5. Second: increase it by 3. What number do you get?"
LIBRARIES = {"torch", "pyro", "transformers", "numpy", "scipy", "sympy", "tokenizers", "safetensors", "huggingface_hub"}
OF_OTHER_COMMANDS = {
    *("datasets", "pandas", "sklearn", "matplotlib", "arviz", "ray", "openai", "httpx", "tenacity", "fastapi", "uvicorn"),
    *("llguidance", "math_verify", "reasoning_gym", "jsonschema", "lm_eval", "gguf", "tensorflow", "jax", "triton"),
    *("pyro.contrib", "torch._inductor.compile_fx", "torch.utils.tensorboard", "transformers.trainer", "transformers.pipelines"),
    *("ppl_llm.evaluation", "ppl_llm.gateway", "ppl_llm.tasks", "ppl_llm.remote.client", "ppl_llm.lm.openai_lm", "ppl_llm.lm.tabular_lm"),
    *("ppl_llm.constraints.grammar", "ppl_llm.demo.train"),
}


def after(code: str) -> tuple[set[str], bool, int]:
    """Modules of a process at its end, whether the collector is on, and how many objects it leaves alone."""
    found = "[list(sys.modules), gc.isenabled(), gc.get_freeze_count()]"
    tail = f"import atexit, gc, json, sys\natexit.register(lambda: print(json.dumps({found})))\n"
    done = subprocess.run([sys.executable, "-c", tail + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules, collects, frozen = json.loads(done.stdout.splitlines()[-1])
    return set(modules), collects, frozen


def command(*arguments: str) -> tuple[set[str], bool, int]:
    return after(f"sys.argv = ['ppl-llm', *{list(arguments)!r}]\nfrom ppl_llm.cli import main\nmain()")


@pytest.mark.parametrize("arguments", [["--help"], ["solve", "--help"], ["methods"], ["--version"]], ids=" ".join)
def test_words_alone_import_no_library(arguments: list[str]) -> None:
    modules, _, _ = command(*arguments)
    assert "ppl_llm.cli.commands" in modules and not modules & LIBRARIES


def test_solve_imports_nothing_of_other_commands() -> None:
    modules, collects, frozen = command("solve", "--particles", "2", PROBLEM)
    assert {"torch", "pyro", "transformers"} <= modules
    assert modules & OF_OTHER_COMMANDS == set()
    assert collects and frozen > 100_000, "what was imported is left alone, and the collector is on for the run"


@pytest.mark.parametrize(
    "names", ["SMC, TabularLM, TabularReward, reasoning", "OpenAILM", "FunctionReward, Confidence, JudgeReward, Twist"]
)
def test_what_has_no_network_here_does_not_import_transformers(names: str) -> None:
    modules, _, _ = after(f"from ppl_llm import {names}")
    assert "torch" in modules and not modules & {"transformers", "torch._dynamo", "sympy", "scipy"}


# the collector --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(startup, "_own", True)
    yield
    gc.unfreeze()


def test_the_collector_is_off_while_importing(own: None) -> None:
    before = gc.get_freeze_count()
    with startup.uncollected():
        assert not gc.isenabled()
        with startup.uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled(), "the outer one is not over"
    assert gc.isenabled() and gc.get_freeze_count() > before


def test_it_is_on_again_after_an_error(own: None) -> None:
    with pytest.raises(OSError, match="no such model"), startup.uncollected():
        raise OSError("no such model")
    assert gc.isenabled()


def test_a_process_of_others_is_left_as_it_is() -> None:
    before = gc.get_freeze_count()
    with startup.uncollected():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
