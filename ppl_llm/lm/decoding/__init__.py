"""Sampling of steps, token by token."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cached_decoder import CachedDecoder, CachedLogits
    from .decoder import Decoder, DecodeRequest, DecoderSource, Draw, LogitsSource, Sampler, StepTask
    from .device_batch import DeviceSampler
    from .device_loop import DeviceLoop
    from .joint_sampler import JointSampler
    from .sampling import inverse_cdf, sample_each, warp
    from .step_sampler import StepSampler
    from .uncached_sampler import UncachedSampler

# Imported on first use, as torch and transformers take seconds.
_HOME = {
    "CachedDecoder": "cached_decoder",
    "CachedLogits": "cached_decoder",
    "DecodeRequest": "decoder",
    "Decoder": "decoder",
    "DecoderSource": "decoder",
    "DeviceLoop": "device_loop",
    "DeviceSampler": "device_batch",
    "Draw": "decoder",
    "JointSampler": "joint_sampler",
    "LogitsSource": "decoder",
    "Sampler": "decoder",
    "StepSampler": "step_sampler",
    "StepTask": "decoder",
    "UncachedSampler": "uncached_sampler",
    "inverse_cdf": "sampling",
    "sample_each": "sampling",
    "warp": "sampling",
}

__all__ = [
    "CachedDecoder",
    "CachedLogits",
    "DecodeRequest",
    "Decoder",
    "DecoderSource",
    "DeviceLoop",
    "DeviceSampler",
    "Draw",
    "JointSampler",
    "LogitsSource",
    "Sampler",
    "StepSampler",
    "StepTask",
    "UncachedSampler",
    "inverse_cdf",
    "sample_each",
    "warp",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
