"""Random models of published sizes, and what the hardware can do: for ``gpu.py``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import Spread, make_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ppl_llm.reward.prm.networks import Qwen2PRM


def _config(vocabulary: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **others: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **others,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5-1.5B": _config(151936, 1536, 8960, 28, 12, 2, max_position_embeddings=32768, tie_word_embeddings=True),
    "Qwen2.5-7B": _config(152064, 3584, 18944, 28, 28, 4, max_position_embeddings=32768, tie_word_embeddings=False),
    "Qwen2.5-Math-PRM-7B": _config(152064, 3584, 18944, 28, 28, 4, max_position_embeddings=4096, tie_word_embeddings=False),
    "small": _config(1280, 128, 256, 2, 4, 2, max_position_embeddings=4096, tie_word_embeddings=False),
}
"""Sizes as published in each model's config.json."""


def tokenizer(name: str, step: float) -> PreTrainedTokenizerFast:
    """A made-up tokenizer of the model's size; a random model's steps have ``step`` tokens in the mean.

    The step token of the reward model is the last of those that it knows, where the published one is; the rest of the ids are padding of
    the embedding, as in the published models.
    """
    vocab = 151652 if CONFIGS[name]["vocab_size"] > 151652 else CONFIGS[name]["vocab_size"] - 16
    return make_tokenizer(stops=round(vocab / step), vocab=vocab)


Kind = type[Qwen2ForCausalLM] | type[Qwen2PRM]


def build(kind: Kind, name: str, device: torch.device, dtype: torch.dtype, layers: int | None = None) -> Any:
    """A model with random weights, made where it stays.

    :param layers: depth in place of the published one.
    """
    config = Qwen2Config(**(CONFIGS[name] | ({} if layers is None else {"num_hidden_layers": layers})))
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # rather than a cast afterwards, which would round the frequencies of the positions as well
    try:
        with torch.device(device):
            model = kind(config).eval()
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False)


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def read_bytes(model: nn.Module) -> int:
    """Bytes of weights that a forward pass over one token reads: all but embeddings, of which it reads one row."""
    return sum(layer.weight.numel() * layer.weight.element_size() for layer in linear_layers(model))


def kv_bytes(model: Any) -> int:
    """Bytes of the keys and values of one token."""
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head * next(model.parameters()).element_size()


@dataclass
class Clock:
    """Wall time of work on a device: of a session of its own, where nothing else uses it.

    :param int repeats: measured calls, after one that does not count.
    """

    device: torch.device
    repeats: int

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def once(self, run: Callable[[], Any]) -> float:
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began

    def __call__(self, run: Callable[[], Any], inner: int = 1) -> list[float]:
        """Seconds of each of several calls, each the mean of ``inner`` in a row."""

        def several() -> None:
            for _ in range(inner):
                run()

        self.once(several)
        return [self.once(several) / inner for _ in range(self.repeats)]


@dataclass
class Roofline:
    """What the device does at best, measured here.

    :ivar Spread bandwidth: bytes per second, read and written, of a large copy.
    :ivar Spread flops: floating-point operations per second of a large product of bf16 matrices.
    """

    bandwidth: Spread
    flops: Spread

    @classmethod
    def measured(cls, clock: Clock, small: bool) -> Roofline:
        source, target = (torch.ones((2**24 if small else 2**31) // 2, dtype=torch.bfloat16, device=clock.device) for _ in range(2))
        moved = 2 * source.numel() * source.element_size()
        copies = clock(lambda: target.copy_(source), inner=10)
        size = 256 if small else 8192
        left, right = (torch.randn(size, size, device=clock.device, dtype=torch.bfloat16) for _ in range(2))
        products = clock(lambda: left @ right, inner=10)
        return cls(Spread.of([moved / t for t in copies]), Spread.of([2 * size**3 / t for t in products]))


def own_products(model: nn.Module, tokens: int, clock: Clock) -> float:
    """Seconds of the products with the weights of a model's layers alone, for so many tokens."""
    total = 0.0
    layers = [layer for layer in linear_layers(model) if layer.weight.shape[0] > 2]
    kinds: dict[tuple[int, ...], list[nn.Linear]] = {}
    for layer in layers:
        kinds.setdefault(tuple(layer.weight.shape), []).append(layer)
    for (_, width), members in kinds.items():
        inputs: Tensor = torch.randn(tokens, width, device=clock.device, dtype=members[0].weight.dtype)
        total += len(members) * statistics.median(clock(lambda: members[0](inputs), inner=3))  # noqa: B023  (called at once)
    return total
