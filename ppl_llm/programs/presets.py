"""Targets that people use, each with the resampling and the vote that go with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..distributions.potentials import STEERING
from ..inference import EntropicAnnealing
from ..inference.util.validation import unknown_name
from ..reward.base import RewardModel, is_of_prefixes


@dataclass(frozen=True)
class Preset:
    """Potential, resampler and trigger, treatment of finished particles, and choice of the answer.

    :ivar str potential: see :class:`~ppl_llm.distributions.StepReward`.
    :ivar str aggregation: score of a prefix from those of its steps.
    :ivar str finished: ``neutral`` or ``repeat``.
    :ivar bool last_factor: whether the factor of the step in which the last particle finishes counts.
    :ivar str finish: regular expression; a particle whose step matches is finished.
    :ivar str vote: ``weighted_majority`` of the posterior, or ``argmax`` of the last prefix score.
    :ivar EntropicAnnealing selection: annealed resampling; :func:`~ppl_llm.reasoning` sets its ``num_steps`` to the model's ``max_steps``.
    :ivar dict smc: keywords for :class:`~ppl_llm.inference.SMC`.
    """

    name: str
    target: str
    potential: str
    aggregation: str = "last"
    finished: str = "neutral"
    last_factor: bool = True
    finish: str | None = None
    vote: str = "weighted_majority"
    resampler: str = "systematic"
    ess_threshold: float = 0.5
    resample_finished: bool = False
    selection: EntropicAnnealing | None = None

    def aggregation_for(self, reward: RewardModel | None) -> str:
        """The preset's; ``last`` for a reward that gives values of prefixes, such as a :class:`~ppl_llm.Twist`, under ``difference``,
        ``max`` and ``sum``: their factors multiply to the last value then.
        """
        return "last" if self.potential in STEERING and is_of_prefixes(reward) else self.aggregation

    @property
    def smc(self) -> dict[str, Any]:
        return {
            "resampler": self.resampler,
            "ess_threshold": self.ess_threshold,
            "resample_finished": self.resample_finished,
            "selection": self.selection,
        }


_BOXED = r"\\boxed"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("exact", "p(x) prod_t r_t", "likelihood"),
        Preset(
            "twisted",
            "p(x) s_T with s the least r_t, or the value of the last prefix: no penalty for length",
            "difference",
            aggregation="min",
        ),
        Preset(
            "as_paper",
            "the released code of the paper: odds of the prefix score at every step, finished particles get theirs again, always resampled",
            "odds",
            aggregation="prod",
            finished="repeat",
            last_factor=False,
            finish=_BOXED,
            vote="argmax",
            resampler="multinomial",
            ess_threshold=1.0,
        ),
        Preset(
            "its_hub",
            "the authors' library: as_paper, and resampled once more at the end",
            "odds",
            aggregation="prod",
            finished="repeat",
            finish=_BOXED,
            vote="argmax",
            resampler="multinomial",
            ess_threshold=1.0,
            resample_finished=True,
        ),
        Preset(
            "entropic",
            "entropic particle filtering as published: its_hub with flattened weights while few particles dominate early",
            "odds",
            aggregation="prod",
            finished="repeat",
            finish=_BOXED,
            vote="argmax",
            resampler="systematic",
            ess_threshold=1.0,
            resample_finished=True,
            selection=EntropicAnnealing("ess", num_steps=40, keeps_target=False),
        ),
    )
}


def get_preset(preset: str | Preset) -> Preset:
    """A preset by name, or the preset itself.

    :raises ValueError: for an unknown name, with the nearest known one.
    """
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    return PRESETS[preset]
