"""Published models that lie ready, and process reward models in published layouts that are made of them."""

from __future__ import annotations

import json
import os
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ppl_llm import TransformersLM

FOLDER = os.environ.get("PPL_LLM_REAL_MODELS")
NAMES = ["smollm2", "qwen05", "gemma270"]
QUESTION = "A bakery sells 12 rolls a day for 3 dollars each. How much does it earn in 5 days? Put the final answer in \\boxed{}."
SHORT = "What is 2 + 2? Put the final answer in \\boxed{}."

real = [
    pytest.mark.real,
    pytest.mark.skipif(FOLDER is None, reason="PPL_LLM_REAL_MODELS does not name a folder with published models"),
]
"""Marks of all of these tests."""


def path(name: str) -> str:
    """A model in the folder; the test is skipped where it is not there."""
    found = Path(FOLDER or "") / name
    if not found.exists():
        pytest.skip(f"{name} is not in the folder of PPL_LLM_REAL_MODELS")
    return str(found)


@lru_cache(maxsize=1)
def loaded(name: str) -> TransformersLM:
    """One at a time is kept: the larger one takes 2.5 GB."""
    return TransformersLM.from_pretrained(path(name), dtype=torch.float32)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def write_prm(family: str, directory: Path) -> Path:
    """A process reward model of the ``qwen`` or ``skywork`` layout: two layers of the 0.5 B model with its tokenizer, and a random head.

    The published tokenizer of Qwen2.5-Math-PRM calls token 151651, which is ``<|quad_end|>`` in the language model, ``<extra_0>``.
    """
    source = Path(path("qwen05"))
    directory.mkdir()
    config = json.loads((source / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "dtype": "bfloat16"}
    config["architectures"] = ["Qwen2ForProcessRewardModel" if family == "qwen" else "Qwen2ForPrmModel"]
    (directory / "config.json").write_text(json.dumps(config))
    with safe_open(source / "model.safetensors", framework="pt") as file:
        kept = [name for name in file.keys() if name.startswith("model.") and (".layers." not in name or int(name.split(".")[2]) < 2)]  # noqa: SIM118
        weights = {name: file.get_tensor(name) for name in kept}
    size, generator = config["hidden_size"], torch.Generator().manual_seed(0)
    shapes = {"score.0.weight": (size, size), "score.0.bias": (size,), "score.2.weight": (2, size), "score.2.bias": (2,)}
    if family == "skywork":
        shapes = {"v_head.summary.weight": (1, size), "v_head.summary.bias": (1,)}
    weights |= {name: torch.randn(shape, generator=generator) / size**0.5 for name, shape in shapes.items()}
    save_file({name: value.bfloat16().contiguous() for name, value in weights.items()}, directory / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, directory / name)
    spelled = (source / "tokenizer.json").read_text()
    (directory / "tokenizer.json").write_text(spelled.replace("<|quad_end|>", "<extra_0>") if family == "qwen" else spelled)
    return directory
