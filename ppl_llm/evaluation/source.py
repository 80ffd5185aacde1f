"""Which models an evaluation runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from ..inference.util.validation import unknown_name
from ..lm.base import LanguageModel
from ..lm.loading import parse_dtype
from ..programs.models import ReasoningModel, reasoning
from ..programs.presets import get_preset
from ..remote.address import is_address
from ..reward.base import RewardModel


@dataclass(frozen=True)
class Models:
    """Names and options from which every process loads the same program.

    :param str lm: ``demo``, a directory, a name on the Hugging Face Hub, or the address of a server that has one model.
    :param str prm: ``demo``, ``demo-weak``, a directory, a name on the Hub, or an address.
    :param str preset: see :func:`ppl_llm.reasoning`.
    :param str aggregation: replaces the preset's.
    :param int max_steps: steps at most.
    :param int max_tokens: longest step.
    :param float temperature: of the language model.
    :param str device: where the models run; by default the CPU.
    :param tuple calibration: temperature and bias of the reward model's log-odds, see
        :class:`~ppl_llm.reward.calibration.Calibration`; ``dataclasses.astuple(load_calibration(file, prm))`` gives
        those of a file (:mod:`ppl_llm.reward.calibration`).
    :param bool answer_scores: record the reward model's score of each whole solution written as one step (the model-based aggregation),
        for votes recomputed from the records; needs a local process reward model.
    :param str dtype: number format of local models' weights, e.g. ``bfloat16``; by default that of the checkpoint.
    :param str equivalence: when answers are the same: ``exact``, or ``math`` (extra ``math``).
    """

    lm: str = "demo"
    prm: str = "demo"
    preset: str = "exact"
    aggregation: str | None = None
    max_steps: int = 40
    max_tokens: int = 256
    temperature: float = 1.0
    device: str | None = None
    equivalence: str = "exact"
    calibration: tuple[float, float] | None = None
    answer_scores: bool = False
    dtype: str | None = None

    @property
    def vote_aggregation(self) -> str:
        """Score of a solution from those of its steps, for votes: the preset's; for the likelihood of all steps that is the product."""
        if self.aggregation is not None:
            return self.aggregation
        preset = get_preset(self.preset)
        return "prod" if preset.potential == "likelihood" else preset.aggregation

    def equivalent(self) -> Callable[[Hashable, Hashable], bool]:
        """
        :raises ImportError: for ``math`` without its extra.
        :raises ValueError: for another name.
        """
        if self.equivalence == "exact":
            return operator.eq
        if self.equivalence != "math":
            raise unknown_name("equivalence", self.equivalence, ("exact", "math"))
        from ..answers.equivalence import MathEquivalence

        return MathEquivalence()

    def vote_options(self) -> dict[str, Any]:
        """What :func:`~ppl_llm.evaluation.work.execute` needs to turn samples into answers."""
        return {"aggregation": self.vote_aggregation, "equivalent": self.equivalent(), "answer_scores": self.answer_scores}

    def load(self) -> ReasoningModel:
        """The Pyro program.

        :raises OSError: if a model cannot be found or read.
        :raises ValueError: if it cannot be used, or an option is out of range.
        """
        from ..lm.transformers_lm import TransformersLM
        from ..reward.calibration import CalibratedReward, Calibration
        from ..reward.prm.transformers_prm import TransformersPRM

        self.check()
        calibration = None if self.calibration is None else Calibration(*self.calibration)
        lm: LanguageModel
        prm: RewardModel
        if is_address(self.lm):
            from ..lm.openai_lm import OpenAILM

            lm = OpenAILM(self.lm)
        else:
            lm = TransformersLM.from_pretrained(self.lm, device_map=self.device, dtype=parse_dtype(self.dtype))
        if is_address(self.prm):
            from ..reward.prm.remote_prm import RemotePRM

            prm = RemotePRM(self.prm) if calibration is None else CalibratedReward(RemotePRM(self.prm), calibration)
        else:
            prm = TransformersPRM.from_pretrained(self.prm, device_map=self.device, dtype=parse_dtype(self.dtype), calibration=calibration)
        return reasoning(lm, prm, self.preset, **self._options())

    def check(self) -> None:
        """
        :raises ValueError: for options out of range, before a model is loaded.
        """
        self.equivalent()
        parse_dtype(self.dtype)
        if self.answer_scores and is_address(self.prm):
            raise ValueError("answer_scores needs a reward model in this process; a served one gives scores of steps")
        reasoning(None, None, self.preset, **self._options())  # type: ignore[arg-type]

    def _options(self) -> dict[str, Any]:
        names = ("aggregation", "max_steps", "max_tokens", "temperature")
        return {name: getattr(self, name) for name in names}
