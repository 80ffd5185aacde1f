"""Ready Pyro models of step-by-step reasoning, and what goes with them."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .look_ahead import LookAhead
    from .models import ReasoningModel, reasoning
    from .presets import PRESETS, Preset, get_preset
    from .smc_filter_adapter import SMCFilterAdapter
    from .step_proposal import StepProposal

_MODULES = {
    "PRESETS": "presets",
    "LookAhead": "look_ahead",
    "Preset": "presets",
    "ReasoningModel": "models",
    "SMCFilterAdapter": "smc_filter_adapter",
    "StepProposal": "step_proposal",
    "get_preset": "presets",
    "reasoning": "models",
}

__all__ = [
    "PRESETS",
    "LookAhead",
    "Preset",
    "ReasoningModel",
    "SMCFilterAdapter",
    "StepProposal",
    "get_preset",
    "reasoning",
]

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
