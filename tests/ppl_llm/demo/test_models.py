"""The shipped models load, are small, and are as good as the model card says (bounds leave room for another machine's rounding)."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppl_llm.demo import LM_DIR, PRM_DIR, WEAK_PRM_DIR, held_out
from ppl_llm.demo.corpus import prompt_of
from ppl_llm.demo.measure import (
    auroc,
    calibration_error,
    fit_temperature,
    flat,
    pass_at_1,
    sample_attempts,
    step_error_rate,
    step_log_odds,
)
from ppl_llm.reward.prm.networks import Qwen2PRM


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(LM_DIR)


@pytest.fixture(scope="module")
def lm():
    return AutoModelForCausalLM.from_pretrained(LM_DIR).eval()


@pytest.fixture(scope="module")
def attempts(lm, tokenizer):
    return sample_attempts(lm, tokenizer, held_out(60, 5), 2, seed=5)


@pytest.mark.parametrize(("cls", "directory"), [(AutoModelForCausalLM, LM_DIR), (Qwen2PRM, PRM_DIR), (Qwen2PRM, WEAK_PRM_DIR)])
def test_directories_load_without_missing_or_unexpected_keys(cls, directory):
    model, report = cls.from_pretrained(directory, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.model_type == "qwen2"
    assert model.config.eos_token_id == AutoTokenizer.from_pretrained(directory).eos_token_id


@pytest.mark.parametrize("directory", [PRM_DIR, WEAK_PRM_DIR])
def test_reward_models_have_the_published_layout(directory):
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForProcessRewardModel"]
    model = Qwen2PRM.from_pretrained(directory)
    assert {name for name, _ in model.named_parameters() if name.startswith("score")} == {
        "score.0.weight",
        "score.0.bias",
        "score.2.weight",
        "score.2.bias",
    }
    assert model.score[2].out_features == 2


def test_weights_take_at_most_12_megabytes():
    sizes = [path.stat().st_size for directory in (LM_DIR, PRM_DIR, WEAK_PRM_DIR) for path in directory.glob("*.safetensors")]
    assert len(sizes) == 3
    assert sum(sizes) <= 12e6


def test_greedy_solution_is_well_formed(lm, tokenizer):
    for problem in [problem for problem in held_out(24, 1) if problem.level == 1]:
        prompt = tokenizer(prompt_of(tokenizer, problem), return_tensors="pt")
        ids = lm.generate(**prompt, do_sample=False, max_new_tokens=80)[0, prompt.input_ids.shape[1] :]
        assert ids[-1] == tokenizer.eos_token_id
        steps = tokenizer.decode(ids, skip_special_tokens=True).split("\n\n")
        assert len(steps) == 3
        assert steps[0].startswith("First: ") and steps[1].startswith("Second: ") and steps[2].startswith("The final answer is $\\boxed{")


def test_language_model_is_fallible_on_purpose_and_worse_at_higher_levels(attempts):
    easy = [attempt for attempt in attempts if attempt.problem.level <= 2]
    hard = [attempt for attempt in attempts if attempt.problem.level >= 5]
    assert pass_at_1(easy) > pass_at_1(hard) + 0.2
    assert pass_at_1(easy) < 0.95
    assert step_error_rate(hard) > step_error_rate(easy) > 0.02


def test_reward_models_tell_right_steps_from_wrong_ones(attempts, tokenizer):
    found = {}
    for directory in (PRM_DIR, WEAK_PRM_DIR):
        log_odds, labels = flat(attempts, step_log_odds(Qwen2PRM.from_pretrained(directory).eval(), tokenizer, attempts))
        found[directory] = auroc(log_odds, labels)
        assert calibration_error(log_odds, labels) < 0.1
    assert found[PRM_DIR] > 0.9
    assert 0.65 < found[WEAK_PRM_DIR] < found[PRM_DIR] - 0.04


def test_scores_do_not_depend_on_the_batch(attempts, tokenizer):
    prm = Qwen2PRM.from_pretrained(PRM_DIR).eval()
    alone = step_log_odds(prm, tokenizer, attempts[:6], batch_size=1)
    torch.testing.assert_close(step_log_odds(prm, tokenizer, attempts[:6]), alone, rtol=1e-3, atol=1e-3)


def test_auroc_against_hand_counts():
    scores, labels = torch.tensor([3.0, 1.0, 1.0, 0.0]), torch.tensor([True, True, False, False])
    assert auroc(scores, labels) == pytest.approx(3.5 / 4)  # pairs 3>1, 3>0, 1=1, 1>0
    assert auroc(-scores, labels) == pytest.approx(0.5 / 4)


def test_temperature_of_overconfident_scores_is_found():
    generator = torch.Generator().manual_seed(0)
    log_odds = 2 * torch.randn(20000, generator=generator, dtype=torch.double)
    labels = torch.rand(20000, generator=generator, dtype=torch.double) < log_odds.sigmoid()
    temperature = fit_temperature(3 * log_odds, labels)
    assert temperature == pytest.approx(3, rel=0.05)  # standard error about 1 %; no fit would give 1
    assert calibration_error(3 * log_odds, labels) > 0.08
    assert calibration_error(3 * log_odds / temperature, labels) < 0.02
