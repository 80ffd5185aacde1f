"""Reasoning steps and their scores as Pyro distributions."""

from .llm_step import LLMStep
from .step_reward import StepReward, prefix_log_odds, prefix_log_score

__all__ = ["LLMStep", "StepReward", "prefix_log_odds", "prefix_log_score"]
