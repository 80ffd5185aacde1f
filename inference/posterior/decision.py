"""The answer of greatest expected utility, or none (minimum Bayes risk)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

from .discrete_marginal import DiscreteMarginal

Utility = Callable[[Any, Any], float]
"""``utility(action, truth)``: what an action is worth if a value is the true one."""


class Decision(NamedTuple):
    """What :meth:`ParticlePosterior.decide` chose.

    :ivar action: ``None`` for no answer.
    :ivar float utility: expected utility of the action, or what abstaining is worth.
    :ivar float best: expected utility of the best action, taken or not; 0 where there was none to choose from.
    """

    action: Any
    utility: float
    best: float

    @property
    def abstained(self) -> bool:
        """Whether there is no answer."""
        return self.action is None


def decide(
    marginal: DiscreteMarginal,
    utility: Utility | None = None,
    *,
    abstain: float | None = None,
    actions: Iterable[Hashable] | None = None,
) -> Decision:
    """``argmax_a sum_x W(x) u(a, x)``: the minimum-Bayes-risk decision (Bickel & Doksum, *Mathematical Statistics*, section 1.3; of
    generated texts Kumar & Byrne 2004). Ties go to the more probable action.

    :param DiscreteMarginal marginal: W. Weight without an answer (``None``) is worth nothing to any action, and is no action.
    :param utility: u; by default 1 for the true answer and 0 for any other, so that the best action is the most probable answer.
    :param float abstain: what no answer is worth; it is chosen where every action is worth less. By default an answer is always chosen
        where there is one.
    :param actions: to choose from; by default the answers themselves.
    :raises TypeError: if ``utility`` cannot be called.
    :raises ValueError: for an ``abstain`` that is not finite, or no probability where there is no utility; for a utility that is no finite
        number, naming the pair.
    """
    if utility is not None and not callable(utility):
        raise TypeError(f"utility must be a function of an action and a true answer, got {utility!r}")
    if abstain is not None and not (isinstance(abstain, int | float) and math.isfinite(abstain)):
        raise ValueError(f"abstain must be a finite number, what no answer is worth, got {abstain!r}")
    if abstain is not None and utility is None and not 0 <= abstain <= 1:
        raise ValueError(f"abstain must be a probability in [0, 1] where no utility is given, got {abstain!r}")
    truths = [(value, p) for value, p in marginal.probs.items() if value is not None]
    choices = [value for value, _ in truths] if actions is None else [action for action in actions if action is not None]
    worth = [_expected(action, truths, utility) if utility is not None else marginal.prob(action) for action in choices]
    best = max(worth, default=0.0)
    if not choices or (abstain is not None and best < abstain):
        return Decision(None, 0.0 if abstain is None else abstain, best)
    first = min((n for n, value in enumerate(worth) if value == best), key=lambda n: -marginal.prob(choices[n]))
    return Decision(choices[first], best, best)


def _expected(action: Hashable, truths: list[tuple[Any, float]], utility: Utility) -> float:
    total = 0.0
    for truth, p in truths:
        value: Any = utility(action, truth)
        try:
            total += p * _finite(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"utility({action!r}, {truth!r}) is {value!r}: it must be a finite number") from error
    return total


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(number)
    return number
