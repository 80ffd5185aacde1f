"""Draws of the restricted model: masses, however small, against float64; parts of a batch; what a token costs in Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ppl_llm import PAD, TransformersLM
from ppl_llm.constraints import Automaton, Choices, TokenSet, choices
from ppl_llm.constraints.base import packed
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding import sampling
from ppl_llm.lm.decoding.constrained_sampler import restricted_draw
from tests.helpers.tiny_models import language_model


@pytest.mark.parametrize("size", [7, 5000])
@pytest.mark.parametrize("below", [0.0, 30.0, 90.0, 500.0])
def test_masses_of_tokens_far_below_the_most_probable_one(size: int, below: float) -> None:
    """Down to masses of exp(-500), which float32 has no numbers for."""
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(6, size, generator=generator)
    allowed = torch.rand(6, size, generator=generator) < 0.4
    allowed[:, 0], allowed[:, 1] = True, False
    logits[:, 1] = 5.0
    logits = torch.where(allowed, logits - below, logits)
    tokens, log_probs, log_masses = restricted_draw(logits, allowed, torch.linspace(0, 0.99, 6).double())
    kept = logits.double().masked_fill(~allowed, -torch.inf)
    assert bool(allowed.gather(1, tokens[:, None]).all())
    torch.testing.assert_close(log_masses, kept.logsumexp(-1) - logits.double().logsumexp(-1), atol=2e-5, rtol=1e-6)
    torch.testing.assert_close(log_probs, kept.log_softmax(-1).gather(1, tokens[:, None])[:, 0], atol=2e-5, rtol=1e-6)


def test_rows_are_dead_where_nothing_may_follow() -> None:
    """Nothing in the mask, and nothing of positive probability in it; the others are not disturbed."""
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(4, 1)
    logits[2, 0] = -torch.inf
    allowed = torch.tensor([[True, True, False], [False] * 3, [True, False, False], [False, False, True]])
    tokens, log_probs, log_masses = restricted_draw(logits, allowed, torch.full((4,), 0.3).double())
    assert (log_masses == -torch.inf).tolist() == [False, True, True, False]
    assert tokens[[0, 3]].tolist() == [1, 2] and bool(log_probs[[0, 3]].isfinite().all())
    assert float(log_probs[3]) == 0.0


def test_the_mass_of_everything_is_one() -> None:
    logits = torch.randn(5, 3000, generator=torch.Generator().manual_seed(1))
    _, _, log_masses = restricted_draw(logits, torch.ones(5, 3000, dtype=torch.bool), torch.rand(5).double())
    torch.testing.assert_close(log_masses, torch.zeros(5, dtype=torch.float64), atol=2e-6, rtol=0)


LM = language_model()


def sampled(constraint: Any, lm: TransformersLM = LM) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    tokens, _, log_masses = lm.sample_constrained(
        lm.start("7 * 6").expand((9,)), torch.Size((9,)), StepOptions("\n\n", 12, constraint=constraint)
    )
    return tokens, log_masses


def test_a_batch_may_be_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    constraint = Choices(["7 * 6 = 42.\n\n", "7 * 6 is 42", "forty-two"])
    tokens, log_masses = sampled(constraint)
    monkeypatch.setattr(sampling, "_IN_CACHE", 1)
    again, masses = sampled(constraint)
    assert torch.equal(again, tokens)
    torch.testing.assert_close(masses, log_masses)


def test_masks_are_asked_for_once_in_a_token_and_made_once_for_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    masks = choices.ChoicesStates.masks
    monkeypatch.setattr(choices.ChoicesStates, "masks", lambda self: made.append(len(self._written)) or masks(self))
    constraint = Choices(["7 * 6 = 42."])
    tokens, _ = sampled(constraint)
    assert len(made) == int((tokens != PAD).sum(1).max()), "one call for all sequences in each token"
    trie = constraint._tries[LM.vocabulary]
    distinct = {tuple(row[:k].tolist()) for row in tokens for k in range(int((row != PAD).sum()))}
    assert len(trie._masks) <= len({LM.decode(list(text)) for text in distinct})


def test_unlike_vocabularies_are_told_apart() -> None:
    with pytest.raises(ValueError, match="the automaton's table has 3 tokens, the language model"):
        sampled(Automaton(torch.zeros(1, 3), torch.ones(1)))
    with pytest.raises(ValueError, match="token ids must lie in"):
        sampled(TokenSet(allowed=[10**6]))
    assert packed(torch.zeros(0, 5)).shape == (0, 1)
