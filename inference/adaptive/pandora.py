"""Stop when one more sample is not expected to be worth its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..posterior.adaptive_posterior import AdaptivePosterior
from ..util.checked import checked
from ..util.validation import check_between, check_positive
from .stopping_rule import StoppingRule

_ABOVE_ONE = 1e-6
"""Rounding of a product of probabilities in float32."""


class Pandora(StoppingRule):
    """Pandora's rule [1, 2]: the best reward so far reaches the threshold tau at which ``E[(r - tau)^+] = cost``.

    A reward r is the product of the model's factors, in [0, 1] where they are probabilities. Its distribution is unknown, and that of the
    rewards seen does not do: no reward above the best has been seen, so it would always stop at once. Here r is drawn from an unknown
    distribution with a Dirichlet process prior around the uniform distribution on [0, 1], of concentration a = ``prior`` [3]. After
    r_1 .. r_n the next reward is then one of them with probability 1 / (n + a) each, and uniform with probability a / (n + a)::

        E[(r - tau)^+] = (sum_i (r_i - tau)^+ + a (1 - tau)^2 / 2) / (n + a)

    At the best reward M this is a (1 - M)^2 / (2 (n + a)): the run stops as soon as that is at most the cost. It falls with every sample,
    so the rule, which looks one sample ahead, is the optimal one under this prior (the monotone case) for batches of one sample. [1] has
    another answer to the unknown distribution: an upper confidence bound of tau, for families of distributions.

    :param float cost: of a sample, in units of the reward: 0.01 pays a hundred samples for a reward of 1.
    :param float prior: a; larger values expect more of what was not seen.
    :raises ValueError: for numbers out of range.

    References

    [1] *Optimal Stopping vs Best-of-N for Inference Time Optimization*, Yusuf Kalayci, Vinod Raman, Shaddin Dughmi (2025).
    [2] *Optimal Search for the Best Alternative*, Martin Weitzman (1979).
    [3] *Searching for the Lowest Price When the Distribution of Prices Is Unknown*, Michael Rothschild (1974).
    """

    needs = "rewards"

    @checked
    def __init__(self, cost: float = 0.01, prior: float = 1.0) -> None:
        check_between("cost", cost, 0.0, 1.0)
        check_positive("prior", prior)
        self.cost, self.prior = float(cost), float(prior)

    def gain(self, rewards: Sequence[float], threshold: float) -> float:
        """``E[(r - threshold)^+]`` of the next reward, for a threshold in [0, 1]."""
        above = math.fsum(max(0.0, reward - threshold) for reward in rewards)
        return (above + self.prior * (1.0 - threshold) ** 2 / 2) / (len(rewards) + self.prior)

    def threshold(self, rewards: Sequence[float]) -> float:
        """tau; negative where a sample costs more than the mean reward."""
        at_zero = self.gain(rewards, 0.0)
        if at_zero <= self.cost:
            return at_zero - self.cost
        # Between neighbouring rewards it is a quadratic in u = 1 - tau: a u^2 / 2 + k u + (S - k) = cost (n + a), of the k rewards above.
        ordered = sorted(rewards, reverse=True)
        total = 0.0
        for k, below in enumerate([*ordered, 0.0]):
            if self.gain(rewards, below) >= self.cost:
                rest = total - k - self.cost * (len(rewards) + self.prior)
                return 1.0 - (math.sqrt(k * k - 2 * self.prior * rest) - k) / self.prior
            total += below
        raise AssertionError("the gain at 0 is above the cost")

    def __call__(self, posterior: AdaptivePosterior) -> bool:
        rewards = posterior.rewards
        if not rewards:
            return False
        best = max(rewards)
        if best > 1.0 + _ABOVE_ONE:
            raise ValueError(
                f"Pandora takes rewards in [0, 1], and a candidate has {best:.4g}: take a model whose factors are probabilities "
                "(reasoning with preset exact or twisted), or another rule"
            )
        return self.gain(rewards, min(best, 1.0)) <= self.cost

    def __repr__(self) -> str:
        return f"Pandora({self.cost:g}{'' if self.prior == 1.0 else f', prior={self.prior:g}'})"
