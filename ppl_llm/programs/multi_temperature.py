"""A reasoning model whose temperature is drawn with the solution."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ..context import Context
from ..inference.util.checked import checked
from .models import ReasoningModel
from .plain import check_plain

SITE = "temperature"


@dataclass(frozen=True, eq=False, repr=False)
class TemperedContext(Context):
    """A context with the temperature of each sequence, which goes where the sequence goes.

    :ivar Tensor temperature: ``[*batch_shape]``.
    """

    temperature: Tensor = field(default_factory=lambda: torch.ones(()))

    def _map(self, fn: Callable[[Tensor], Tensor]) -> TemperedContext:
        return replace(super()._map(fn), temperature=fn(self.temperature))  # type: ignore[return-value, call-arg]

    def concatenate(self, others: list[Context]) -> Context:
        temperatures = [context.temperature for context in (self, *others) if isinstance(context, TemperedContext)]
        return replace(super().concatenate(others), temperature=torch.cat(temperatures))  # type: ignore[call-arg]

    def compared(self) -> dict[str, Tensor]:
        return {**super().compared(), "temperature": self.temperature}


class MultiTemperatureModel(ReasoningModel):
    """What :func:`multi_temperature` makes."""

    temperatures: tuple[float, ...] = ()

    def _solve(self, ctx: Context) -> Context:
        temperature = pyro.sample(SITE, EvenChoice(torch.tensor(self.temperatures, dtype=torch.float64, device=ctx.tokens.device)))
        spread = ctx.expand(torch.broadcast_shapes(ctx.batch_shape, temperature.shape))
        return super()._solve(TemperedContext(**vars(spread), temperature=temperature.expand(spread.batch_shape)))

    def written(self, ctx: Context, name: str) -> Context:
        own = copy.copy(self)
        own.options = replace(self.options, temperature=ctx.temperature)  # type: ignore[attr-defined]
        return ReasoningModel.written(own, ctx, name)


@checked
def multi_temperature(model: ReasoningModel, temperatures: Sequence[float] = (0.6, 1.0, 1.4)) -> MultiTemperatureModel:
    """The model with a latent site ``temperature``, uniform over some numbers and drawn once for each solution: its steps are drawn at it,
    and its log-probabilities are those at it.

    Particles share the temperatures evenly. Any algorithm takes it: :class:`~ppl_llm.inference.TwoStageVote` votes within and across
    temperatures; under :class:`~ppl_llm.SMC` it is a mixture, and ``posterior.marginal("temperature")`` tells which temperature the reward
    prefers::

        TwoStageVote(multi_temperature(model, [0.6, 1.0, 1.4]), 24, site="temperature").run(problem).answers()

    :param ReasoningModel model: from :func:`~ppl_llm.reasoning`; its own temperature has no effect.
    :param temperatures: each positive.
    :raises ValueError: without temperatures, for one that is not positive or is given twice, or for a model with a
        power, or that is not one of :func:`~ppl_llm.reasoning` itself.

    References

    *On the Role of Temperature Sampling in Test-Time Scaling*, Yuheng Wu, Azalia Mirhoseini, Thierry Tambe (2025).
    """
    values = tuple(float(value) for value in temperatures)
    if not values or any(not 0 < value < math.inf for value in values):
        raise ValueError(f"temperatures must be positive numbers, at least one, got {list(values)}")
    if len(set(values)) < len(values):
        raise ValueError(f"temperatures must differ from one another, got {list(values)}")
    check_plain(model, "multi_temperature")
    if model.power != 1:
        raise ValueError(f"temperatures are of a model without a power, this one has {model.power}; a power target is at one temperature")
    made = MultiTemperatureModel.__new__(MultiTemperatureModel)
    vars(made).update(vars(model), temperatures=values)
    return made


class EvenChoice(TorchDistribution):
    """Uniform over K numbers; particles drawn together, along the leftmost batch dimension, take turns from a random one on.

    Each particle's is uniform, and of N each number has N / K up to rounding: a stratified draw.

    :param Tensor values: ``[K]``.
    :param bool even: ``False`` for particles that are drawn independently of one another.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real
    has_enumerate_support = True

    def __init__(self, values: Tensor, batch_shape: torch.Size = torch.Size(), even: bool = True) -> None:
        self.values, self.even = values, even
        super().__init__(batch_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size | list[int], _instance: Any = None) -> EvenChoice:
        return EvenChoice(self.values, torch.Size(batch_shape), self.even)

    def independently(self) -> EvenChoice:
        """The same distribution of each particle, for algorithms that keep some of the particles and draw the others: given those that are
        kept, taking turns would not be uniform."""
        return EvenChoice(self.values, self.batch_shape, even=False)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = torch.Size()) -> Tensor:
        shape, number = torch.Size(sample_shape) + self.batch_shape, len(self.values)
        if not self.even:
            return self.values[torch.randint(number, shape, device=self.values.device)]
        first = torch.randint(number, shape[1:], device=self.values.device)
        turn = torch.arange(shape[0] if shape else 1, device=self.values.device).view(-1, *(1,) * len(shape[1:]))
        return self.values[(turn + first) % number].reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        found = (value[..., None] == self.values).any(-1)
        log_p = torch.full(found.shape, -math.log(len(self.values)), dtype=torch.float64, device=found.device)
        log_p = log_p.masked_fill(~found, -math.inf)
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self.values.view(-1, *(1,) * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values
