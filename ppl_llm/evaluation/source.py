"""Which models an evaluation runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..models import ReasoningModel, reasoning


@dataclass(frozen=True)
class Models:
    """Names and options from which every process loads the same program.

    :param str lm: ``demo``, a directory, or a name on the Hugging Face Hub.
    :param str prm: ``demo``, ``demo-weak``, a directory, or a name on the Hub.
    :param str preset: see :func:`ppl_llm.reasoning`.
    :param str aggregation: replaces the preset's.
    :param int max_steps: rounds at most.
    :param int max_tokens: longest step.
    :param float temperature: of the language model.
    :param str device: where the models run; by default the CPU.
    """

    lm: str = "demo"
    prm: str = "demo"
    preset: str = "exact"
    aggregation: str | None = None
    max_steps: int = 40
    max_tokens: int = 256
    temperature: float = 1.0
    device: str | None = None

    def load(self) -> ReasoningModel:
        """The Pyro program.

        :raises OSError: if a model cannot be found or read.
        :raises ValueError: if it cannot be used, or an option is out of range.
        """
        from ..lm.transformers_lm import TransformersLM
        from ..reward.transformers_prm import TransformersPRM

        self.check()
        return reasoning(
            TransformersLM.from_pretrained(self.lm, device_map=self.device),
            TransformersPRM.from_pretrained(self.prm, device_map=self.device),
            self.preset,
            **self._options(),
        )

    def check(self) -> None:
        """
        :raises ValueError: for options out of range, before a model is loaded.
        """
        reasoning(None, None, self.preset, **self._options())  # type: ignore[arg-type]

    def _options(self) -> dict[str, Any]:
        names = ("aggregation", "max_steps", "max_tokens", "temperature")
        return {name: getattr(self, name) for name in names}
