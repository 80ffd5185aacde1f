"""The tables of rewards and of families of process reward models: nothing that is exported is missing in them."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import ppl_llm.reward
import ppl_llm.reward.prm.formats
from ppl_llm.reward import FAMILIES, REWARDS, RewardModel


def concrete(package: ModuleType, method: str) -> set[type]:
    """Exported classes that have a method and can be instantiated."""
    found: list[Any] = [getattr(package, name) for name in package.__all__]
    classes = (each for each in found if inspect.isclass(each) and hasattr(each, method))
    return {each for each in classes if not inspect.isabstract(each) and not getattr(each, "_is_protocol", False)}


def test_every_exported_reward_has_a_row() -> None:
    assert concrete(ppl_llm.reward, "step_log_odds") == set(REWARDS.values())
    assert all(issubclass(reward, RewardModel) for reward in REWARDS.values())


def test_every_exported_format_has_a_family() -> None:
    assert concrete(ppl_llm.reward.prm.formats, "step") == {family.format_class for family in FAMILIES.values()}
    assert all(name == family.name for name, family in FAMILIES.items())


def test_a_reward_without_a_row_is_found() -> None:
    package = ModuleType("package")
    package.__all__ = ["TabularReward", "AnswerReward", "RewardModel", "REWARDS"]  # type: ignore[attr-defined]
    for name in package.__all__:
        setattr(package, name, getattr(ppl_llm.reward, name))
    assert concrete(package, "step_log_odds") == {REWARDS["tabular"]}
    assert concrete(package, "step_log_odds") != set(REWARDS.values())
