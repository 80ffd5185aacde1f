"""One tiny network under each of the ways in which steps are decoded."""

from __future__ import annotations

from ppl_llm import TransformersLM
from ppl_llm.lm.decoding.device_loop import DeviceLoop
from ppl_llm.lm.decoding.uncached_sampler import UncachedSampler

from .tape import tape
from .tiny_models import causal_lm, tokenizer


def plain() -> TransformersLM:
    return TransformersLM(causal_lm(max_position_embeddings=200), tokenizer(), device_loop=False)


def looping() -> TransformersLM:
    lm = plain()
    lm.use_device_loop(DeviceLoop(lm._engine, lm.eos_ids, tape, kv_bucket=32))
    return lm


def uncached() -> TransformersLM:
    lm = plain()
    lm._source = lm._sampler = UncachedSampler.tried(lm.model, lm.device)  # type: ignore[assignment]
    return lm
