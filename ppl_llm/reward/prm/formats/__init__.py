"""How a reasoning trace is written for each family of process reward models."""

from typing import TYPE_CHECKING

from ....lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .base import PRMFormat
    from .math_shepherd import MathShepherdFormat
    from .qwen import QwenFormat
    from .rlhflow import RLHFlowFormat
    from .skywork import SkyworkFormat

_MODULES = {
    "MathShepherdFormat": "math_shepherd",
    "PRMFormat": "base",
    "QwenFormat": "qwen",
    "RLHFlowFormat": "rlhflow",
    "SkyworkFormat": "skywork",
}

__all__ = [
    "MathShepherdFormat",
    "PRMFormat",
    "QwenFormat",
    "RLHFlowFormat",
    "SkyworkFormat",
]

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
