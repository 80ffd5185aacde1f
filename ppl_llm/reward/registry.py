"""The table of reward models."""

from __future__ import annotations

from .base import RewardModel
from .calibration import CalibratedReward
from .combined_reward import ProductReward, SumReward
from .confidence import Confidence
from .function_reward import FunctionReward
from .hidden_state_reward import HiddenStateReward
from .judge_reward import JudgeReward
from .prefix_value import PrefixValue
from .prm.remote_prm import RemotePRM
from .prm.transformers_prm import TransformersPRM
from .rollout_value import RolloutValue
from .tabular_reward import TabularReward
from .transformers_orm import TransformersORM
from .twist import Twist

REWARDS: dict[str, type[RewardModel]] = {
    "calibrated": CalibratedReward,
    "confidence": Confidence,
    "function": FunctionReward,
    "hidden-state": HiddenStateReward,
    "judge": JudgeReward,
    "prefix-value": PrefixValue,
    "product": ProductReward,
    "remote-prm": RemotePRM,
    "rollout-value": RolloutValue,
    "sum": SumReward,
    "tabular": TabularReward,
    "transformers-orm": TransformersORM,
    "transformers-prm": TransformersPRM,
    "twist": Twist,
}
"""Every reward model that the package exports, by name. The families of process reward models have their own table,
:data:`~ppl_llm.reward.prm.families.FAMILIES`."""
