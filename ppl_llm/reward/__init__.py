"""Reward models: what scores the steps and the answers of a reasoning program."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .answer_reward import AnswerReward
    from .base import RewardModel
    from .calibration import CalibratedReward, Calibration, SavedCalibration, find_calibration, identity_of, load_calibration
    from .combined_reward import CombinedReward, ProductReward, SumReward
    from .confidence import Confidence
    from .function_reward import FunctionReward
    from .hidden_state_reward import HiddenStateReward
    from .judge_reward import JudgeReward
    from .prefix_value import PrefixValue
    from .prm.families import FAMILIES, PRMFamily
    from .prm.formats.base import PRMFormat
    from .prm.remote_prm import RemotePRM
    from .prm.transformers_prm import TransformersPRM
    from .registry import REWARDS
    from .rollout_value import RolloutValue
    from .state_head import StateHead
    from .tabular_reward import TabularReward
    from .transformers_orm import TransformersORM
    from .twist import Twist

_MODULES = {
    "FAMILIES": "prm.families",
    "REWARDS": "registry",
    "AnswerReward": "answer_reward",
    "CalibratedReward": "calibration",
    "Calibration": "calibration",
    "CombinedReward": "combined_reward",
    "Confidence": "confidence",
    "FunctionReward": "function_reward",
    "HiddenStateReward": "hidden_state_reward",
    "JudgeReward": "judge_reward",
    "PRMFamily": "prm.families",
    "PRMFormat": "prm.formats.base",
    "PrefixValue": "prefix_value",
    "ProductReward": "combined_reward",
    "RemotePRM": "prm.remote_prm",
    "RewardModel": "base",
    "RolloutValue": "rollout_value",
    "SavedCalibration": "calibration",
    "StateHead": "state_head",
    "SumReward": "combined_reward",
    "TabularReward": "tabular_reward",
    "TransformersORM": "transformers_orm",
    "TransformersPRM": "prm.transformers_prm",
    "Twist": "twist",
    "find_calibration": "calibration",
    "identity_of": "calibration",
    "load_calibration": "calibration",
}

__all__ = [
    "FAMILIES",
    "REWARDS",
    "AnswerReward",
    "CalibratedReward",
    "Calibration",
    "CombinedReward",
    "Confidence",
    "FunctionReward",
    "HiddenStateReward",
    "JudgeReward",
    "PRMFamily",
    "PRMFormat",
    "PrefixValue",
    "ProductReward",
    "RemotePRM",
    "RewardModel",
    "RolloutValue",
    "SavedCalibration",
    "StateHead",
    "SumReward",
    "TabularReward",
    "TransformersORM",
    "TransformersPRM",
    "Twist",
    "find_calibration",
    "identity_of",
    "load_calibration",
]

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
