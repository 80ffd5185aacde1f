"""The score of a step as an observed factor."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..context import Context, StopReason
from ..inference.names import unknown_name
from ..reward.protocol import RewardModel

POTENTIALS = ("likelihood", "odds", "ratio")
AGGREGATIONS = ("last", "prod", "min", "mean")
FINISHED = ("neutral", "repeat")


class StepReward(TorchDistribution):
    """The event "this step is right", to be observed as 1. Its log-factor is computed from log-odds in float32.

    With r_t the process reward model's probability that step t is right and s_t the aggregated score of steps 1..t:

    ==============  ========================  ==============================================================
    potential       log-factor                target after T steps
    ==============  ========================  ==============================================================
    ``likelihood``  log r_t                   p(x) prod_t r_t, an ordinary Bernoulli observation
    ``ratio``       log s_t - log s_{t-1}     p(x) s_T (s_0 = 1)
    ``odds``        logit(s_t) / temperature  p(x) prod_t odds(s_t)^(1/temperature), the released code's weight
    ==============  ========================  ==============================================================

    On lanes that had finished before this step the log-factor is exactly 0.

    :param RewardModel prm: the scorer; asked on first use, not by the constructor.
    :param Context context: after the step.
    :param str potential: see the table.
    :param float temperature: T_s of ``odds``.
    :param str aggregation: s_t from r_1..r_t, for ``ratio`` and ``odds``: ``last``, ``prod``, ``min`` or ``mean``.
    :param str finished: ``neutral``, or ``repeat``: finished lanes get their last factor again at every step, as in the released code.
    :raises ValueError: for unknown names or a temperature that is not positive.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.boolean
    has_rsample = False

    def __init__(
        self,
        prm: RewardModel,
        context: Context,
        potential: str = "likelihood",
        *,
        temperature: float = 1.0,
        aggregation: str = "last",
        finished: str = "neutral",
    ) -> None:
        for name, value, known in (
            ("potential", potential, POTENTIALS),
            ("aggregation", aggregation, AGGREGATIONS),
            ("finished", finished, FINISHED),
        ):
            if value not in known:
                raise unknown_name(name, value, known)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        if potential == "likelihood" and (aggregation != "last" or temperature != 1.0):
            raise ValueError("potential='likelihood' is the score of the new step alone; aggregation and temperature go with odds or ratio")
        self._init(prm, context, (potential, temperature, aggregation, finished), context.batch_shape)

    def _init(self, prm: RewardModel, context: Context, choices: tuple[str, float, str, str], batch_shape: torch.Size) -> None:
        self.prm, self.context, self._choices = prm, context, choices
        self.potential, self.temperature, self.aggregation, self.finished = choices
        super().__init__(batch_shape, torch.Size(), validate_args=False)

    def expand(self, batch_shape: torch.Size | list[int], _instance: Any = None) -> StepReward:
        new = StepReward.__new__(StepReward)
        new._init(self.prm, self.context, self._choices, torch.Size(batch_shape))
        return new

    @property
    def _concerned(self) -> Tensor:
        return torch.ones_like(self.context.done) if self.finished == "repeat" else self.context.advanced

    def log_prob(self, value: Tensor) -> Tensor:
        z = self.prm.step_log_odds(self.context)
        if self.potential == "likelihood":
            log_factor = torch.where(value.to(z.device) > 0, logsigmoid(z[..., -1]), logsigmoid(-z[..., -1]))
        else:
            if bool((value != 1).any()):
                raise ValueError(f"potential {self.potential!r} is a factor of the event 1; it has no value for the event 0")
            log_factor = self._log_potential(z)
        log_factor = torch.where(self._concerned, log_factor, 0.0)
        return log_factor.expand(torch.broadcast_shapes(log_factor.shape, self.batch_shape, value.shape))

    def _log_potential(self, z: Tensor) -> Tensor:
        real = self.context.reasons != StopReason.FINISHED
        if self.potential == "odds":
            return prefix_log_odds(z, real, self.aggregation) / self.temperature
        before = prefix_log_score(z[..., :-1], real[..., :-1], self.aggregation) if z.shape[-1] > 1 else 0.0
        return prefix_log_score(z, real, self.aggregation) - before

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = torch.Size()) -> Tensor:
        if self.potential != "likelihood":
            raise TypeError(f"potential {self.potential!r} is a factor, not a distribution; pass obs=torch.tensor(1.0)")
        r = torch.where(self._concerned, self.prm.step_log_odds(self.context)[..., -1].sigmoid(), 1.0)
        return torch.bernoulli(r.expand(torch.Size(sample_shape) + self.batch_shape))


def prefix_log_score(z: Tensor, real: Tensor, aggregation: str) -> Tensor:
    """Log of the aggregated score s_T: ``[*lanes]``.

    :param Tensor z: ``[*lanes, T]`` log-odds of the steps.
    :param Tensor real: ``[*lanes, T]`` steps that the lane really took.
    """
    log_r = logsigmoid(z)
    if aggregation == "prod":
        return torch.where(real, log_r, 0.0).sum(-1)
    if aggregation == "min":
        return torch.where(real, log_r, 0.0).amin(-1)
    if aggregation == "mean":
        return torch.where(real, log_r, -torch.inf).logsumexp(-1) - real.sum(-1).log()
    return log_r[..., -1]


def prefix_log_odds(z: Tensor, real: Tensor, aggregation: str) -> Tensor:
    """Log-odds of the aggregated score: ``[*lanes]``; exact where it is a single step's."""
    if aggregation == "last":
        return z[..., -1]
    if aggregation == "min":
        return torch.where(real, z, torch.inf).amin(-1)
    log_s = prefix_log_score(z, real, aggregation).to(torch.float64)
    return (log_s - torch.log(-torch.expm1(log_s.clamp(max=-1e-300)))).to(z.dtype)
