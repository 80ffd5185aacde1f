"""Log-probabilities of given texts against plain forward passes."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from ppl_llm import TransformersLM
from ppl_llm.evaluation.teacher_forced import teacher_forced
from ppl_llm.lm.base import StepOptions

LM = TransformersLM.from_pretrained("demo")


def plainly(before: list[int], after: list[int]) -> tuple[float, bool]:
    """One forward pass of the network over the whole text."""
    ids = torch.tensor([[*before, *after]])
    with torch.no_grad():
        log_p = LM.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].log_softmax(-1)
    at = range(len(before) - 1, ids.shape[1] - 1)
    greedy = all(int(log_p[i].argmax()) == token for i, token in zip(at, after, strict=True))
    return sum(float(log_p[i, token]) for i, token in zip(at, after, strict=True)), greedy


def ids(text: str) -> list[int]:
    return list(LM.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_agrees_with_plain_forward_passes() -> None:
    """Continuations of several lengths, beginnings shared and not, an empty line (the default end of a step), an end of text within."""
    prompt = LM.start("Begin with 19. First: increase it by 1. Second: subtract 9. What number do you get?").tokens.tolist()
    end = int(LM.eos_ids[0])
    right = ids("First: 19 + 1 = 20\n\nSecond: 20 - 9 = 11\n\n")
    pairs = [
        (prompt, right),
        (prompt, ids("First: 19 + 1 = 21\n\n")),
        (prompt, ids("First")),
        (prompt, [*right[:5], end, *right[:3]]),
        (prompt, [end]),
        (prompt[:7], ids("First: 19 + 1 = 21\n\n")),
    ]
    found = teacher_forced(LM, pairs, at_once=2)
    for (log_prob, greedy), pair in zip(found, pairs, strict=True):
        expected, expected_greedy = plainly(*pair)
        assert log_prob == pytest.approx(expected, abs=2e-4) and greedy == expected_greedy
    assert found[0][1] and not found[1][1] and found[0][0] > -1 > found[1][0]
    # The distribution of a step, which ends at an empty line, would call the first one impossible.
    context, step = LM.start("Begin with 19. First: increase it by 1. Second: subtract 9. What number do you get?"), torch.tensor(right)
    assert LM.step_log_prob(context, step, StepOptions(max_tokens=len(right))) == -torch.inf


def test_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = ids("1 + 1 = 2 " * 20)
    monkeypatch.setattr(LM, "max_length", 30)
    (log_prob, _), after = teacher_forced(LM, [(prompt, ids("3 + 4"))])[0], ids("3 + 4")
    assert log_prob == pytest.approx(plainly(prompt[-(30 - len(after)) :], after)[0], abs=2e-4)
    with pytest.raises(ValueError, match=r"a continuation of \d+ tokens does not fit into the model's context of 30 tokens"):
        teacher_forced(LM, [(prompt[:1], prompt)])


def test_the_harness_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "ppl_llm.evaluation.harness", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'ppl-llm\[lm-eval\]'"):
        importlib.import_module("ppl_llm.evaluation.harness")
