"""Language models and process reward models as parts of an ordinary Pyro program."""

from typing import TYPE_CHECKING

from .lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .answers.equivalence import MathEquivalence
    from .answers.extraction import extract_answer
    from .answers.voting import argmax, majority, weighted_majority
    from .context import PAD, Context
    from .distributions import LLMStep, StepReward
    from .inference import (
        DVTS,
        PIMH,
        PMMH,
        SMC,
        Adaptive,
        BeamSearch,
        BestOfN,
        BetaMajority,
        BlockMH,
        EntropicAnnealing,
        Enumeration,
        Importance,
        Pandora,
        ParallelTempering,
        ParticleGibbs,
        ParticlePosterior,
        SameAnswers,
        SelfConsistency,
        Share,
        SMCFailed,
        SuffixMH,
        TemperedSMC,
        WasteFreeSMC,
        barrier,
    )
    from .lm.base import LanguageModel
    from .lm.openai_lm import OpenAILM
    from .lm.stop_pattern import StopPattern
    from .lm.tabular_lm import TabularLM
    from .lm.transformers_lm import TransformersLM
    from .programs.aggregate import Aggregate
    from .programs.deepconf import DeepConf
    from .programs.look_ahead import LookAhead
    from .programs.models import ReasoningModel, reasoning
    from .programs.presets import PRESETS, Preset
    from .programs.revision import revise
    from .programs.smc_filter_adapter import SMCFilterAdapter
    from .programs.step_proposal import StepProposal
    from .reward.base import RewardModel
    from .reward.combined_reward import ProductReward, SumReward
    from .reward.confidence import Confidence
    from .reward.function_reward import FunctionReward
    from .reward.hidden_state_reward import HiddenStateReward
    from .reward.judge_reward import JudgeReward
    from .reward.prefix_value import PrefixValue
    from .reward.prm.remote_prm import RemotePRM
    from .reward.prm.transformers_prm import TransformersPRM
    from .reward.rollout_value import RolloutValue
    from .reward.tabular_reward import TabularReward
    from .reward.transformers_orm import TransformersORM
    from .reward.twist import Twist
    from .stop_reason import StopReason
    from .tasks.base import Problem
    from .tasks.load import load_problems
    from .thinking import Thinking

__version__ = "0.1.0"

_MODULES = {
    "ABMCTS": "inference",
    "Adaptive": "inference",
    "Aggregate": "programs.aggregate",
    "BeamSearch": "inference",
    "BestFirst": "inference",
    "BestOfN": "inference",
    "BetaMajority": "inference",
    "BlockMH": "inference",
    "Confidence": "reward.confidence",
    "Context": "context",
    "DORA": "inference",
    "DVTS": "inference",
    "DeepConf": "programs.deepconf",
    "EntropicAnnealing": "inference",
    "Enumeration": "inference",
    "FunctionReward": "reward.function_reward",
    "Importance": "inference",
    "HiddenStateReward": "reward.hidden_state_reward",
    "JudgeReward": "reward.judge_reward",
    "LLMStep": "distributions",
    "LanguageModel": "lm.base",
    "LookAhead": "programs.look_ahead",
    "MCTS": "inference",
    "MathEquivalence": "answers.equivalence",
    "OpenAILM": "lm.openai_lm",
    "PAD": "context",
    "PIMH": "inference",
    "PMMH": "inference",
    "PRESETS": "programs.presets",
    "Pandora": "inference",
    "ParallelTempering": "inference",
    "ParticleGibbs": "inference",
    "ParticlePosterior": "inference",
    "PrefixValue": "reward.prefix_value",
    "PrefixWalk": "inference",
    "Preset": "programs.presets",
    "Problem": "tasks.base",
    "ProductReward": "reward.combined_reward",
    "ReasoningModel": "programs.models",
    "REBASE": "inference",
    "RemotePRM": "reward.prm.remote_prm",
    "RewardModel": "reward.base",
    "RolloutValue": "reward.rollout_value",
    "SMC": "inference",
    "SMCFailed": "inference",
    "SMCFilterAdapter": "programs.smc_filter_adapter",
    "SameAnswers": "inference",
    "SelfConsistency": "inference",
    "SpeculativeRejection": "inference",
    "Share": "inference",
    "StepProposal": "programs.step_proposal",
    "StopPattern": "lm.stop_pattern",
    "StepReward": "distributions",
    "StopReason": "stop_reason",
    "SuffixMH": "inference",
    "SumReward": "reward.combined_reward",
    "TabularLM": "lm.tabular_lm",
    "TabularReward": "reward.tabular_reward",
    "TemperedSMC": "inference",
    "TransformersLM": "lm.transformers_lm",
    "TransformersORM": "reward.transformers_orm",
    "TransformersPRM": "reward.prm.transformers_prm",
    "Thinking": "thinking",
    "Twist": "reward.twist",
    "WasteFreeSMC": "inference",
    "argmax": "answers.voting",
    "barrier": "inference",
    "extract_answer": "answers.extraction",
    "load_problems": "tasks.load",
    "majority": "answers.voting",
    "reasoning": "programs.models",
    "revise": "programs.revision",
    "weighted_majority": "answers.voting",
}

__all__ = [
    "ABMCTS",
    "DORA",
    "DVTS",
    "MCTS",
    "PAD",
    "PIMH",
    "PMMH",
    "PRESETS",
    "REBASE",
    "SMC",
    "Adaptive",
    "Aggregate",
    "BeamSearch",
    "BestFirst",
    "BestOfN",
    "BetaMajority",
    "BlockMH",
    "Confidence",
    "Context",
    "DeepConf",
    "EntropicAnnealing",
    "Enumeration",
    "FunctionReward",
    "HiddenStateReward",
    "Importance",
    "JudgeReward",
    "LLMStep",
    "LanguageModel",
    "LookAhead",
    "MathEquivalence",
    "OpenAILM",
    "Pandora",
    "ParallelTempering",
    "ParticleGibbs",
    "ParticlePosterior",
    "PrefixValue",
    "PrefixWalk",
    "Preset",
    "Problem",
    "ProductReward",
    "ReasoningModel",
    "RemotePRM",
    "RewardModel",
    "RolloutValue",
    "SMCFailed",
    "SMCFilterAdapter",
    "SameAnswers",
    "SelfConsistency",
    "Share",
    "SpeculativeRejection",
    "StepProposal",
    "StepReward",
    "StopPattern",
    "StopReason",
    "SuffixMH",
    "SumReward",
    "TabularLM",
    "TabularReward",
    "TemperedSMC",
    "Thinking",
    "TransformersLM",
    "TransformersORM",
    "TransformersPRM",
    "Twist",
    "WasteFreeSMC",
    "argmax",
    "barrier",
    "extract_answer",
    "load_problems",
    "majority",
    "reasoning",
    "revise",
    "weighted_majority",
]


__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
