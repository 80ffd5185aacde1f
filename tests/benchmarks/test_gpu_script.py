"""The benchmark for accelerators, run with tiny models on a processor."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_llm.kv_cache.cache import KVCache
from tests.ppl_llm.lm.decoding.test_device_loop import write_behind_the_end

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ALONE = """
import runpy, sys
for name in ("rich", "typer", "tenacity", "datasets", "matplotlib"):
    sys.modules[name] = None  # not to be had where the script is run
sys.path.insert(0, {folder!r})
sys.argv = ["gpu.py", "--small", "--repeats", "1"]
runpy.run_path({script!r}, run_name="__main__")
"""


def test_everything_is_timed_without_the_packages_of_the_command_line():
    code = ALONE.format(folder=str(BENCHMARKS), script=str(BENCHMARKS / "gpu.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "copy " in said and " TFLOP/s" in said
    assert said.count("(allowed") == 6
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("| small")]
    found = {(what.split(",")[0], way) for _, what, way, *_ in rows}
    assert found == {
        ("token step", "operation by operation"),
        ("token step", "the ordinary loop"),
        ("token step", "generate"),
        ("PRM append", "kept keys, whole call"),
        ("PRM append", "from nothing"),
        ("resample", "half of the sequences copied"),
        ("4 filters", "one after the other"),
        ("4 filters", "a plate in lockstep"),
        ("4 filters", "run_concurrently"),
        ("particle filter", "SMC"),
        ("particle filter", "generate alone, as many tokens"),
        ("particle filter", "the naive loop"),
    }
    assert all(float(ms.split(" ")[0]) > 0 for _, what, _, ms, *_ in rows if not what.startswith("resample"))


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_checks")


def everything_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    place = KVCache.place
    monkeypatch.setattr(KVCache, "place", lambda self, positions, stop: torch.ones_like(place(self, positions, stop)))


@pytest.mark.parametrize("mutant", [everything_seen, write_behind_the_end])
def test_its_checks_reject_a_wrong_engine(mutant: Any, checks: Any, monkeypatch: pytest.MonkeyPatch):
    mutant(monkeypatch)
    with pytest.raises(SystemExit, match="log-probability of a token in float32, operation by operation: error"):
        list(checks.check("small", "small", torch.device("cpu")))
