"""Linear layers with packed weights: the products of ``torch.nn.Linear``, and of the weights as they are now."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import Qwen2ForCausalLM

from ppl_llm import PAD, TransformersLM, TransformersPRM
from ppl_llm.kv_cache import packed_linear
from ppl_llm.kv_cache.packed_linear import PackedLinear, pack, unpack
from ppl_llm.lm.base import StepOptions
from tests.helpers.tiny_models import causal_lm, language_model, plain_logits, reward_net, tokenizer

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


def layer(inputs: int = 400, outputs: int = 300, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias).to(dtype)


def packed(one: nn.Linear) -> nn.Linear:
    pack(nn.Sequential(one))
    assert isinstance(vars(one)["forward"], PackedLinear)
    return one


def plain(one: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x.double(), one.weight.double(), None if one.bias is None else one.bias.double())


@torch.no_grad()
def error(one: nn.Linear, x: Tensor) -> float:
    """Of the layer, relative to the largest output."""
    expected = plain(one, x)
    found = one(x)
    assert found.shape == expected.shape
    assert found.dtype == x.dtype
    return float((found.double() - expected).abs().max() / expected.abs().max())


@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    strided=st.booleans(),
)
def test_the_products_are_those_of_a_linear_layer(shape: list[int], bias: bool, dtype: torch.dtype, strided: bool):
    one = packed(layer(bias=bias, dtype=dtype))
    x = torch.randn(*shape, 400, generator=torch.Generator().manual_seed(len(shape))).to(dtype)
    if strided:  # every second row of something larger
        x = torch.stack([x, -x], -2)[..., 0, :]
    assert error(one, x) < ROUNDING[dtype]


def test_inside_of_inference_mode():
    one, x = packed(layer()), torch.randn(3, 2, 400)
    with torch.inference_mode():
        found = one(x)
        torch.testing.assert_close(found, plain(one, x).float(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_no_rows():
    assert packed(layer())(torch.empty(0, 400)).shape == (0, 300)


def test_gradients_go_through():
    one, other = packed(layer()), layer()
    x = torch.randn(2, 400)
    for each in (one, other):
        each(x).square().sum().backward()
    torch.testing.assert_close(one.weight.grad, other.weight.grad)


def in_place(one: nn.Linear) -> None:
    with torch.no_grad():
        one.weight.mul_(2.0)


def by_an_optimiser(one: nn.Linear) -> None:
    one(torch.randn(2, 400)).sum().backward()
    torch.optim.SGD(one.parameters(), 0.1).step()


def loaded(one: nn.Linear) -> None:
    one.load_state_dict({"weight": torch.randn(300, 400), "bias": torch.randn(300)})


def replaced(one: nn.Linear) -> None:
    one.weight = nn.Parameter(torch.randn(300, 400))


def other_data(one: nn.Linear) -> None:
    one.weight.data = torch.randn(300, 400)


def other_type_and_back(one: nn.Linear) -> None:
    one.double()
    one.weight.data.mul_(2.0)
    one.float()


@pytest.mark.parametrize("change", [in_place, by_an_optimiser, loaded, replaced, other_data, other_type_and_back])
def test_weights_that_change_are_packed_again(change: Any):
    one, x = packed(layer()), torch.randn(4, 400)
    assert error(one, x) < 1e-6
    change(one)
    assert error(one, x) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_layers_of_another_type_than_before(dtype: torch.dtype):
    one, x = packed(layer()), torch.randn(4, 400)
    assert error(one, x) < 1e-6
    one.to(dtype)
    assert error(one, x.to(dtype)) < {torch.float64: 1e-12}.get(dtype, 2e-2)


def test_a_packed_weight_that_is_never_renewed_is_found_out(monkeypatch: pytest.MonkeyPatch):
    one, x = packed(layer()), torch.randn(4, 400)
    assert error(one, x) < 1e-6
    in_place(one)
    monkeypatch.setattr(vars(one)["forward"], "_state", (one.weight._version, one.weight.data_ptr(), one.weight.dtype))
    assert error(one, x) > 0.1


def test_a_weight_that_changes_behind_autograd_is_seen_once_caches_are_released():
    one, x = packed(layer()), torch.randn(4, 400)
    assert error(one, x) < 1e-6
    one.weight.data.mul_(2.0)
    unpack(nn.Sequential(one))
    assert error(one, x) < 1e-6


def test_autocast_decides_the_type():
    one, x = packed(layer()), torch.randn(4, 400)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert one(x).dtype == torch.bfloat16


def test_copies_and_files_hold_the_layer_alone():
    one, x = packed(layer()), torch.randn(4, 400)
    assert error(one, x) < 1e-6
    twin = copy.deepcopy(one)
    in_place(twin)
    assert vars(twin)["forward"]._layer is twin
    assert error(twin, x) < 1e-6
    assert error(one, x) < 1e-6
    file = io.BytesIO()
    torch.save(one, file)
    file.seek(0)
    assert error(torch.load(file, weights_only=False), x) < 1e-6
    assert set(one.state_dict()) == {"weight", "bias"}


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_a_parametrised_weight_is_computed_at_every_call():
    one, x = packed(layer()), torch.randn(4, 400)
    parametrize.register_parametrization(one, "weight", Doubled())
    assert error(one, x) < 1e-6
    in_place_of = one.parametrizations.weight.original
    with torch.no_grad():
        in_place_of.mul_(3.0)
    assert error(one, x) < 1e-6


class Mine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., :1]


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(layer(32, 32), id="small"),
        pytest.param(layer().double(), id="float64"),
        pytest.param(layer().half(), id="float16"),
        pytest.param(Mine(400, 300), id="another class"),
        pytest.param(nn.Linear(400, 300, device="meta"), id="no weights here"),
    ],
)
def test_others_stay_as_they_are(one: nn.Linear):
    pack(nn.Sequential(one))
    assert "forward" not in vars(one)


def test_a_network_made_in_inference_mode_stays_as_it_is():
    with torch.inference_mode():
        one = layer()
    pack(nn.Sequential(one))
    assert "forward" not in vars(one)


def gone(*arguments: Any) -> Tensor:
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")


def other(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    return x.new_zeros(len(x), 4)


@pytest.mark.parametrize("function", [gone, other])
def test_a_build_of_torch_without_these_functions_multiplies_as_ever(function: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", function)
    packed_linear._works.cache_clear()
    one = layer()
    pack(nn.Sequential(one))
    packed_linear._works.cache_clear()
    assert "forward" not in vars(one)


def test_a_forward_that_somebody_else_has_put_there_stays():
    one = layer()
    one.forward = hooked = lambda x: x  # type: ignore[method-assign]
    pack(nn.Sequential(one))
    assert vars(one)["forward"] is hooked


def test_a_network_too_large_for_a_second_copy_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(packed_linear, "_LIMIT", limit)
    bytes_of_two = 2 * 4 * 300 * 400
    for text, fits in ((str(16 * bytes_of_two), True), (str(16 * bytes_of_two - 16), False), ("max", True)):
        limit.write_text(text)
        both = nn.Sequential(layer(), layer())
        pack(both)
        assert all(("forward" in vars(each)) == fits for each in both)


WIDE = {"hidden_size": 384, "intermediate_size": 512}
PROBLEM = "To add 12 and 30, add the tens"


def count_packed(model: nn.Module) -> int:
    """Layers that have multiplied by a packed weight."""
    forwards = [vars(module).get("forward") for module in model.modules()]
    return sum(isinstance(forward, PackedLinear) and forward._packed is not None for forward in forwards)


def errors_of_steps(lm: TransformersLM, stock: Qwen2ForCausalLM) -> list[float]:
    """Of the log-probabilities of three sampled steps, against passes of the stock network over the whole texts."""
    context, options = lm.start(PROBLEM), StepOptions(("\n\n",), 12, 1.0)
    torch.manual_seed(1)
    sample = lm.sample_step(context, torch.Size((3,)), options)
    found = lm.step_log_prob(context.expand((3,)), sample.tokens, options)
    prompt = context.tokens.flatten().tolist()
    errors = []
    for row, value in zip(sample.tokens.tolist(), found.tolist(), strict=True):
        step = [token for token in row if token != PAD]
        logs = plain_logits(stock, prompt + step[:-1])[len(prompt) - 1 :].double().log_softmax(-1)
        errors.append(abs(float(logs[range(len(step)), step].sum()) - value))
    return errors


def test_language_models_sample_and_score_by_packed_weights():
    network, stock = causal_lm(**WIDE), causal_lm(**WIDE)
    lm = TransformersLM(network, tokenizer())
    assert max(errors_of_steps(lm, stock)) < 1e-4
    assert count_packed(network) == 2 * 5 + 1  # queries, output, and three of the feed-forward part; the head. Keys and values are small
    with torch.no_grad():
        for model in (network, stock):
            for parameter in model.parameters():
                parameter.data.mul_(0.9)  # which autograd does not see
    assert max(errors_of_steps(lm, stock)) > 1e-2
    lm.release_caches()
    assert max(errors_of_steps(lm, stock)) < 1e-4


def test_reward_models_read_by_packed_weights():
    network = reward_net(**WIDE)
    prm = TransformersPRM(network, tokenizer())
    stock = TransformersPRM(reward_net(**WIDE), tokenizer())
    for module in stock.model.modules():
        vars(module).pop("forward", None)
    lm = language_model()
    context = lm.start(PROBLEM)
    step, _ = lm.sample_step(context, torch.Size((3,)), StepOptions(("\n\n",), 12, 1.0))
    found, expected = (each.step_log_odds(context.extend(step, "\n\n")) for each in (prm, stock))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert count_packed(network) == 2 * 5 + 1  # the reward head too
    assert count_packed(stock.model) == 0
