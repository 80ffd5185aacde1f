"""Language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .autoregressive import AutoregressiveLM
    from .base import LanguageModel, StepOptions, StepSample
    from .loading import DTYPES, parse_dtype
    from .openai_lm import OpenAILM
    from .prompts import PromptBuilder
    from .stopping import StopAutomaton
    from .tabular_lm import TabularLM
    from .transformers_lm import TransformersLM

# Imported on first use, as torch and transformers take seconds.
_HOME = {
    "AutoregressiveLM": "autoregressive",
    "DTYPES": "loading",
    "LanguageModel": "base",
    "OpenAILM": "openai_lm",
    "PromptBuilder": "prompts",
    "StepOptions": "base",
    "StepSample": "base",
    "StopAutomaton": "stopping",
    "TabularLM": "tabular_lm",
    "TransformersLM": "transformers_lm",
    "parse_dtype": "loading",
}

__all__ = [
    "DTYPES",
    "AutoregressiveLM",
    "LanguageModel",
    "OpenAILM",
    "PromptBuilder",
    "StepOptions",
    "StepSample",
    "StopAutomaton",
    "TabularLM",
    "TransformersLM",
    "parse_dtype",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
