"""The engine on published models: log-probabilities, tokens and their bytes, prompts, GGUF files, memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppl_llm import SMC, Confidence, LLMStep, TransformersLM, reasoning
from ppl_llm.context import PAD, Context
from ppl_llm.inference.cost import CostMeter
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding.sampling import warp
from tests.helpers.plain_markdown import steps_of
from tests.real.published import NAMES, QUESTION, loaded, path, real, resident

pytestmark = real


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


@contextmanager
def plain_models(name: str) -> Iterator[tuple[Any, Any]]:
    """The model in eager attention, in float32 and in float64, which takes eight bytes a weight."""
    single = copy.deepcopy(loaded(name).model)
    single.set_attn_implementation("eager")
    double = copy.deepcopy(single).double()
    yield single, double


@torch.no_grad()
def plain_log_probs(model: Any, sequence: list[int], options: StepOptions) -> Tensor:
    """Log-probabilities ``[L - 1]`` of each token given those before it: one uncached pass, warped in its dtype, log-softmax in float64."""
    logits = model(torch.tensor([sequence]), use_cache=False).logits[0, :-1]
    return warp(logits, options).double().log_softmax(-1).gather(-1, torch.tensor(sequence[1:])[:, None])[:, 0]


def root_mean_square(errors: list[float]) -> float:
    return (sum(error**2 for error in errors) / len(errors)) ** 0.5


def row(context: Context, sequence: int) -> list[int]:
    return [i for i in context.tokens[sequence].tolist() if i != PAD]


def followed(name: str, options: StepOptions) -> tuple[Context, dict[str, Tensor]]:
    """Ragged steps of four sequences with reorders in between, and the log-probabilities ``[4, 3]`` of the steps of those that are left."""
    lm = loaded(name)
    pyro.set_rng_seed(0)
    context = lm.start(QUESTION).expand((4,))
    known: dict[str, list[Tensor]] = {"given": [], "sampled": []}
    for ancestors in ([1, 1, 3, 0], [0, 2, 2, 3], [0, 1, 2, 3]):
        tokens, sampled = lm.sample_step(context, context.batch_shape, options)
        assert sampled is not None
        known["given"].append(lm.step_log_prob(context, tokens, options))
        known["sampled"].append(sampled)
        index = torch.tensor(ancestors)
        known = {of: [each[index] for each in values] for of, values in known.items()}
        context = context.extend(tokens).reorder(index)
    return context, {of: torch.stack(values, 1) for of, values in known.items()}


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_are_as_exact_as_those_of_plain_forward_passes(name: str) -> None:
    """Steps, sampled and given, plain and warped, against passes without a cache in float64.

    Rounding in float32 costs a plain pass some error, and the engine may make eight times that (it normalises a warped distribution twice,
    before tokens are left out and after, and joins attention to a common prefix with that to the rest), and half a unit in the last place
    of the sum that it returns. The root mean square over twelve steps is compared, since the error of a single step may be near zero by
    luck.
    A wrong key, position or token makes a tenth and more in one step, hundreds of times the bound.
    """
    with plain_models(name) as (single, double):
        for options in (StepOptions(max_tokens=24), StepOptions(max_tokens=24, temperature=0.7, top_p=0.9, top_k=50)):
            context, known = followed(name, options)
            errors: dict[str, list[float]] = {"plain": [], "given": [], "sampled": [], "last place": []}
            for s in range(4):
                sequence = row(context, s)
                with InFloat64():
                    exactly = plain_log_probs(double, sequence, options)
                nearly = plain_log_probs(single, sequence, options)
                for t, (begin, end) in enumerate(zip(context.step_starts[s].tolist(), context.ends[s].tolist(), strict=True)):
                    exact = float(exactly[begin - 1 : end - 1].sum())
                    errors["plain"].append(float(nearly[begin - 1 : end - 1].sum()) - exact)
                    errors["given"].append(float(known["given"][s, t]) - exact)
                    errors["sampled"].append(float(known["sampled"][s, t]) - exact)
                    errors["last place"].append(torch.finfo(torch.float32).eps / 2 * exact)
            found = {of: root_mean_square(values) for of, values in errors.items()}
            print(name, options.temperature, {of: f"{error:.1e}" for of, error in found.items()})
            bound = 8 * found["plain"] + found["last place"]
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


@pytest.mark.parametrize("name", NAMES)
def test_steps_of_markdown_end_where_a_plain_scan_ends_them(name: str) -> None:
    """On the tokens of the published vocabulary, for a text with a list, a fence, an equation and blank lines in both."""
    lm = loaded(name)
    text = "1. Run:\n```python\ndef f(x):\n\n    return x\n```\n\nSo $$x\n\n= 1$$.\n\n\\[\n\ny\n\n\\]\n\nThe answer is \\boxed{1}."
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = [step for step, _ in steps_of([lm.decode([i]) for i in ids], 200)]
    context, place, rule = lm.start(QUESTION), 0, lm.stop_automaton("markdown")
    for step in expected:
        part, place = ids[place : place + len(step)], place + len(step)
        value = torch.tensor(part + [PAD] * (200 - len(part)))
        assert bool(rule.accepts(value, rule.start(context))) == (place < len(ids)), step
        assert not bool(rule.accepts(value[: len(part) - 1], rule.start(context))), step
        context = context.extend(value, stop="markdown")
    assert len(context.steps) == 4 and "".join(context.steps) == text


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gemma270"])  # a base model has no template
def test_prompts_are_those_of_the_chat_template(name: str) -> None:
    """A system prompt, several turns, and an answer that the prompt has begun."""
    lm = loaded(name)
    system = {"role": "system", "content": "Answer in one word."}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": QUESTION}]
    begun = {"role": "assistant", "content": "First, 12 * 3 = 36.\n\n"}
    spelled = TransformersLM(lm.model, lm.tokenizer, system_prompt=system["content"])
    for given, chat in ((QUESTION, [system, turns[2]]), ([system, *turns], [system, *turns]), ([*turns, begun], [*turns, begun])):
        open_ = chat[-1]["role"] == "assistant"
        text = lm.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=not open_, continue_final_message=open_)
        assert row(spelled.start([given]), 0) == lm.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_confidence_of_sampled_steps_is_that_of_a_second_pass() -> None:
    """And costs no pass."""
    lm, rewards = loaded("smollm2"), [Confidence(), Confidence("entropy", temperature=0.7)]
    for reward in rewards:
        pyro.set_rng_seed(0)
        model = reasoning(lm, reward, max_steps=3, max_tokens=24)
        posterior = SMC(model, 4, ess_threshold=1.0).run(QUESTION)
        context: Context = posterior.value
        again = Confidence(reward.kind, temperature=reward.temperature)
        bare = copy.copy(context)
        object.__setattr__(bare, "cache_entries", {})
        torch.testing.assert_close(reward.step_log_odds(context), again.step_log_odds(bare), atol=1e-3, rtol=1e-4)
        assert posterior.cost["tokens_prefilled"] <= int(context.prompt_lengths[0]) + posterior.cost["tokens_sampled"] / 4


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


def test_memory_is_flat_over_twenty_problems() -> None:
    """Resident memory after twenty problems is that after five, within 32 MiB; the keys and values of one problem take 12 MiB."""
    lm = loaded("smollm2")
    model = reasoning(lm, Confidence(), max_steps=4, max_tokens=24)
    sizes = []
    for n in range(20):
        pyro.set_rng_seed(n)
        SMC(model, 8).run(f"{n} apples cost {3 * n + 3} dollars. What does one apple cost? {QUESTION}")
        sizes.append(resident())
    print("MiB", [round(size / 2**20) for size in sizes])
    assert sizes[-1] - sizes[4] < 32 * 2**20, sizes


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
    with plain_models(name) as (single, _):
        for s in range(4):
            exact = single.base_model(input_ids=torch.tensor([row(context, s)]), use_cache=False).last_hidden_state[0, -1]
            assert float((states[s] - exact).norm() / exact.norm()) < 1e-4
