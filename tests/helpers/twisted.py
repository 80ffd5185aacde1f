"""A reasoning program on a table whose prefixes have known values V*(prefix) = P(right | prefix)."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppl_llm import PAD, Context, FunctionReward, StepReward, TabularLM
from ppl_llm.inference import barrier
from ppl_llm.lm import StepOptions
from ppl_llm.reward import RewardModel
from tests.helpers.exact import AbsorbingCategorical

SYMBOLS, MAX_STEPS = "$ab", 3
_TABLE = torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
LM = TabularLM(_TABLE, list(SYMBOLS), eos="$")


def tau(text: str) -> float:
    """What the verifier gives to a finished answer, a number that float32 has the log-odds of."""
    odds = {"": -0.75, "a": math.inf, "b": -math.inf, "ab": 2.0, "ba": math.inf}.get(text, -1.5)
    return 1 / (1 + math.exp(-odds)) if odds > -math.inf else 0.0


VERIFIER = FunctionReward(lambda problem, text: tau(text))
OPTIONS = StepOptions(stop=(), max_tokens=1)


@cache
def value(text: str) -> float:
    """V* of a prefix that is not finished, in plain Python; what is unfinished after all steps is wrong."""
    if len(text) == MAX_STEPS:
        return 0.0
    probs = _TABLE.softmax(-1)[SYMBOLS.index(("a" + text)[-1])].tolist()
    return probs[0] * tau(text) + sum(p * value(text + s) for p, s in zip(probs[1:], SYMBOLS[1:], strict=True))


class Prefixes:
    """A reward by the text of each prefix, for values that are given.

    :param dict log_odds: by text.
    """

    def __init__(self, log_odds: dict[str, float]) -> None:
        self.log_odds = log_odds

    def step_log_odds(self, context: Context) -> Tensor:
        tokens = context.tokens.reshape(-1, context.tokens.shape[-1])
        codes = torch.where(tokens > 0, tokens, 0)[:, 1:]
        found = torch.zeros(len(codes), context.num_steps)
        for row, code in enumerate(codes.tolist()):
            text = "".join(SYMBOLS[i] for i in code if i > 0)
            found[row] = torch.tensor([self.log_odds.get(text[: t + 1], 0.0) for t in range(context.num_steps)])
        return found.view(*context.batch_shape, -1)


def prefixes() -> list[str]:
    """Those after which a step may follow."""
    return ["".join(s) for n in range(1, MAX_STEPS) for s in itertools.product("ab", repeat=n)]


class Twisted:
    """The program, in the shape of :class:`~tests.helpers.exact.Chain`: ``x_t`` is the token of a step."""

    num_symbols, last_barrier = 3, True

    def __init__(self, reward: RewardModel, length: int = MAX_STEPS) -> None:
        self.reward, self.length = reward, length

    def __call__(self, columns: int) -> Context:
        with pyro.plate("columns", columns, dim=-1):
            return self.walk(torch.Size([columns]))

    def walk(self, batch: torch.Size = torch.Size()) -> Context:
        context = LM.start("a").expand(batch)
        for t in range(self.length):
            last = context.tokens.gather(-1, context.lengths[..., None] - 1)[..., 0]
            x = pyro.sample(f"x_{t}", Token(LM.logits.softmax(-1)[last], ~context.done, context))
            context = context.extend(x[..., None], stop=())
            factor = StepReward(self.reward, context, "difference", last_step=t + 1 == self.length)
            pyro.sample(f"accept_{t}", factor, obs=torch.tensor(1.0))
            context = barrier(context)
        return context

    def paths(self) -> dict[tuple[int, ...], float]:
        """p(x) tau(x) of every padded trajectory, in plain Python."""
        probs = LM.logits.softmax(-1).tolist()
        table: dict[tuple[int, ...], float] = {}

        def grow(path: tuple[int, ...], mass: float) -> None:
            text = "".join(SYMBOLS[i] for i in path)
            for v in range(3):
                p = mass * probs[path[-1] if path else 1][v]
                if v == 0:
                    table[(*path, 0, *[PAD] * (self.length - len(path) - 1))] = p * tau(text)
                elif len(path) + 1 < self.length:
                    grow((*path, v), p)
                else:
                    table[(*path, v)] = 0.0

        grow((), 1.0)
        return table


class Token(AbsorbingCategorical):
    """The next token, with the context that it follows."""

    context: Context

    def __init__(self, probs: Tensor, active: Tensor, context: Context) -> None:
        super().__init__(probs, active)
        self.context = context

    @classmethod
    def _of(cls, probs: Tensor, active: Tensor, like: Any) -> Any:
        return cls(probs, active, like.context)


class Optimal(TorchDistribution):
    """q* in proportion to p V*: the proposal under which estimates do not vary."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.integer

    def __init__(self, token: Token) -> None:
        context = token.context
        flat = context.flat(torch.arange(context.lengths.numel()))
        after = [[tau(text), *(value(text + s) for s in SYMBOLS[1:])] for text in flat.text]
        mass = token.probs * torch.tensor(after, dtype=torch.float64).view(*context.batch_shape, 3)
        mass = mass.expand(*token.active.shape, 3)
        self._inner = AbsorbingCategorical(mass / mass.sum(-1, keepdim=True).clamp(min=1e-300), token.active)
        super().__init__(self._inner.batch_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Optimal:
        assert torch.Size(batch_shape) == self.batch_shape
        return self

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self._inner.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._inner.log_prob(value)
