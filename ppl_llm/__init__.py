"""Language models and process reward models as parts of an ordinary Pyro program."""

from .answers import argmax, extract_answer, majority, weighted_majority
from .context import PAD, Context, StopReason
from .distributions import LLMStep, StepReward
from .inference import SMC, Importance, ParticlePosterior, SMCFailed, barrier
from .lm.protocol import LanguageModel
from .lm.tabular import TabularLM
from .lm.transformers_lm import TransformersLM
from .models import PRESETS, Preset, ReasoningModel, reasoning
from .reward.protocol import RewardModel
from .reward.tabular import TabularReward
from .reward.transformers_prm import TransformersPRM

__version__ = "0.1.0"

__all__ = [
    "PAD",
    "PRESETS",
    "SMC",
    "Context",
    "Importance",
    "LLMStep",
    "LanguageModel",
    "ParticlePosterior",
    "Preset",
    "ReasoningModel",
    "RewardModel",
    "SMCFailed",
    "StepReward",
    "StopReason",
    "TabularLM",
    "TabularReward",
    "TransformersLM",
    "TransformersPRM",
    "argmax",
    "barrier",
    "extract_answer",
    "majority",
    "reasoning",
    "weighted_majority",
]
