"""Language models."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .autoregressive import AutoregressiveLM
    from .base import LanguageModel, StepOptions, StepSample
    from .loading import DTYPES, parse_dtype
    from .openai_lm import OpenAILM
    from .prompts import PlainText, PromptBuilder
    from .stopping import StopAutomaton
    from .tabular_lm import TabularLM
    from .transformers_lm import TransformersLM

_MODULES = {
    "AutoregressiveLM": "autoregressive",
    "DTYPES": "loading",
    "LanguageModel": "base",
    "OpenAILM": "openai_lm",
    "PlainText": "prompts",
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
    "PlainText",
    "PromptBuilder",
    "StepOptions",
    "StepSample",
    "StopAutomaton",
    "TabularLM",
    "TransformersLM",
    "parse_dtype",
]


__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
