"""Sampling of steps, token by token."""

from typing import TYPE_CHECKING

from ...lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .cached_decoder import CachedDecoder, CachedLogits
    from .decoder import Decoder, DecodeRequest, DecoderSource, Draw, LogitsSource, Sampler, StepTask
    from .device_batch import DeviceSampler
    from .device_loop import DeviceLoop
    from .joint_sampler import JointSampler
    from .sampling import inverse_cdf, sample_each, warp
    from .step_sampler import StepSampler
    from .uncached_sampler import UncachedSampler

_MODULES = {
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


__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
