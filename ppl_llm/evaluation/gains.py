"""What more computation gains: ARISE, the utility of repeated attempts, saturation, and length as a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def arise(correct: ArrayLike, tokens: ArrayLike) -> Array:
    """ARISE of each problem: gains and losses between adjacent budgets, weighted by the ratio of their tokens (Yin et al.,
    arXiv:2510.06014, as its released code computes it)::

        sum_j (a_j - a_{j-1}) (t_{j-1} / t_j)^{sign(a_j - a_{j-1})}

    A gain counts the less the more tokens it took, a loss the more. The paper averages over problems, and repeats runs whose result varies
    most; here seeds are averaged as everywhere.

    :param correct: ``[..., budgets]``, accuracy of each problem at each budget, ascending.
    :param tokens: ``[..., budgets]``, positive.
    :returns: ``[...]``; nan where a value is missing.
    :raises ValueError: for shapes that differ, fewer than two budgets, or tokens that are not positive.
    """
    a, t = np.asarray(correct, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    if a.shape != t.shape or a.ndim == 0 or a.shape[-1] < 2:
        raise ValueError(f"correct and tokens must have one shape with two budgets at least, got {a.shape} and {t.shape}")
    if (t <= 0).any():
        raise ValueError("tokens must be positive at every budget")
    change = np.diff(a, axis=-1)
    found: Array = (change * (t[..., :-1] / t[..., 1:]) ** np.sign(change)).sum(-1)
    return found


def utility(attempts: int, true_positive: float, false_positive: float, penalty: float = 1.0, cost: float = 0.0) -> float:
    """Expected utility of sampling until a verifier accepts, at most K times (Stroebl et al., Inference Scaling fLaws, arXiv:2411.17501)::

        U(K) = (1 - (1 - a)^K) / a (p_tp - lambda p_fp - cost),    a = p_tp + p_fp

    A right answer that is accepted is worth 1, a wrong one minus lambda, none 0. The paper subtracts what writing costs; here an attempt
    costs ``cost``, and ``(1 - (1 - a)^K) / a`` of them are expected. Where a = 0 all K are made.

    :param int attempts: K.
    :param float true_positive: p_tp, chance that an attempt is right and accepted.
    :param float false_positive: p_fp, that it is wrong and accepted.
    :param float penalty: lambda.
    :raises ValueError: for chances outside of [0, 1], also together, or other numbers that are negative.
    """
    accepted = true_positive + false_positive
    if min(true_positive, false_positive) < 0 or accepted > 1 + 1e-12:
        raise ValueError(f"chances must lie in [0, 1] together, got {true_positive!r} and {false_positive!r}")
    if attempts < 0 or penalty < 0 or cost < 0:
        raise ValueError(f"attempts, penalty and cost must not be negative, got {attempts!r}, {penalty!r} and {cost!r}")
    expected = attempts if accepted == 0 else -math.expm1(attempts * math.log1p(-min(accepted, 1.0))) / accepted if accepted < 1 else 1
    return (true_positive - penalty * false_positive - cost) * (expected if attempts else 0)


def utility_of_samples(
    num_samples: int, true_positives: int, false_positives: int, attempts: int, penalty: float = 1.0, cost: float = 0.0
) -> float:
    """Unbiased estimate of :func:`utility` from n samples of a problem: its mean over all orders in which K of them are tried.

    :raises ValueError: if ``attempts`` exceeds the number of samples, or the counts make no sense.
    """
    accepted = true_positives + false_positives
    if not 0 <= attempts <= num_samples:
        raise ValueError(f"attempts must lie in 0 .. {num_samples} (the number of samples), got {attempts!r}")
    if min(true_positives, false_positives) < 0 or accepted > num_samples:
        raise ValueError(f"{true_positives} and {false_positives} accepted of {num_samples} samples make no sense")

    def none(j: int) -> float:
        """Probability that none of j samples is accepted."""
        return math.comb(num_samples - accepted, j) / math.comb(num_samples, j)

    worth = (1 - none(attempts)) * (true_positives - penalty * false_positives) / accepted if accepted else 0.0
    return worth - cost * sum(none(j) for j in range(attempts))


class Saturation(NamedTuple):
    """Accuracy ``ceiling (1 - (1 - chance) ** N)`` (TTSPM); :func:`~ppl_llm.evaluation.risk.saturation` tells where it gains little."""

    ceiling: float
    chance: float

    def __call__(self, number: ArrayLike) -> Array:
        values: Array = -self.ceiling * np.expm1(np.asarray(number, dtype=np.float64) * np.log1p(-self.chance))
        return values


def fit_saturation(numbers: Sequence[int], accuracies: Sequence[float]) -> Saturation:
    """Least squares; the ceiling follows from the chance, which is searched for.

    :raises ValueError: with fewer than two numbers of samples, or accuracies that are all 0.
    """
    n, y = np.asarray(numbers, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    if len(n) < 2 or not (y > 0).any():
        raise ValueError(f"saturation needs two numbers of samples and an accuracy above 0, got {list(accuracies)}")

    def fitted(chances: Array) -> tuple[Array, Array]:
        growth = -np.expm1(n * np.log1p(-chances)[:, None])
        ceilings = np.clip(growth @ y / (growth**2).sum(-1), 1e-12, 1.0)
        return ((ceilings[:, None] * growth - y) ** 2).sum(-1), ceilings

    low, high = math.log(1e-6), math.log(1 - 1e-9)
    for _ in range(6):  # a finer grid around the best each time
        grid = np.linspace(low, high, 201)
        errors, ceilings = fitted(np.exp(grid))
        at = int(errors.argmin())
        low, high = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, len(grid) - 1)])
    return Saturation(float(ceilings[at]), float(np.exp(grid[at])))
