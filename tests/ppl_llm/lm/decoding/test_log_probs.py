"""Log-probabilities over vocabularies as large as those of published models."""

from __future__ import annotations

import torch

from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding.sampling import inverse_cdf, warp
from ppl_llm.lm.token_figures import log_probs_of

VOCABULARY = 200_000


def test_log_probs_are_not_biased_by_the_size_of_the_vocabulary() -> None:
    """``log_softmax`` in float32 is off by 1.1e-5 at most and by 7e-6 on average, upwards."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, VOCABULARY, generator=generator)
    tokens = torch.randint(VOCABULARY, (64,), generator=generator)
    exact = logits.double().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    error = log_probs_of(logits, tokens) - exact
    assert float(error.abs().max()) < 3e-6 and abs(float(error.mean())) < 1e-6
    drawn, log_probs = inverse_cdf(warp(logits, StepOptions()), torch.rand(64, dtype=torch.float64, generator=generator))
    exact = logits.double().log_softmax(-1).gather(-1, drawn[:, None])[:, 0]
    assert float((log_probs.double() - exact).abs().max()) < 3e-6
