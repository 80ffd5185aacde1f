"""Half precision on the CPU, and ``--dtype``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from typer.testing import CliRunner

from ppl_llm import SMC, Context, LLMStep, TransformersPRM, barrier
from ppl_llm.cli import app
from ppl_llm.context import PAD
from ppl_llm.evaluation.source import Models
from ppl_llm.lm.base import StepOptions, StepSample
from ppl_llm.lm.decoding.sampling import warp
from ppl_llm.lm.loading import parse_dtype
from ppl_llm.lm.transformers_lm import TransformersLM
from tests.helpers.tiny_models import causal_lm, last_logits, write_lm

OPTIONS = StepOptions(stop=("a", "\n\n"), max_tokens=8, temperature=0.8)


def half(directory: Path, lm_class: type[TransformersLM] = TransformersLM) -> TransformersLM:
    return lm_class.from_pretrained(write_lm(directory), dtype=torch.bfloat16)


class Remembering(TransformersLM):
    """Keeps what it sampled."""

    sampled: list[StepSample]

    def sample_step(self, *args: Any, **kwargs: Any) -> StepSample:
        sample = super().sample_step(*args, **kwargs)
        self.sampled = [*getattr(self, "sampled", []), sample]
        return sample


def test_weights_and_keys_are_half_as_large_and_figures_are_not(tmp_path: Path):
    torch.manual_seed(0)
    lm = half(tmp_path)
    assert {parameter.dtype for parameter in lm.model.parameters()} == {torch.bfloat16}
    context = lm.start("What is 12 + 30?")
    _, log_probs = lm.sample_step(context, torch.Size((6,)), OPTIONS)
    layer = lm._engine.pool.caches[0].hf_cache.layers[0]
    assert layer.keys.dtype == layer.values.dtype == torch.bfloat16
    assert log_probs.dtype == torch.float32 and log_probs.isfinite().all()


def test_log_probs_are_those_of_the_weights_as_they_are(tmp_path: Path):
    """Against passes in float32 over the rounded weights: what remains is the rounding of activations, 2**-8 a layer."""
    torch.manual_seed(0)
    lm, reference = half(tmp_path), causal_lm().to(torch.bfloat16).float()
    context = lm.start("What is 12 + 30?")
    step, log_probs = lm.sample_step(context, torch.Size((6,)), OPTIONS)
    start = context.tokens[: int(context.lengths)].tolist()
    for tokens, found in zip(step, log_probs, strict=True):
        ids = tokens[tokens != PAD].tolist()
        logits = last_logits(reference, [start + ids[:k] for k in range(len(ids))])
        exact = warp(logits, OPTIONS).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).sum()
        assert abs(float(found - exact)) < 0.1 * len(ids) ** 0.5  # a wrong position or key shows as several nats


def test_a_filter_keeps_the_log_probs_of_the_pass_that_sampled(tmp_path: Path):
    """Scored again, in passes over several tokens, they are others: weights of the two kinds must not mix."""
    torch.manual_seed(0)
    lm = half(tmp_path, Remembering)
    assert isinstance(lm, Remembering)

    def program() -> Context:
        context = lm.start("What is 12 + 30?")
        for t in range(2):
            context = context.extend(pyro.sample(f"step_{t}", LLMStep(context, stop=OPTIONS.stop, max_tokens=8)), OPTIONS.stop)
            context = barrier(context)
        return context

    posterior = SMC(program, 6, ess_threshold=0.0, record_log_probs=True).run()
    for t, sample in enumerate(lm.sampled):
        assert torch.equal(posterior.site_log_probs[f"step_{t}"], sample.log_probs.to(posterior.site_log_probs[f"step_{t}"]))
    context = lm.start("What is 12 + 30?")
    again = lm.step_log_prob(context, posterior.sites["step_0"], StepOptions(stop=OPTIONS.stop, max_tokens=8))
    assert not torch.equal(again, lm.sampled[0].log_probs)
    torch.testing.assert_close(again, lm.sampled[0].log_probs, atol=0.3, rtol=0)


def test_names_of_formats():
    assert parse_dtype(None) is None and parse_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match=r"unknown dtype 'bfloat'; did you mean 'bfloat16'\? Known: float32, bfloat16, float16"):
        parse_dtype("bfloat")
    with pytest.raises(ValueError, match="unknown dtype 'int8'"):
        Models(dtype="int8").check()


def test_solve_in_half_precision(monkeypatch: pytest.MonkeyPatch):
    loaded: dict[str, Any] = {}
    for cls in (TransformersLM, TransformersPRM):
        monkeypatch.setattr(cls, "from_pretrained", _recording(cls, loaded))
    run = CliRunner().invoke(
        app, ["solve", "--dtype", "bfloat16", "--particles", "2", "--max-steps", "2", "--json", "--force", "Compute 2 + 3."]
    )
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["settings"]["dtype"] == "bfloat16"
    assert loaded == {"TransformersLM": torch.bfloat16, "TransformersPRM": torch.bfloat16}
    wrong = CliRunner().invoke(app, ["solve", "--dtype", "half", "Compute 2 + 3."])
    assert wrong.exit_code == 2 and "unknown dtype 'half'" in wrong.output


def test_evaluate_in_half_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    loaded: dict[str, Any] = {}
    for cls in (TransformersLM, TransformersPRM):
        monkeypatch.setattr(cls, "from_pretrained", _recording(cls, loaded))
    arguments = ["--methods", "importance", "--budgets", "1", "--limit", "1", "--max-steps", "2", "--out", str(tmp_path / "run")]
    run = CliRunner().invoke(app, ["evaluate", "demo", "--dtype", "bfloat16", *arguments])
    assert run.exit_code == 0, run.output
    assert loaded == {"TransformersLM": torch.bfloat16, "TransformersPRM": torch.bfloat16}
    other = CliRunner().invoke(app, ["evaluate", "demo", *arguments])
    assert other.exit_code == 2 and "dtype" in other.output  # records of two kinds are not mixed


def _recording(cls: Any, loaded: dict[str, Any]) -> Any:
    plain = cls.from_pretrained

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        loaded[cls.__name__] = kwargs["dtype"]
        return plain(*args, **kwargs)

    return from_pretrained
