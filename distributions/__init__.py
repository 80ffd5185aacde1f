"""Reasoning steps and their scores as Pyro distributions."""

from .llm_step import ConstrainedStep, LLMStep
from .potentials import prefix_log_odds, prefix_log_score
from .step_reward import RewardChoices, StepReward

__all__ = ["ConstrainedStep", "LLMStep", "RewardChoices", "StepReward", "prefix_log_odds", "prefix_log_score"]
