"""TransformersPRM: incremental scores against one uncached pass over the whole text, and loading of Qwen2.5-Math-PRM directories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ppl_llm.context import PAD, Context
from ppl_llm.inference.cost import CostMeter
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.transformers_lm import TransformersLM
from ppl_llm.reward.base import RewardModel
from ppl_llm.reward.prm.formats.qwen import DEFAULT_SYSTEM_PROMPT, QwenFormat
from ppl_llm.reward.prm.networks import Qwen2PRM
from ppl_llm.reward.prm.transformers_prm import TransformersPRM
from ppl_llm.reward.step_texts import step_texts
from tests.helpers.tiny_models import causal_lm, language_model, reward_net, tokenizer, write_lm, write_prm

TOLERANCE = 1e-5
STEP_ID = tokenizer().convert_tokens_to_ids("<extra_0>")


def reward_model(**options: Any) -> TransformersPRM:
    return TransformersPRM(reward_net(max_position_embeddings=512), tokenizer(), **options)


@torch.no_grad()
def full_scores(net: Qwen2PRM, problem: str, steps: list[str]) -> Tensor:
    """Log-odds at every step token of the whole text, tokenized at once and run without a cache."""
    chat = [{"role": "system", "content": DEFAULT_SYSTEM_PROMPT}, {"role": "user", "content": problem}]
    answer = "".join(step.rstrip() + "<extra_0>" for step in steps)
    text = tokenizer().apply_chat_template([*chat, {"role": "assistant", "content": answer}], tokenize=False)
    ids = tokenizer()(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    logits = net(ids, use_cache=False)[0]
    return (logits[:, 1] - logits[:, 0])[ids[0] == STEP_ID]


def expected(net: Qwen2PRM, context: Context) -> Tensor:
    rows = []
    for sequence in context:
        own = []  # steps with text, and an end without any
        for k, step in enumerate(sequence.steps):
            own.append(bool(step.strip()) or (not any(own) and bool(sequence.done) and k == len(sequence.steps) - 1))
        said = [step for step, scored in zip(sequence.steps, own, strict=True) if scored]
        if "\ufffd" in "".join(said):  # characters cut by max_tokens, see tests/ppl_llm/reward/test_step_texts.py
            read = step_texts(sequence, 0, torch.zeros(()))[0]
            own, said = [step is not None for step in read], [step.text for step in read if step is not None]
        scores = full_scores(net, sequence.problem, said) if said else torch.empty(0)
        count = torch.zeros(sequence.num_steps, dtype=torch.long)
        count[: len(own)] = torch.tensor(own)
        rows.append(torch.cat([torch.tensor([torch.inf]), scores])[count.cumsum(-1)])
    return torch.stack(rows)


def steps_of(context: Context, texts: list[str | None], width: int = 24) -> Tensor:
    """A step for each sequence; ``None`` for a finished sequence, ``|`` for the end of text."""
    rows = []
    for text in texts:
        ids = [] if text is None else tokenizer()(text.replace("|", "<|im_end|>"), add_special_tokens=False)["input_ids"]
        rows.append(ids + [PAD] * (width - len(ids)))
    return torch.tensor(rows)


def test_incremental_scores_are_those_of_the_whole_text():
    lm, prm, net = language_model(), reward_model(), reward_net(max_position_embeddings=512)
    context = lm.start("What is 12 + 30?").expand((4,))
    script: list[list[str | None]] = [
        ["10 + 30 = 40.\n\n", "Then 40 + 2\n\n", "10 + 30 = 40.\n\n", "So 42. |"],
        ["40 + 2 = 42.\n\n", "x\n\n", "Add the ones: 2.\n\n", None],
        ["The answer is 42.|", "\n\n", "42\n\n", None],
        [None, "7\n\n", "Hence the result, 42.\n\n", None],
    ]
    ancestors = torch.tensor([[0, 1, 2, 3], [0, 0, 2, 3], [0, 1, 1, 3], [0, 1, 2, 3]])
    script[2][1] = "\n\n"
    for texts, index in zip(script, ancestors, strict=True):
        texts = [None if done else text for done, text in zip(context.done.tolist(), texts, strict=True)]
        context = context.extend(steps_of(context, texts))
        scores = prm.step_log_odds(context)
        assert scores.dtype == torch.float32 and scores.shape == (4, context.num_steps)
        torch.testing.assert_close(scores, expected(net, context), atol=TOLERANCE, rtol=TOLERANCE)
        context = context.reorder(index)
    torch.testing.assert_close(prm.step_log_odds(context), expected(net, context), atol=TOLERANCE, rtol=TOLERANCE)
    assert isinstance(prm, RewardModel)


@settings(max_examples=6, derandomize=True, deadline=None)
@given(st.data())
def test_random_filters(data: st.DataObject):
    lm, prm, net = language_model(), reward_model(), reward_net(max_position_embeddings=512)
    lm.eos_ids = torch.tensor([0, 1, 2, 3, 4, 5])
    torch.manual_seed(data.draw(st.integers(0, 99)))
    options = StepOptions(stop=("\n\n", "a", "e"), max_tokens=5)
    context = lm.start(["12 + 30", "What is 7 * 6?"])
    for _ in range(data.draw(st.integers(2, 4))):
        step, _ = lm.sample_step(context, torch.Size((3, 2)), options)
        context = context.extend(step, options.stop)
        event = data.draw(st.sampled_from(["score", "score", "skip", "evict"]))
        if event == "evict":
            prm.release_caches()
        if event != "skip":
            wanted = torch.stack([expected(net, context[i]) for i in range(3)])
            torch.testing.assert_close(prm.step_log_odds(context), wanted, atol=TOLERANCE, rtol=TOLERANCE)
        context = context.reorder(torch.randint(0, 3, (3, 2)))


def test_only_new_steps_are_run_and_equal_sequences_once():
    lm, prm = language_model(), reward_model()
    context = lm.start("What is 12 + 30?").expand((6,))
    first = steps_of(context, ["10 + 30 = 40.\n\n"] * 3 + ["Then 2\n\n"] * 3)
    context = context.extend(first)
    form = QwenFormat(tokenizer(), DEFAULT_SYSTEM_PROMPT, "<extra_0>")
    prompt = len(form.prompt("What is 12 + 30?"))
    with CostMeter() as meter:
        prm.step_log_odds(context)
        prm.step_log_odds(context)  # nothing new
    ran = prompt + len(form.step("10 + 30 = 40.")) + len(form.step("Then 2"))
    assert meter.totals["prm_tokens"] == ran
    assert meter.totals["prm_calls"] == 6 and meter.totals["prm_seconds"] > 0
    context = context.reorder(torch.tensor([0, 1, 5, 5, 4, 0]))
    context = context.extend(steps_of(context, ["40 + 2 = 42.\n\n"] * 5 + ["So 42.\n\n"]))
    with CostMeter() as meter:
        prm.step_log_odds(context)
    assert meter.totals["prm_tokens"] == 2 * len(form.step("40 + 2 = 42.")) + len(form.step("So 42."))
    assert meter.totals["prm_calls"] == 6
    done = context.extend(steps_of(context, ["|"] * 6))
    prm.step_log_odds(done)
    with CostMeter() as meter:
        last = prm.step_log_odds(done.extend(steps_of(done, [None] * 6)))
    assert meter.totals["prm_tokens"] == meter.totals["prm_forwards"] == meter.totals["prm_calls"] == 0
    assert torch.equal(last[:, -1], last[:, -2])


def test_a_context_without_steps_has_no_scores():
    lm, prm = language_model(), reward_model()
    assert prm.step_log_odds(lm.start(["7 * 6", "12 + 30"])).shape == (2, 0)
    single = lm.start("7 * 6")
    single = single.extend(steps_of(single, ["42\n\n"])[0])
    torch.testing.assert_close(
        prm.step_log_odds(single), full_scores(reward_net(max_position_embeddings=512), "7 * 6", ["42"]), atol=TOLERANCE, rtol=TOLERANCE
    )


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("text", ["I write <extra_0> here", "<extra_0>", "<extra_0><extra_0>\n\n", "a<|im_end|>b<extra_0>"])
def test_a_step_cannot_write_the_step_token(special: bool, text: str):
    tokens = tokenizer(special=special)
    form = QwenFormat(tokens, DEFAULT_SYSTEM_PROMPT, "<extra_0>")
    ids = form.step(text)
    assert ids.count(form.step_id) == 1 and ids[-1] == form.step_id
    assert tokens.decode(ids[:-1]) == text.rstrip()


def test_a_problem_may_name_the_step_token():
    form = QwenFormat(tokenizer(), DEFAULT_SYSTEM_PROMPT, "<extra_0>")
    text = tokenizer().decode(form.prompt("what does <extra_0> mean?"))
    assert text.endswith("<|im_start|>assistant\n") and "what does <extra_0> mean?" in text


def test_an_empty_step_is_scored_at_its_step_token():
    form = QwenFormat(tokenizer(), DEFAULT_SYSTEM_PROMPT, "<extra_0>")
    assert form.step("\n\n") == form.step("") == [STEP_ID]


def test_the_language_model_may_have_another_tokenizer():
    other = tokenizer(step_token=None)
    assert len(other) != len(tokenizer())
    lm, prm = TransformersLM(causal_lm(), other), reward_model()
    context = lm.start("7 * 6").expand((2,))
    ids = [other(text, add_special_tokens=False)["input_ids"] for text in ("7 * 6 = 42.\n\n", "So 42.\n\n")]
    context = context.extend(torch.tensor([row + [PAD] * (30 - len(row)) for row in ids]))
    net = reward_net(max_position_embeddings=512)
    torch.testing.assert_close(prm.step_log_odds(context), expected(net, context), atol=TOLERANCE, rtol=TOLERANCE)


def test_loads_the_published_layout_without_its_code(tmp_path: Path):
    directory = write_prm(tmp_path / "prm", torch.bfloat16)
    names = set(load_file(directory / "model.safetensors"))
    assert {"model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "score.0.weight", "score.0.bias", "score.2.weight"} <= names
    prm = TransformersPRM.from_pretrained(directory)
    assert prm.model.dtype == torch.bfloat16 and prm.model.score[0].weight.dtype == torch.float32
    lm = language_model()
    context = lm.start("7 * 6")
    context = context.extend(steps_of(context, ["7 * 6 = 42.\n\n", "So 42.\n\n"]))
    scores = prm.step_log_odds(context)
    assert scores.dtype == torch.float32
    # bfloat16 carries 8 bits; the exact weights differ as much.
    torch.testing.assert_close(scores, expected(reward_net(), context), atol=0.15, rtol=0.1)
    precise = TransformersPRM.from_pretrained(directory, dtype=torch.float32)
    rounded = reward_net()
    rounded.load_state_dict({name: value.float() for name, value in load_file(directory / "model.safetensors").items()})
    torch.testing.assert_close(precise.step_log_odds(context), expected(rounded, context), atol=TOLERANCE, rtol=TOLERANCE)


def test_unusable_directories(tmp_path: Path):
    load = TransformersPRM.from_pretrained
    with pytest.raises(ValueError, match=r"is not a Qwen2.5-Math-PRM .*missing keys \['score\.0\.bias', 'score\.0\.weight'"):
        load(write_prm(tmp_path / "headless", drop="score"))
    with pytest.raises(ValueError, match=r"is not a Qwen2.5-Math-PRM .*missing keys \['score.*unexpected keys \['lm_head\.weight'\]"):
        load(write_lm(tmp_path / "lm"), family="qwen")
    with pytest.raises(ValueError, match=r"cannot tell .* \(architecture Qwen2ForCausalLM\).*pass family=\.\.\., one of: 'qwen'"):
        load(tmp_path / "lm")
    with pytest.raises(ValueError, match="the tokenizer has no step token '<extra_0>'"):
        load(write_prm(tmp_path / "tokenless", tokens=tokenizer(step_token=None)))
    with pytest.raises(ValueError, match="the tokenizer has no step token 'ки'"):
        load(write_prm(tmp_path / "prm"), step_token="ки")
    (tmp_path / "prm/model.safetensors").unlink()
    with pytest.raises(OSError, match=r"holds no \*\.safetensors file"):
        load(tmp_path / "prm")
    with pytest.raises(OSError, match="no model directory"):
        load(tmp_path / "nowhere")
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, eos_token="<|im_end|>")
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        TransformersPRM(reward_net(), bare)


@pytest.mark.parametrize("whole_answer", [False, True])
@pytest.mark.parametrize("overlong", ["zero", "last"])
def test_a_solution_that_exceeds_the_context_ends_no_run(overlong: str, whole_answer: bool) -> None:
    """Its own scores are those of the name; those of the others are what they are in a longer context."""
    lm = language_model()
    short, long = (
        TransformersPRM(reward_net(max_position_embeddings=n), tokenizer(), overlong=overlong, whole_answer=whole_answer) for n in (80, 256)
    )
    context = lm.start("7 * 6").expand((2,))
    context = context.extend(steps_of(context, ["7\n\n", "8\n\n"]))
    q = tokenizer().convert_tokens_to_ids("q")
    for texts in ([[q] * 60, [q] * 3], [[q] * 2, [q] * 2]):  # the first solution does not fit from its second step on, however short
        width = max(map(len, texts))
        context = context.extend(torch.tensor([ids + [PAD] * (width - len(ids)) for ids in texts]))
        scores, right = short.step_log_odds(context), long.step_log_odds(context)
        beyond = -torch.inf if overlong == "zero" else float(right[0, 0])
        assert scores[0, 1:].tolist() == pytest.approx([beyond] * (context.num_steps - 1), abs=1e-4)
        torch.testing.assert_close(scores[1], right[1], atol=1e-4, rtol=0)
        torch.testing.assert_close(scores[0, 0], right[0, 0], atol=1e-4, rtol=0)
    once = TransformersPRM(reward_net(max_position_embeddings=80), tokenizer(), overlong=overlong, whole_answer=whole_answer)
    if overlong == "zero":  # all steps asked about at once
        torch.testing.assert_close(once.step_log_odds(replace(context, cache_entries={})), scores, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="unknown overlong 'none'"):
        TransformersPRM(reward_net(), tokenizer(), overlong="none")


def test_a_score_that_is_nan():
    lm, prm = language_model(), reward_model()
    context = lm.start("7 * 6").expand((2,))
    context = context.extend(steps_of(context, ["7\n\n", "8\n\n"]))
    prm.step_log_odds(context)
    context = context.extend(steps_of(context, ["7\n\n", "8\n\n"]))
    prm.model.score[2].bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the log-odds of step 1 of sequence 0 .* is nan"):
        prm.step_log_odds(context)
