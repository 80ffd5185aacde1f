"""Rewards by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ppl_llm import Confidence, FunctionReward, JudgeReward
from ppl_llm.reward.choice import RewardChoice
from tests.helpers.tiny_models import language_model, write_orm


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (("demo",), "prm:demo"),
        (("path/to/lm",), "none"),  # the demo reward model knows nothing of it
        (("path/to/lm", "demo"), "prm:demo"),  # asked for by name
        (("path/to/lm", "dir"), "prm:dir"),
        (("path/to/lm", "dir", "prm"), "prm:dir"),
        (("path/to/lm", None, "prm:dir"), "prm:dir"),
        (("path/to/lm", None, "judge"), "judge"),
        (("demo", None, "judge:other"), "judge:other"),
        (("demo", None, "none"), "none"),
        (("demo", None, "verifier:a.py:f"), "verifier:a.py:f"),
        (("demo", None, "orm:dir"), "orm:dir"),
        (("path/to/lm", None, "hidden:head.safetensors"), "hidden:head.safetensors"),
    ],
)
def test_what_was_asked_for(given: tuple[str, ...], chosen: str) -> None:
    assert str(RewardChoice.of(*given)) == chosen


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("demo", None, "judg"), "unknown reward 'judg'"),
        (("demo", None, "judge:"), "lacks a name"),
        (("demo", None, "verifier:a.py"), "lacks a name"),
        (("demo", None, "prm"), "needs a model"),
        (("demo", None, "hidden"), "lacks a name"),
        (("demo", None, "orm"), "lacks a name: orm:DIR, a sequence classifier"),
        (("demo", None, "orm:"), "lacks a name"),
        (("demo", "dir", "orm:dir"), "are two rewards"),
        (("demo", None, "self-certainty:x"), "takes no name"),
        (("demo", "dir", "judge"), "are two rewards"),
    ],
)
def test_what_is_refused(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardChoice.of(*given)


def test_each_kind_loads_what_it_says(tmp_path: Path) -> None:
    lm = language_model()
    file = tmp_path / "mine.py"
    file.write_text("def right(problem, text):\n    return text.strip().endswith('42')\n\nnumber = 3\n")

    def load(name: str, every: str | None = None) -> object:
        choice = RewardChoice.of("lm", None, name)
        choice.check()
        nowhere = lambda name: (_ for _ in ()).throw(OSError(name))  # noqa: E731
        return choice.load(lm, nowhere, lambda name: torch.tensor(1), lambda name, partial: (name, partial), every)  # type: ignore[arg-type, return-value]

    classifier = str(write_orm(tmp_path / "orm"))
    assert load(f"orm:{classifier}") == (classifier, False) and load(f"orm:{classifier}", "word") == (classifier, "word")
    with pytest.raises(OSError, match="no model directory"):
        load("orm:./nowhere")
    with pytest.raises(ValueError, match="runs in this process, and 'http://host:1/v1' is the address of a server"):
        load("orm:http://host:1/v1")
    assert load("none") is None and isinstance(load("prm:dir"), torch.Tensor)
    confidence, certainty = load("confidence"), load("self-certainty")
    assert isinstance(confidence, Confidence) and str(confidence) == "log-prob"
    assert isinstance(certainty, Confidence) and str(certainty) == "kl"
    assert str(load("confidence:top-k:64:tail")) == "top-k:64:tail"
    with pytest.raises(ValueError, match="unknown kind 'top_k'; did you mean 'top-k'"):
        load("confidence:top_k")
    verifier = load(f"verifier:{file}:right")
    assert isinstance(verifier, FunctionReward) and verifier.fn("p", "so 42") is True
    for name, message in [(f"{file}:wrong", "has no function 'wrong'"), (f"{file}:number", "has no function 'number'")]:
        with pytest.raises(ValueError, match=message):
            load(f"verifier:{name}")
    with pytest.raises(OSError, match="no file"):
        load("verifier:nowhere.py:f")
    file.write_text("1 / 0")
    with pytest.raises(ValueError, match="cannot be run: ZeroDivisionError"):
        load(f"verifier:{file}:right")
    with pytest.raises(OSError, match="elsewhere"):
        load("judge:elsewhere")
    with pytest.raises(ValueError, match="a word of the judge"):
        load("judge")  # this vocabulary has no single token Yes


def test_a_judge_is_the_language_model_itself_or_another() -> None:
    assert JudgeReward(language_model(), yes=300, no=301).lm is not None
