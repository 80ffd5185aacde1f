"""Power targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pyro.poutine.util import site_is_subsample

from ..util.checked import checked
from ..util.validation import check_positive
from .bound_model import BoundModel
from .temper_messenger import TemperMessenger

BRIDGE = "bridge"
"""Under this name a site's ``infer`` has the shares of its power that count at the first barriers."""


class PowerMessenger(TemperMessenger):
    """Raises the latent sites of a model to a power; :func:`power` wraps a model with it.

    :param float alpha: the power.
    :param tuple bridge: the powers at the first barriers.
    """

    def __init__(self, alpha: float, bridge: tuple[float, ...] = ()) -> None:
        super().__init__(prior=alpha)
        self.shares = tuple(power / alpha for power in bridge)

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if self.shares and not msg["is_observed"] and not site_is_subsample(msg):
            if BRIDGE in msg["infer"]:
                raise ValueError(f"site {msg['name']!r} has a bridge of powers already; bridge the outer power alone: power(model, a, b)")
            msg["infer"] = {**msg["infer"], BRIDGE: self.shares}


def bridge_powers(alpha: float, bridge: int | Sequence[float] | None) -> tuple[float, ...]:
    """The powers at the first barriers.

    :param bridge: how many steps it takes from power 1 to ``alpha``, or the powers themselves; ``None`` for none.
    :raises ValueError: for numbers out of range.
    """
    check_positive("power", alpha)
    if bridge is None:
        return ()
    if isinstance(bridge, int) and not isinstance(bridge, bool) and bridge >= 1:
        return tuple(1 + (alpha - 1) * t / bridge for t in range(1, bridge))
    powers = list(bridge) if isinstance(bridge, Sequence) and not isinstance(bridge, str) else [None]
    if not all(isinstance(b, int | float) and not isinstance(b, bool) and 0 < b < math.inf for b in powers):
        raise ValueError(f"bridge must be a number of steps, at least 1, or powers above 0 of the first barriers, got {bridge!r}")
    assert isinstance(bridge, Sequence)
    return tuple(map(float, bridge))


@checked
def power(model: Callable[..., Any], alpha: float, bridge: int | Sequence[float] | None = None) -> BoundModel:
    """The model with the target ``p(x)^alpha p(y | x)``: its latent sites raised to a power, its factors as they are.

    With ``alpha > 1`` it prefers what the model itself finds probable as a whole, which is not what a low temperature does: that prefers
    tokens that are probable one by one [1]. It needs no factors::

        SMC(power(model, 4.0, bridge=8), 16, proposals=StepProposal(temperature=0.25), rejuvenate=SuffixMH, moves=2).run(problem)

    A bridge lets the power grow along the steps: at barrier t a particle filter resamples (and moves) for the target
    ``p(x_{1:t})^alpha_t`` times the factors so far, so that from t - 1 to t a weight grows by ::

        p(x_t | x_{1:t-1})^alpha_t / q(x_t)  *  p(x_{1:t-1})^(alpha_t - alpha_{t-1})

    and by ``p(x)^(alpha - alpha_T)`` at the end of the model. Algorithms without barriers, and the audit, see ``p(x)^alpha`` alone: the
    bridge changes no target.

    :param model: as for :class:`SMC`.
    :param float alpha: the power, above 0.
    :param bridge: how many steps it takes from power 1 to ``alpha``, each as large as the others; or the powers of the first barriers.
        ``None`` for the whole power from the first step on.
    :raises ValueError: for numbers out of range; when run, for a model with a bridge of its own.

    References

    [1] *Reasoning with Sampling: Your Base Model is Smarter Than You Think*, Aayush Karan, Yilun Du (2025).
    """
    powers = bridge_powers(alpha, bridge)
    described = f"power({alpha:g}{''.join(f', {each:g}' for each in powers)})"
    return BoundModel(model, lambda: PowerMessenger(alpha, powers), described)
