"""The score of a step as an observed factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..context import Context
from ..inference.util.checked import check_fields, checked
from ..inference.util.validation import unknown_name
from ..reward.base import RewardModel, is_estimated, scored_steps, step_scores
from .potentials import STEERING, prefix_log_odds, running_log_odds, running_log_score, steering_log_factor, window_of
from .rounding import TOLERATED, rounding_unit

POTENTIALS = ("likelihood", "odds", *STEERING)
FINISHED = ("neutral", "repeat")
SCORES = ("log_prob", "log_odds")


@dataclass(frozen=True)
class RewardChoices:
    """How scores become factors; see :class:`StepReward`.

    :raises ValueError: for unknown names, a temperature that is not positive, or choices that do not go together.
    """

    potential: str = "likelihood"
    temperature: float = 1.0
    aggregation: str = "last"
    finished: str = "neutral"
    score: str = "log_prob"

    def __post_init__(self) -> None:
        check_fields(self)
        window_of(self.aggregation)  # what is none fails here
        for name, known in (("potential", POTENTIALS), ("finished", FINISHED), ("score", SCORES)):
            value = getattr(self, name)
            if value not in known:
                raise unknown_name(name, value, known)
        potential = self.potential
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature!r}")
        if potential == "likelihood" and (self.aggregation != "last" or self.temperature != 1.0):
            raise ValueError(
                "potential='likelihood' is the score of the new step alone; aggregation and temperature go with the other potentials: "
                f"{', '.join(POTENTIALS[1:])}"
            )
        if potential not in STEERING and self.score != "log_prob":
            raise ValueError(f"score={self.score!r} goes with the potentials {', '.join(STEERING)}; potential {potential!r} has its own")
        if potential in STEERING and self.finished == "repeat":
            raise ValueError(f"finished='repeat' undoes the telescoping product of potential {potential!r}; use it with odds or likelihood")

    def check(self, prm: RewardModel) -> None:
        """
        :raises ValueError: for scores that are estimates, if the target would not be a function of their means; for a reward whose factors
            must multiply to its last score, if they do not.
        """
        if getattr(prm, "telescopes", False) and not (self.potential in STEERING and self.aggregation == "last"):
            raise ValueError(
                f"potential={self.potential!r} with aggregation={self.aggregation!r} makes factors of the scores of {type(prm).__name__} "
                "that do not multiply to the verifier's: take potential='difference' with aggregation='last', as the preset 'twisted' does"
            )
        if not is_estimated(prm) or (self.potential == "likelihood" and self.finished == "neutral"):
            return
        one_each = not getattr(prm, "partial", True)  # a single score in a trajectory
        linear = self.aggregation in ("last", "prod", "mean") or (one_each and self.aggregation == "min")
        linear = linear or window_of(self.aggregation) is not None
        if self.potential in STEERING and self.score == "log_prob" and self.temperature == 1.0 and linear:
            return
        raise ValueError(
            f"the scores of {type(prm).__name__} are estimates, drawn at random, and potential={self.potential!r} with "
            f"temperature={self.temperature!r}, aggregation={self.aggregation!r}, score={self.score!r} and finished={self.finished!r} "
            "makes weights of them whose mean is no function of theirs: take potential='likelihood' (preset 'exact'), or 'difference' of "
            "log_prob without a temperature, or a judge without thoughts"
        )


class StepReward(TorchDistribution):
    """The event "this step is right", to be observed as 1. Its log-factor is computed from log-odds in float32.

    With p_t the process reward model's probability that step t is right, s_t the aggregated score of steps 1..t, and r_t = log s_t (or its
    log-odds) with r_0 = 0:

    ==============  ==========================  ============================================================
    potential       log-factor                  target after T steps
    ==============  ==========================  ============================================================
    ``likelihood``  log p_t                     p(x) prod_t p_t, an ordinary Bernoulli observation
    ``difference``  (r_t - r_{t-1}) / T_s       p(x) exp(r_T / T_s): p(x) s_T at temperature T_s = 1
    ``max``         max over u <= t of r_u/T_s  the same, see below
    ``sum``         sum over u <= t of r_u/T_s  the same, see below
    ``odds``        logit(s_t) / T_s            p(x) prod_t odds(s_t)^(1/T_s), the released code's weight
    ==============  ==========================  ============================================================

    ``max`` and ``sum`` are potentials of Feynman-Kac steering [1]: they favour sequences that were ever good, or always. On the step in
    which a sequence finishes, and in the last step, their factor makes up for all earlier ones, so that the product over steps is
    exp(r_T / T_s). On sequences that had finished before this step the log-factor is exactly 0.

    :param RewardModel prm: the scorer; asked on first use, not by the constructor.
    :param Context context: after the step.
    :param str potential: see the table.
    :param float temperature: T_s; not for ``likelihood``.
    :param str aggregation: s_t from p_1..p_t, not for ``likelihood``: ``last``, ``prod``, ``min``, ``max``, ``mean``, or ``window:W``, the
        mean of the last W steps: ``window:1`` is ``last``, and as many steps as there are give ``mean``.
    :param str finished: ``neutral``, or ``repeat``: finished sequences get their last factor again at every step, as in the released code.
    :param str score: r_t of the steering potentials: ``log_prob``, log s_t, or ``log_odds``, logit(s_t).
    :param bool last_step: whether no step comes after this one, for ``max`` and ``sum``, and for rewards of whole answers.
    :raises ValueError: for unknown names, a temperature that is not positive, or arguments that do not go together; for a judge that
        thinks, whose scores are estimates, also where the target would not be a function of their means.

    References

    [1] *A General Framework for Inference-time Scaling and Steering of Diffusion Models*, Raghav Singhal et al. (2025).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.boolean
    has_rsample = False

    score: Tensor | None = None
    """``[*batch_shape]``: probability that the last step is right, nan for sequences that took none; set by :meth:`log_prob`."""

    @checked
    def __init__(
        self,
        prm: RewardModel,
        context: Context,
        potential: str = "likelihood",
        *,
        temperature: float = 1.0,
        aggregation: str = "last",
        finished: str = "neutral",
        score: str = "log_prob",
        last_step: bool = False,
    ) -> None:
        choices = RewardChoices(potential, temperature, aggregation, finished, score)
        choices.check(prm)
        self._init(prm, context, choices, last_step, context.batch_shape)

    def _init(self, prm: RewardModel, context: Context, choices: RewardChoices, last_step: bool, batch_shape: torch.Size) -> None:
        self.prm, self.context, self.choices, self.last_step = prm, context, choices, last_step
        super().__init__(batch_shape, torch.Size(), validate_args=False)

    @property
    def potential(self) -> str:
        return self.choices.potential

    def expand(self, batch_shape: torch.Size | list[int], _instance: Any = None) -> StepReward:
        new = type(self).__new__(type(self))
        new._init(self.prm, self.context, self.choices, self.last_step, torch.Size(batch_shape))
        return new

    @property
    def _concerned(self) -> Tensor:
        if self.choices.finished == "repeat":
            return self._scored.any(-1)  # by the time it has its first score
        return self._scored[..., -1]

    @property
    def _scored(self) -> Tensor:
        return scored_steps(self.prm, self.context)

    def log_prob(self, value: Tensor) -> Tensor:
        z = step_scores(self.prm, self.context, self.last_step)
        self.score = torch.where(self._scored[..., -1].to(z.device), z[..., -1].sigmoid(), torch.nan)
        if self.potential == "likelihood":
            log_factor = torch.where(value.to(z.device) > 0, logsigmoid(z[..., -1]), logsigmoid(-z[..., -1]))
        else:
            if bool((value != 1).any()):
                raise ValueError(f"potential {self.potential!r} is a factor of the event 1; it has no value for the event 0")
            log_factor = self._log_potential(z)
        log_factor = torch.where(self._concerned, log_factor, 0.0)
        return log_factor.expand(torch.broadcast_shapes(log_factor.shape, self.batch_shape, value.shape))

    def _log_potential(self, z: Tensor) -> Tensor:
        real = self._scored
        if self.potential == "odds":
            return prefix_log_odds(z, real, self.choices.aggregation) / self.choices.temperature
        running = running_log_odds if self.choices.score == "log_odds" else running_log_score
        # In float64, so that the product telescopes.
        scaled = running(z.to(torch.float64), real, self.choices.aggregation) / self.choices.temperature
        return steering_log_factor(self.potential, scaled, self.context.done | self.last_step)

    def rounding(self, value: Tensor) -> float:
        """By how many nats two evaluations of :meth:`log_prob` may differ, given the number format of the reward model, or of the
        language model whose figures it scores."""
        terms = self.context.num_steps if self.choices.potential == "sum" else 2
        return TOLERATED * rounding_unit(self.prm, self.context.lm) * terms / self.choices.temperature

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = torch.Size()) -> Tensor:
        if self.potential != "likelihood":
            raise TypeError(f"potential {self.potential!r} is a factor, not a distribution; pass obs=torch.tensor(1.0)")
        r = torch.where(self._concerned, self.prm.step_log_odds(self.context)[..., -1].sigmoid(), 1.0)
        return torch.bernoulli(r.expand(torch.Size(sample_shape) + self.batch_shape))
