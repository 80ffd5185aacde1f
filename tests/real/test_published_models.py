"""Published models: SmolLM2-135M-Instruct and Qwen2.5-Coder-0.5B-Instruct, from directories and GGUF files that lie ready.

``PPL_LLM_REAL_MODELS`` names a folder with ``smollm2`` and ``qwen05`` (safetensors) and ``smollm2.gguf``; ``make test-real`` runs them.
"""

from __future__ import annotations

import copy
import json
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typer.testing import CliRunner

from ppl_llm import LLMStep, TransformersLM
from ppl_llm.cli import app
from ppl_llm.context import PAD, Context
from ppl_llm.inference.cost import CostMeter
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding.sampling import warp

FOLDER = os.environ.get("PPL_LLM_REAL_MODELS")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(FOLDER is None, reason="PPL_LLM_REAL_MODELS does not name a folder with published models"),
]
NAMES = ["smollm2", "qwen05"]
QUESTION = "A bakery sells 12 rolls a day for 3 dollars each. How much does it earn in 5 days? Put the final answer in \\boxed{}."
SHORT = "What is 2 + 2? Put the final answer in \\boxed{}."


def path(name: str) -> str:
    found = Path(FOLDER or "") / name
    if not found.exists():
        pytest.skip(f"{name} is not in the folder of PPL_LLM_REAL_MODELS")
    return str(found)


@cache
def loaded(name: str) -> TransformersLM:
    return TransformersLM.from_pretrained(path(name), dtype=torch.float32)


class InFloat64(TorchFunctionMode):
    """What a model does in float32 whatever its weights are in (norms, softmax of attention, rotary angles), in float64.

    Without it the log-probabilities of a token from a model in float64 are off by up to 2e-5, as much as those from one in float32.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wider(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(wider, args), **{key: wider(value) for key, value in (kwargs or {}).items()})


@cache
def plain_models(name: str) -> tuple[Any, Any]:
    """The model in eager attention, in float32 and in float64."""
    single = copy.deepcopy(loaded(name).model)
    single.set_attn_implementation("eager")
    return single, copy.deepcopy(single).double()


@torch.no_grad()
def plain_log_probs(model: Any, sequence: list[int], options: StepOptions) -> Tensor:
    """Log-probabilities ``[L - 1]`` of each token given those before it: one uncached pass, warped in its dtype, log-softmax in float64."""
    logits = model(torch.tensor([sequence]), use_cache=False).logits[0, :-1]
    return warp(logits, options).double().log_softmax(-1).gather(-1, torch.tensor(sequence[1:])[:, None])[:, 0]


def root_mean_square(errors: list[float]) -> float:
    return (sum(error**2 for error in errors) / len(errors)) ** 0.5


def row(context: Context, sequence: int) -> list[int]:
    return [i for i in context.tokens[sequence].tolist() if i != PAD]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [StepOptions(max_tokens=24), StepOptions(max_tokens=24, temperature=0.7, top_p=0.9, top_k=50)])
def test_log_probabilities_are_as_exact_as_those_of_plain_forward_passes(name: str, options: StepOptions) -> None:
    """Ragged steps of four sequences with a reorder in between, sampled and given, against passes without a cache in float64.

    Rounding in float32 costs a plain pass some error, and the engine may make twice that, and half a unit in the last place of the sum
    that it returns. The root mean square over twelve steps is compared, since the error of a single step may be near zero by luck.
    A wrong key, position or token makes a tenth and more in one step, hundreds of times the bound.
    """
    lm = loaded(name)
    single, double = plain_models(name)
    errors: dict[str, list[float]] = {"plain": [], "given": [], "sampled": [], "last place": []}
    pyro.set_rng_seed(0)
    context = lm.start(QUESTION).expand((4,))
    for _ in range(3):
        tokens, sampled = lm.sample_step(context, context.batch_shape, options)
        given = lm.step_log_prob(context, tokens, options)
        grown = context.extend(tokens)
        assert sampled is not None
        for s in range(4):
            step = slice(int(context.lengths[s]) - 1, int(grown.lengths[s]) - 1)
            sequence = row(grown, s)
            with InFloat64():
                exact = float(plain_log_probs(double, sequence, options)[step].sum())
            errors["plain"].append(float(plain_log_probs(single, sequence, options)[step].sum()) - exact)
            errors["given"].append(float(given[s]) - exact)
            errors["sampled"].append(float(sampled[s]) - exact)
            errors["last place"].append(torch.finfo(torch.float32).eps / 2 * exact)
        context = grown.reorder(torch.tensor([1, 1, 3, 0]))
    found = {of: root_mean_square(values) for of, values in errors.items()}
    bound = 2 * found["plain"] + found["last place"]
    assert 0 < found["plain"] < 1e-4, found  # else the reference itself is wrong
    assert found["given"] <= bound and found["sampled"] <= bound, found


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_all_tokens_are_their_text(name: str) -> None:
    lm = loaded(name)
    table = lm._token_bytes()
    for i, spelled in enumerate(table):
        text = lm.tokenizer.decode([i], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if spelled and "\ufffd" not in text:
            assert spelled.decode() == text, i


@pytest.mark.parametrize("name", NAMES)
def test_a_step_ends_where_its_text_first_holds_the_delimiter(name: str) -> None:
    lm = loaded(name)
    pyro.set_rng_seed(1)
    step = LLMStep(lm.start(QUESTION), stop=("\n\n", ". "), max_tokens=40).expand([8]).sample()
    ended = 0
    for tokens in step.tolist():
        ids = [i for i in tokens if i != PAD]
        before, whole = lm.decode(ids[:-1]), lm.decode(ids)
        assert "\n\n" not in before and ". " not in before
        ended += "\n\n" in whole or ". " in whole
    assert ended > 0


def run(*arguments: str, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == code, result.output
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_check_passes(name: str, dtype: str) -> None:
    assert run("check", path(name), "--dtype", dtype)["ok"]


def test_a_language_model_alone_takes_a_vote() -> None:
    report = run("solve", SHORT, "--lm", path("qwen05"), "--particles", "4", "--max-tokens-completion", "160")
    assert (report["settings"]["method"], report["settings"]["reward"]) == ("self-consistency", "none")
    assert report["answer"] == "4" and report["cost"].get("prm_calls", 0) == 0


@pytest.mark.parametrize("reward", ["judge", "confidence", "self-certainty", "verifier"])
def test_each_reward(reward: str, tmp_path: Path) -> None:
    if reward == "verifier":
        file = tmp_path / "mine.py"
        file.write_text("def right(problem, text):\n    return 0.9 if '4' in text else 0.1\n")
        reward = f"verifier:{file}:right"
    arguments = ["--lm", path("qwen05"), "--reward", reward, "--particles", "4", "--max-tokens-completion", "160"]
    report = run("solve", SHORT, *arguments)
    assert report["settings"]["method"] == "smc" and report["answer"] == "4" and report["log_evidence"] is not None
    assert all(score is None or 0 <= score <= 1 for score in report["best"]["step_scores"])


@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed (extra gguf)")
def test_a_gguf_file_is_the_directory_that_was_made_from_it() -> None:
    """Weights, prompts and the log-probabilities of a step."""
    directory, file = loaded("smollm2"), TransformersLM.from_pretrained(path("smollm2.gguf"))
    weights = dict(file.model.named_parameters())
    assert weights.keys() == dict(directory.model.named_parameters()).keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in directory.model.named_parameters())
    assert row(file.start([QUESTION]), 0) == row(directory.start([QUESTION]), 0)
    options = StepOptions(max_tokens=16)
    found = []
    for lm in (directory, file):
        lm.release_caches()  # what is run in one pass decides the last bits
        pyro.set_rng_seed(0)
        found.append(lm.sample_step(lm.start(QUESTION), torch.Size([4]), options))
    assert torch.equal(found[0].tokens, found[1].tokens)
    assert found[0].log_probs is not None and found[1].log_probs is not None
    torch.testing.assert_close(found[0].log_probs, found[1].log_probs, atol=1e-5, rtol=0)
    assert file.eos_ids.tolist() == directory.eos_ids.tolist()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_hidden_states_are_those_of_plain_forward_passes_at_one_pass_more(name: str) -> None:
    lm, options, forwards = loaded(name), StepOptions(stop=". ", max_tokens=12), []
    for asked in (False, True):
        lm.release_caches()
        pyro.set_rng_seed(0)
        context = lm.start(QUESTION).expand((4,))
        with CostMeter() as cost:
            for _ in range(3):
                context = context.extend(lm.sample_step(context, context.batch_shape, options).tokens, stop=options.stop)
                context = context.reorder(torch.tensor([1, 1, 3, 0]))
                if asked:
                    states = lm.hidden_states(context, context.lengths[:, None] - 1)[:, 0]
        forwards.append(cost.totals["lm_forwards"])
    assert forwards[1] == forwards[0] + 1
    single, _ = plain_models(name)
    for s in range(4):
        exact = single.base_model(input_ids=torch.tensor([row(context, s)]), use_cache=False).last_hidden_state[0, -1]
        assert float((states[s] - exact).norm() / exact.norm()) < 1e-4


def test_a_reward_on_hidden_states(tmp_path: Path) -> None:
    """From texts of a run to ``solve``."""
    sums = [(2, 2), (1, 3), (3, 4), (5, 2), (1, 1), (2, 6)] + [(738 + i, 964 + 7 * i) for i in range(6)]
    texts = [
        {"problem": f"What is {a} {'+' if a < 9 else '*'} {b}? Answer with the number only.", "answer": str(a + b if a < 9 else a * b)}
        for a, b in sums
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(each) + "\n" for each in texts))
    shared = ["--lm", path("smollm2"), "--max-tokens-completion", "16", "--answer-fallback", "last-number"]
    arguments = [str(tmp_path / "sums.jsonl"), *shared, "--methods", "self-consistency", "--budgets", "3", "--keep-texts"]
    made = CliRunner().invoke(app, ["evaluate", *arguments, "--group-size", "12", "--out", str(tmp_path / "run")])
    assert made.exit_code == 0, made.output
    head = tmp_path / "head.safetensors"
    fitted = CliRunner().invoke(app, ["fit-reward", str(tmp_path / "run"), "--lm", path("smollm2"), "--out", str(head)])
    assert fitted.exit_code == 0, fitted.output
    assert "to 8 problems. On 12 solutions to 4 other problems" in fitted.output
    report = run(
        "solve",
        "What is 2 + 2? Answer with the number only.",
        *shared,
        "--reward",
        f"hidden:{head}",
        "--preset",
        "twisted",
        "--particles",
        "2",
    )
    assert report["settings"]["reward"] == f"hidden:{head}" and report["cost"]["prm_calls"] > 0
    other = CliRunner().invoke(app, ["solve", SHORT, "--lm", path("qwen05"), "--reward", f"hidden:{head}"])
    assert other.exit_code == 2 and "this is another one" in other.output
