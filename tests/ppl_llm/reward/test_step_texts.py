"""What a process reward model reads of a solution: answers that the prompt has begun, steps without text, characters cut in two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppl_llm import ProductReward, StepReward, SumReward, TransformersPRM, reasoning
from ppl_llm.context import PAD, Context
from ppl_llm.reward.base import scored_steps
from ppl_llm.reward.step_texts import begun_steps
from tests.helpers.tiny_models import language_model, reward_net, tokenizer

LM = language_model()
PROBLEM = "What is 7 * 6?"


def prm(whole_answer: bool = False) -> TransformersPRM:
    return TransformersPRM(reward_net(), tokenizer(), whole_answer=whole_answer)


def extended(context: Context, *steps: str) -> Context:
    for step in steps:
        ids = tokenizer()(step, add_special_tokens=False)["input_ids"]
        context = context.extend(torch.tensor([*ids, PAD]))
    return context


def begun(prefill: str) -> Context:
    return LM.start([{"role": "user", "content": PROBLEM}, {"role": "assistant", "content": prefill}])


def test_the_steps_of_an_answer_that_the_prompt_has_begun() -> None:
    assert begun_steps("") == ([], "")
    assert begun_steps("one\n\ntwo\n\n") == (["one", "two"], "")
    assert begun_steps("one\n\n\n\ntwo") == (["one"], "two")


@pytest.mark.parametrize("whole_answer", [False, True])
@pytest.mark.parametrize(
    ("prefill", "sampled"),
    [
        ("First: 7 * 6\n\n", ["So 42.\n\n", "The answer is 42.\n\n"]),
        ("First: 7", [" * 6\n\n", "So 42.\n\n", "The answer is 42.\n\n"]),
        ("First: 7 * 6\n\nSo", [" 42.\n\n", "The answer is 42.\n\n"]),
    ],
)
def test_the_reward_model_sees_what_the_prompt_has_begun(prefill: str, sampled: list[str], whole_answer: bool) -> None:
    model = prm(whole_answer)
    context = extended(begun(prefill), *sampled)
    whole = extended(LM.start(PROBLEM), "First: 7 * 6\n\n", "So 42.\n\n", "The answer is 42.\n\n")
    scores = model.step_log_odds(context)
    torch.testing.assert_close(scores, model.step_log_odds(whole)[-len(sampled) :], atol=1e-5, rtol=0)
    torch.testing.assert_close(prm().whole_log_odds(context), prm().whole_log_odds(whole), atol=1e-5, rtol=0)


def test_answers_are_looked_for_in_what_the_prompt_has_begun_too() -> None:
    assert extended(begun("I box it: \\boxed{4"), "2}.\n\n").answers() == "42"
    assert extended(begun("The answer is 42.\n\n"), "Done\n\n").answers() == "42"


def plain(model: TransformersPRM, *steps: str) -> Tensor:
    return model.step_log_odds(extended(LM.start(PROBLEM), *steps))


@pytest.mark.parametrize("whole_answer", [False, True])
def test_a_step_without_text_is_no_step(whole_answer: bool) -> None:
    """It is not read, repeats the score before it, has no factor, and what follows is scored as if it were not there."""
    model = prm(whole_answer)
    right = plain(model, "7 * 6\n\n", "So 42.\n\n")
    context = extended(LM.start(PROBLEM), "\n\n", "7 * 6\n\n", "\n\n", "So 42.\n\n")
    scores = model.step_log_odds(context)
    if not whole_answer:
        torch.testing.assert_close(scores[[1, 3]], right, atol=1e-5, rtol=0)
    assert scores[0] == torch.inf and scores[2] == scores[1]
    assert scored_steps(model, context).tolist() == [False, True, False, True]
    step_by_step, total = LM.start(PROBLEM), 0.0
    for step in ("\n\n", "7 * 6\n\n", "\n\n", "So 42.\n\n"):
        step_by_step = extended(step_by_step, step)
        factor = float(StepReward(model, step_by_step).log_prob(torch.tensor(1.0)))
        assert (factor == 0.0) == (step == "\n\n")
        total += factor
    wanted = torch.nn.functional.logsigmoid(scores[[1, 3]]).sum()
    assert total == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("aggregation", ["last", "prod", "min", "max", "mean"])
def test_a_step_without_text_does_not_change_the_score_of_a_solution(aggregation: str) -> None:
    model = reasoning(LM, prm(), preset="twisted", aggregation=aggregation)
    with_blanks = extended(LM.start(PROBLEM), "\n\n", "7 * 6\n\n", "\n\n", "So 42.\n\n", "\n\n")
    without = extended(LM.start(PROBLEM), "7 * 6\n\n", "So 42.\n\n")
    torch.testing.assert_close(model.prefix_scores(with_blanks), model.prefix_scores(without), atol=1e-5, rtol=0)


def test_an_end_of_text_alone_is_no_step() -> None:
    model = prm()
    context = extended(LM.start(PROBLEM), "So 42.\n\n").extend(torch.tensor([tokenizer().eos_token_id, PAD]))
    assert bool(context.done) and scored_steps(model, context).tolist() == [True, False]
    assert float(StepReward(model, context).log_prob(torch.tensor(1.0))) == 0.0
    for combined in (ProductReward([model, model]), SumReward([model])):
        assert scored_steps(combined, context).tolist() == [True, False]


@pytest.mark.parametrize("whole_answer", [False, True])
@pytest.mark.parametrize("prefill", ["", "First.\n\n"])
def test_a_solution_that_says_nothing_is_scored_as_an_empty_step(prefill: str, whole_answer: bool) -> None:
    """Passed over, it would have no factor and outweigh every solution that says something."""
    model = prm(whole_answer)
    context = extended(begun(prefill) if prefill else LM.start(PROBLEM), "\n\n").extend(torch.tensor([tokenizer().eos_token_id, PAD]))
    assert scored_steps(model, context).tolist() == [False, True]
    assert float(StepReward(model, context).log_prob(torch.tensor(1.0))) < 0.0


@pytest.mark.parametrize("tokens_per_step", [1, 2, 3, 5])
def test_the_reward_model_reads_whole_characters(tokens_per_step: int) -> None:
    """A character of three bytes, each a token, is cut by short steps; the texts that are read spell the solution."""
    read: list[str] = []
    model = prm()
    step = model._format.step
    model._format.step = lambda text, number: read.append(text) or step(text, number)  # type: ignore[method-assign, func-returns-value]
    text = "so 日本 = é\u20ac, 42."
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text)
    context = LM.start(PROBLEM)
    for begin in range(0, len(ids), tokens_per_step):
        piece = ids[begin : begin + tokens_per_step]
        context = context.extend(torch.tensor(piece), stop=())
        model.step_log_odds(context)
    assert not any("\ufffd" in each for each in read), read
    assert "".join(read).replace(" ", "") == text.replace(" ", "")
