"""Language models and process reward models as parts of an ordinary Pyro program."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answers import argmax, extract_answer, majority, weighted_majority
    from .context import PAD, Context, StopReason
    from .datasets import Problem, load_problems
    from .distributions import LLMStep, StepReward
    from .equivalence import MathEquivalence
    from .inference import (
        DVTS,
        PIMH,
        PMMH,
        SMC,
        BeamSearch,
        BestOfN,
        EntropicAnnealing,
        Enumeration,
        Importance,
        ParallelTempering,
        ParticleGibbs,
        ParticlePosterior,
        SelfConsistency,
        SMCFailed,
        SuffixMH,
        TemperedSMC,
        barrier,
    )
    from .lm.openai_lm import OpenAILM
    from .lm.protocol import LanguageModel
    from .lm.tabular import TabularLM
    from .lm.transformers_lm import TransformersLM
    from .look_ahead import LookAhead
    from .models import ReasoningModel, reasoning
    from .presets import PRESETS, Preset
    from .reward.function_reward import FunctionReward
    from .reward.judge_reward import JudgeReward
    from .reward.product_reward import ProductReward
    from .reward.protocol import RewardModel
    from .reward.remote_prm import RemotePRM
    from .reward.self_certainty import SelfCertainty
    from .reward.sum_reward import SumReward
    from .reward.tabular import TabularReward
    from .reward.transformers_orm import TransformersORM
    from .reward.transformers_prm import TransformersPRM
    from .smc_filter_adapter import SMCFilterAdapter
    from .step_proposal import StepProposal

__version__ = "0.1.0"

# Imported on first use: torch, Pyro and transformers take seconds, which `ppl-llm --help` need not wait for.
_HOME = {
    "BeamSearch": "inference",
    "BestOfN": "inference",
    "Context": "context",
    "DVTS": "inference",
    "EntropicAnnealing": "inference",
    "Enumeration": "inference",
    "FunctionReward": "reward.function_reward",
    "Importance": "inference",
    "JudgeReward": "reward.judge_reward",
    "LLMStep": "distributions",
    "LanguageModel": "lm.protocol",
    "LookAhead": "look_ahead",
    "MathEquivalence": "equivalence",
    "OpenAILM": "lm.openai_lm",
    "PAD": "context",
    "PIMH": "inference",
    "PMMH": "inference",
    "PRESETS": "presets",
    "ParallelTempering": "inference",
    "ParticleGibbs": "inference",
    "ParticlePosterior": "inference",
    "Preset": "presets",
    "Problem": "datasets",
    "ProductReward": "reward.product_reward",
    "ReasoningModel": "models",
    "RemotePRM": "reward.remote_prm",
    "RewardModel": "reward.protocol",
    "SMC": "inference",
    "SMCFailed": "inference",
    "SMCFilterAdapter": "smc_filter_adapter",
    "SelfCertainty": "reward.self_certainty",
    "SelfConsistency": "inference",
    "StepProposal": "step_proposal",
    "StepReward": "distributions",
    "StopReason": "context",
    "SuffixMH": "inference",
    "SumReward": "reward.sum_reward",
    "TabularLM": "lm.tabular",
    "TabularReward": "reward.tabular",
    "TemperedSMC": "inference",
    "TransformersLM": "lm.transformers_lm",
    "TransformersORM": "reward.transformers_orm",
    "TransformersPRM": "reward.transformers_prm",
    "argmax": "answers",
    "barrier": "inference",
    "extract_answer": "answers",
    "load_problems": "datasets",
    "majority": "answers",
    "reasoning": "models",
    "weighted_majority": "answers",
}

__all__ = [
    "DVTS",
    "PAD",
    "PIMH",
    "PMMH",
    "PRESETS",
    "SMC",
    "BeamSearch",
    "BestOfN",
    "Context",
    "EntropicAnnealing",
    "Enumeration",
    "FunctionReward",
    "Importance",
    "JudgeReward",
    "LLMStep",
    "LanguageModel",
    "LookAhead",
    "MathEquivalence",
    "OpenAILM",
    "ParallelTempering",
    "ParticleGibbs",
    "ParticlePosterior",
    "Preset",
    "Problem",
    "ProductReward",
    "ReasoningModel",
    "RemotePRM",
    "RewardModel",
    "SMCFailed",
    "SMCFilterAdapter",
    "SelfCertainty",
    "SelfConsistency",
    "StepProposal",
    "StepReward",
    "StopReason",
    "SuffixMH",
    "SumReward",
    "TabularLM",
    "TabularReward",
    "TemperedSMC",
    "TransformersLM",
    "TransformersORM",
    "TransformersPRM",
    "argmax",
    "barrier",
    "extract_answer",
    "load_problems",
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
