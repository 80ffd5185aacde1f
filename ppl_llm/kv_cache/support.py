"""Whether a model runs on the KV cache engine, where it lies, how long its texts may be, and what ends them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from .attention import PACKED
from .engine import CacheEngine
from .masks import LayerMasks

VERIFIED = frozenset(
    {
        *("cohere2", "gemma", "gemma2", "gemma3_text", "gemma4_text", "glm4", "gpt_neox", "gpt_oss", "granite", "llama", "ministral"),
        *("mistral", "mixtral", "olmo2", "olmo3", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
    }
)
"""``model_type`` of the architectures that the tests compare with plain forward passes; others are tried on a few tokens when loaded."""

KEYWORDS = ("cache", "past_key_values", "cache_params")
"""The first since transformers 5.24, which will not know the others for long; recurrent models had the last."""

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE = 0.05
"""Relative error allowed in half precision; a wrong key or position gives one of order 1."""

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


class ModelForward:
    """The forward pass of a causal language model over a KV cache, as :class:`~ppl_llm.kv_cache.engine.CacheEngine` calls it."""

    def __init__(self, model: Any, masks: LayerMasks) -> None:
        self._model, self._masks, self._keyword = model, masks, cache_keyword(model)

    def __call__(self, cache: Cache, **inputs: Any) -> Tensor:
        logits: Tensor = self._model(**self._masks.narrowed(inputs), **{self._keyword: cache}).logits
        return logits


def cache_engine(model: Any, max_length: int, cache_bytes: int, device: torch.device) -> tuple[CacheEngine | None, str]:
    """The KV cache engine of a language model, or ``None`` and the reason why it needs another way.

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

    before = model.config._attn_implementation
    if before != PACKED:
        model.set_attn_implementation(PACKED)
    engine = CacheEngine(
        ModelForward(model, masks),
        name="lm",
        tokens_counter="tokens_prefilled",
        num_layers=config.num_hidden_layers,
        max_length=max_length,
        cache_bytes=cache_bytes,
        device=device,
        blocks=can_share_blocks(model),
    )
    problem = None if verified else disagreement(engine, model)
    if problem is not None:
        model.set_attn_implementation(before if before != PACKED else "sdpa")
        return None, problem
    return engine, ""


def can_share_blocks(model: Any) -> bool:
    """Whether attention can read keys in blocks: on a CPU, of architectures that hand it the keys that their cache gave."""
    return model.config.get_text_config().model_type in VERIFIED and lies_on(model, torch.device("cpu"))


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


def cache_keyword(model: Any) -> str:
    """The keyword by which a model, or the backbone that it hands its keywords to, takes a cache; also its name in the output."""
    for part in (model, getattr(model, "base_model", model)):
        parameters = inspect.signature(part.forward).parameters
        found = [keyword for keyword in KEYWORDS if keyword in parameters]
        if found:
            return found[0]
    return KEYWORDS[0]


def agree(first: Tensor, second: Tensor) -> bool:
    """Whether logits are equal up to rounding."""
    tolerance = _TOLERANCE.get(first.dtype, _COARSE)
    difference = (first.double() - second.double()).norm()
    return bool(difference <= tolerance * second.double().norm())


@torch.no_grad()
def disagreement(engine: CacheEngine, model: Any) -> str | None:
    """Run two sequences that fall out of step through a KV cache, and compare with passes over their whole texts.

    :returns: what is wrong, ``None`` if nothing is.
    """
    device = engine.device
    cache = engine.pool.take(None)
    cache.reserve(2, 9)
    text = (torch.arange(18, device=device).view(2, 9) * 7) % 13 + 2
    try:
        # The second sequence loses one token before it continues, as sequences do that stop before the others.
        for held, ends in (((0, 0), (4, 4)), ((4, 3), (7, 6)), ((7, 6), (8, 7))):
            before, lengths = text.new_tensor(held), text.new_tensor(ends)
            logits = engine.append(cache, torch.arange(2, device=device), text, lengths, before, lengths[:, None] - 1)[:, 0]
        whole = [
            model(input_ids=text[sequence : sequence + 1, : int(lengths[sequence])], use_cache=False).logits[0, -1] for sequence in (0, 1)
        ]
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"its forward pass refuses our cache ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    finally:
        engine.pool.clear()
    return None if agree(logits, torch.stack(whole).to(device)) else "its logits with our cache differ from those without"
