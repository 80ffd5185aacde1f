"""What a model is: where it lies, how long its texts may be, what ends them, and whether it runs on the slab engine."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache

from .attention import PACKED
from .cache_keyword import cache_keyword
from .engine import PrefixEngine
from .masks import LayerMasks
from .probe import disagreement

VERIFIED = frozenset(
    {
        *("cohere2", "gemma", "gemma2", "gemma3_text", "gemma4_text", "glm4", "gpt_neox", "gpt_oss", "granite", "llama", "ministral"),
        *("mistral", "mixtral", "olmo2", "olmo3", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
    }
)
"""``model_type`` of the architectures that the tests compare with plain forward passes; others are tried on a few tokens when loaded."""

_UNBOUNDED = 1 << 20
"""Longest context of a model that names no limit."""


def context_limit(config: Any) -> tuple[int, str]:
    """Longest context that a model takes, and what sets it.

    Where the rotary embedding of all tokens changes once the text exceeds the original length (LongRoPE), keys kept from before would have
    another meaning than in a pass over the whole text; the limit is then that length.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    limit = getattr(config, "max_position_embeddings", None)
    if rope.get("rope_type") == "longrope" and original and limit and original < limit:
        return int(original), "the model's original_max_position_embeddings; beyond it LongRoPE changes the keys of all earlier tokens"
    return (int(limit), "the model's max_position_embeddings") if limit else (_UNBOUNDED, "the model names none")


def slab_engine(model: Any, max_length: int, cache_bytes: int, device: torch.device) -> tuple[PrefixEngine | None, str]:
    """The slab engine of a language model, or ``None`` and the reason why it needs another way.

    The model's attention function is replaced if there is an engine, and left alone if there is none.
    """
    config = model.config.get_text_config()
    masks = LayerMasks(config, max_length)
    verified = config.model_type in VERIFIED
    obstacle = masks.obstacle
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} is an encoder-decoder model; only causal language models can be continued step by step")
    if obstacle is None and not getattr(model, "_supports_attention_backend", False):
        obstacle = "it does not take an attention function"
    if obstacle is None and masks.window is not None and not verified:
        obstacle = f"its attention slides over {masks.window} tokens, which is not tested for {config.model_type}"
    if obstacle is not None:
        return None, obstacle

    keyword = cache_keyword(model)

    def forward(cache: Cache, **inputs: Any) -> torch.Tensor:
        logits: torch.Tensor = model(**masks.narrowed(inputs), **{keyword: cache}).logits
        return logits

    before = model.config._attn_implementation
    if before != PACKED:
        model.set_attn_implementation(PACKED)
    engine = PrefixEngine(
        forward,
        name="lm",
        tokens_counter="tokens_prefilled",
        num_layers=config.num_hidden_layers,
        max_length=max_length,
        cache_bytes=cache_bytes,
        device=device,
    )
    problem = None if verified else disagreement(engine, model)
    if problem is not None:
        model.set_attn_implementation(before if before != PACKED else "sdpa")
        return None, problem
    return engine, ""


def execution_device(model: Any) -> torch.device:
    """Where token ids go in; the embedding of an offloaded model has no device of its own."""
    device: torch.device = model.get_input_embeddings().weight.device
    if device.type == "meta":
        device = torch.device(model.get_input_embeddings()._hf_hook.execution_device)
    return device


def lies_on(model: Any, device: torch.device) -> bool:
    """Whether all of a model lies on one device."""
    return all(parameter.device == device for parameter in model.parameters())


def eos_ids(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end the text: what the model's generation config and config and the tokenizer name, one or several each."""
    ids: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config.get_text_config(), tokenizer):
        eos = getattr(source, "eos_token_id", None)
        ids.update(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])
    return ids
