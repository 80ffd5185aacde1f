"""Language models and process reward models as parts of an ordinary Pyro program."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answers import argmax, extract_answer, majority, weighted_majority
    from .context import PAD, Context, StopReason
    from .distributions import LLMStep, StepReward
    from .inference import (
        SMC,
        EntropicAnnealing,
        Enumeration,
        Importance,
        ParallelTempering,
        ParticlePosterior,
        SMCFailed,
        TemperedSMC,
        barrier,
    )
    from .lm.openai_lm import OpenAILM
    from .lm.protocol import LanguageModel
    from .lm.tabular import TabularLM
    from .lm.transformers_lm import TransformersLM
    from .models import PRESETS, Preset, ReasoningModel, reasoning
    from .reward.protocol import RewardModel
    from .reward.tabular import TabularReward
    from .reward.transformers_prm import TransformersPRM
    from .smc_filter_adapter import SMCFilterAdapter

__version__ = "0.1.0"

# Imported on first use: torch, Pyro and transformers take seconds, which `ppl-llm --help` need not wait for.
_HOME = {
    "Context": "context",
    "EntropicAnnealing": "inference",
    "Enumeration": "inference",
    "Importance": "inference",
    "LLMStep": "distributions",
    "LanguageModel": "lm.protocol",
    "OpenAILM": "lm.openai_lm",
    "PAD": "context",
    "PRESETS": "models",
    "ParallelTempering": "inference",
    "ParticlePosterior": "inference",
    "Preset": "models",
    "ReasoningModel": "models",
    "RewardModel": "reward.protocol",
    "SMC": "inference",
    "SMCFailed": "inference",
    "SMCFilterAdapter": "smc_filter_adapter",
    "StepReward": "distributions",
    "StopReason": "context",
    "TabularLM": "lm.tabular",
    "TabularReward": "reward.tabular",
    "TemperedSMC": "inference",
    "TransformersLM": "lm.transformers_lm",
    "TransformersPRM": "reward.transformers_prm",
    "argmax": "answers",
    "barrier": "inference",
    "extract_answer": "answers",
    "majority": "answers",
    "reasoning": "models",
    "weighted_majority": "answers",
}

__all__ = [
    "PAD",
    "PRESETS",
    "SMC",
    "Context",
    "EntropicAnnealing",
    "Enumeration",
    "Importance",
    "LLMStep",
    "LanguageModel",
    "OpenAILM",
    "ParallelTempering",
    "ParticlePosterior",
    "Preset",
    "ReasoningModel",
    "RewardModel",
    "SMCFailed",
    "SMCFilterAdapter",
    "StepReward",
    "StopReason",
    "TabularLM",
    "TabularReward",
    "TemperedSMC",
    "TransformersLM",
    "TransformersPRM",
    "argmax",
    "barrier",
    "extract_answer",
    "majority",
    "reasoning",
    "weighted_majority",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
