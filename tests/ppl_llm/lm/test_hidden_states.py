"""Hidden states against plain forward passes, and what they cost."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm import TransformersLM
from ppl_llm.context import Context
from ppl_llm.inference.cost import CostMeter
from ppl_llm.kv_cache.hidden import HiddenForward
from ppl_llm.lm import StepOptions
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.tiny_models import causal_lm, language_model, tokenizer

OPTIONS = StepOptions(stop=("a", "\n\n"), max_tokens=6)
PROBLEMS = ["What is 12 + 30?", "Multiply."]
SHAPE = torch.Size([6, 2])


@torch.no_grad()
def plain(lm: TransformersLM, context: Context) -> Tensor:
    """``[*batch, L, H]`` by one pass over whole texts."""
    tokens = context.tokens.reshape(-1, context.tokens.shape[-1]).clamp(min=0)
    states = lm.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    return states.float().view(*context.batch_shape, *states.shape[1:])


def last(context: Context) -> Tensor:
    """The last token of each sequence that took the step."""
    return torch.where(context.advanced, context.lengths - 1, -1)[..., None]


def grown(lm: TransformersLM, asked: bool, steps: int = 4, resampled: bool = True) -> tuple[Context, CostMeter, float]:
    """Steps with resampling in between; whether the states at the ends are asked for, and their largest error."""
    pyro.set_rng_seed(3)
    context, worst = lm.start(PROBLEMS).expand(SHAPE), 0.0
    with CostMeter() as cost:
        for _ in range(steps):
            context = context.extend(lm.sample_step(context, SHAPE, OPTIONS).tokens, stop=OPTIONS.stop)
            if asked:
                states = lm.hidden_states(context, last(context))[..., 0, :]
                exact = plain(lm, context).take_along_dim((context.lengths - 1)[..., None, None], -2)[..., 0, :]
                worst = max(worst, float((states - exact)[context.advanced].abs().max()))
            index = torch.randint(0, SHAPE[0], SHAPE)
            context = context.reorder(index) if resampled else context
    return context, cost, worst


@pytest.mark.parametrize("device_loop", [False, True])
def test_they_cost_one_pass_and_are_those_of_a_plain_forward(device_loop: bool) -> None:
    """The states at the ends of steps are what the next step's first logits are made of: the first to ask runs the pass."""
    alone, without, _ = grown(language_model(device_loop=device_loop), asked=False)
    context, with_states, error = grown(language_model(device_loop=device_loop), asked=True)
    assert torch.equal(alone.tokens, context.tokens)
    assert error < 1e-5
    assert not bool(context.done.all())
    assert with_states.totals["lm_forwards"] == without.totals["lm_forwards"] + 1  # after the last step, which no other follows
    assert with_states.totals["tokens_sampled"] == without.totals["tokens_sampled"]


def test_all_places_of_all_sequences() -> None:
    lm = language_model()
    context, _, _ = grown(lm, asked=False)
    positions = torch.arange(context.tokens.shape[-1]).expand(*SHAPE, -1)
    wanted = torch.where(positions < context.lengths[..., None], positions, -1)
    wanted[0, 1] = -1  # nothing of this one
    states = lm.hidden_states(context, wanted)
    assert states.shape == (*SHAPE, context.tokens.shape[-1], lm.hidden_size) and states.dtype == torch.float32
    assert float((states - torch.where(wanted[..., None] >= 0, plain(lm, context), 0.0)).abs().max()) < 1e-5


def test_equal_sequences_that_want_different_places() -> None:
    lm = language_model()
    context = lm.start("What is 12 + 30?").expand((3,))
    length = int(context.lengths[0])
    wanted = torch.tensor([[length - 1, 2], [length - 1, 5], [length - 1, -1]])
    states = lm.hidden_states(context, wanted)
    exact = plain(lm, context)
    assert float((states[:, 0] - exact[:, -1]).abs().max()) < 1e-5
    assert float((states[0, 1] - exact[0, 2]).abs().max()) < 1e-5 and float((states[1, 1] - exact[1, 5]).abs().max()) < 1e-5
    assert not bool(states[2, 1].any())


def test_a_state_of_an_earlier_place_is_not_taken_for_the_last() -> None:
    """The states of the first step are kept with the context; the tokens after the second do not come from them."""
    lm = language_model()
    pyro.set_rng_seed(0)
    context = lm.start(PROBLEMS).expand(SHAPE)
    first = context.extend(lm.sample_step(context, SHAPE, OPTIONS).tokens, stop=OPTIONS.stop)
    lm.hidden_states(first, last(first))
    second = first.extend(lm.sample_step(first, SHAPE, OPTIONS).tokens, stop=OPTIONS.stop)
    pyro.set_rng_seed(1)
    found = lm.sample_step(second, SHAPE, OPTIONS).tokens
    lm.release_caches()
    pyro.set_rng_seed(1)
    assert torch.equal(found, lm.sample_step(Context(**{**vars(second), "cache_entries": {}}), SHAPE, OPTIONS).tokens)


def test_released_caches_do_not_matter() -> None:
    lm = language_model()
    context, _, _ = grown(lm, asked=True)
    lm.hidden_states(context, last(context))
    pyro.set_rng_seed(1)
    found = lm.sample_step(context, SHAPE, OPTIONS).tokens
    lm.release_caches()
    pyro.set_rng_seed(1)
    assert torch.equal(found, lm.sample_step(context, SHAPE, OPTIONS).tokens)


@pytest.mark.parametrize("name", ["gemma2", "gemma3 with images", "mistral sliding", "gpt-oss", "granite", "mamba", "exaone4"])
def test_architectures(name: str, tmp_path: Path) -> None:
    """Softcapped logits, sliding windows, experts, and a model without our cache."""
    lm = TransformersLM.from_pretrained(ARCHITECTURES[name].write(tmp_path), max_length=64)
    alone, _, _ = grown(lm, asked=False, steps=2)
    context, _, error = grown(lm, asked=True, steps=2)
    assert torch.equal(alone.tokens, context.tokens)
    assert error < 1e-4


def test_logits_that_are_more_than_the_heads_are_noticed() -> None:
    model = causal_lm()
    assert HiddenForward(model, 64, torch.device("cpu")).suffices
    inner = model.forward

    def capped(**inputs: object) -> object:
        output = inner(**inputs)
        output.logits = 3.0 * torch.tanh(output.logits / 3.0)
        return output

    model.forward = capped
    assert not HiddenForward(model, 64, torch.device("cpu")).suffices
    lm = TransformersLM(model, tokenizer())
    alone, without, _ = grown(lm, asked=False)
    context, with_states, error = grown(TransformersLM(model, tokenizer()), asked=True)
    assert torch.equal(alone.tokens, context.tokens) and error < 1e-5
    assert with_states.totals["lm_forwards"] > without.totals["lm_forwards"] + 1  # right, at a pass a step


def test_identity() -> None:
    same, other = language_model(), language_model(seed=1)
    assert language_model().identity == same.identity != other.identity
    half = TransformersLM(causal_lm().to(torch.bfloat16), tokenizer())
    assert half.identity == same.identity  # the same checkpoint in another number format
    with torch.no_grad():
        half.model.model.layers[1].mlp.down_proj.weight += 0.5
    assert TransformersLM(half.model, tokenizer()).identity != same.identity


def test_a_place_behind_the_end_is_refused() -> None:
    lm = language_model()
    context = lm.start("x")
    with pytest.raises(ValueError, match=f"position {int(context.lengths)} is behind the end of a sequence"):
        lm.hidden_states(context, context.lengths[None])
