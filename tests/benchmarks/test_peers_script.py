"""The comparison with other libraries, without them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_llm import TransformersLM

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("peers")


def test_a_peer_that_cannot_start_is_named(peers: Any, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(RuntimeError, match=r"llamppl ended with status 1; its messages are above"):
        peers.Peer("llamppl", sys.executable, model="nowhere", prompt="~", sequences=2, tokens=2, step=1)
    assert "ModuleNotFoundError" in capfd.readouterr().err


def test_a_peer_that_dies_between_runs_is_named(peers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    worker = tmp_path / "peer_workers.py"
    worker.write_text("import sys; print('{\"versions\": {}}', flush=True); sys.exit(3)")
    monkeypatch.setattr(peers, "__file__", str(tmp_path / "peers.py"))
    peer = peers.Peer("llamppl", sys.executable)
    peer._process.wait()
    with pytest.raises(RuntimeError, match="llamppl ended with status 3"):
        peer.run()


def test_our_side_takes_the_tokens_that_it_is_told_to(peers: Any, tmp_path: Path):
    peers.save(tmp_path)
    lm = TransformersLM.from_pretrained(tmp_path)
    assert lm.vocab_size == peers.VOCAB
    lm.eos_ids = lm.eos_ids[:0]
    for step in (1, 4):
        torch.manual_seed(0)
        assert peers.particle_filter(lm, "~" * 10, 3, 8, step)() == 3 * 8


def test_text_of_sampled_tokens_is_about_as_long_again(peers: Any):
    """its_hub passes text back and forth: its prompts must not be longer for that."""
    tokenizer = peers.make_tokenizer()
    ids = torch.randint(256, 256 + 89**2, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    assert abs(len(tokenizer.encode(tokenizer.decode(ids))) - 400) < 60
    assert tokenizer.decode(tokenizer.encode("’•¶ 12 a\n")) == "’•¶ 12 a\n"
