"""Tokens drawn one by one until a constraint accepts one, with an unbiased weight."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def adaptive_rejection(masses: Tensor, accepts: Callable[[int], bool], draw: Callable[[Tensor], int]) -> tuple[int, float]:
    """A token of the accepted ones in proportion to their masses, and an unbiased estimate of their part of all mass.

    Tokens that are refused are removed (Lipkin et al., arXiv 2504.05410). After the first accepted token drawing continues from what is
    left, that token included, until one is accepted again. With R_j the part of the mass that is left after j refusals and m refusals in
    all, the estimate is 1 / sum_{j=0..m} 1 / R_j. Given the tokens that are refused, in order, the first accepted one falls after j of
    them with probability proportional to 1 / R_j; the estimate is the probability of j = 0, that is, the expectation of whether the very
    first draw is accepted, which is unbiased. Which token is accepted does not depend on the refusals, so the estimate is unbiased for
    each token. With nothing removed it would be 1 / (number of draws - 1), the classical estimate after two successes.

    :param Tensor masses: ``[V]`` float64, not normalised; changed.
    :param accepts: asked at most once of each token.
    :param draw: an index in proportion to masses ``[V]``.
    :returns: the token and the estimate; zero where no token of positive mass is accepted.
    """
    total = left = float(masses.sum())
    accepted: set[int] = set()
    inverse, first = 1.0, -1  # sum of 1 / R_j, and the token
    while left > 0.0:
        token = draw(masses)
        if token in accepted or accepts(token):
            if first >= 0:
                return first, 1.0 / inverse
            first = token
            accepted.add(token)
            continue
        masses[token] = 0.0
        left = float(masses.sum())
        if left > 0.0:
            inverse += total / left
    return 0, 0.0


def log_or_dead(estimate: float) -> float:
    return math.log(estimate) if estimate > 0.0 else -math.inf


def inverse_cdf_draw(u: float) -> Callable[[Tensor], int]:
    """A ``draw`` for :func:`adaptive_rejection`: by inverse CDF, first with ``u``, then with new uniforms."""
    uniforms = [u]

    def draw(masses: Tensor) -> int:
        point = uniforms.pop() if uniforms else float(torch.rand((), dtype=torch.float64))
        cdf = masses.cumsum(0)
        # Below the total, so that no token of mass zero is drawn.
        target = min(point * float(cdf[-1]), math.nextafter(float(cdf[-1]), 0.0))
        return int(torch.searchsorted(cdf, torch.tensor(target, dtype=cdf.dtype, device=cdf.device), right=True))

    return draw
