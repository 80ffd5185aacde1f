"""Stop when the leading answer is the more probable one of the first two, with a given probability."""

from __future__ import annotations

import math

from ..posterior.adaptive_posterior import AdaptivePosterior
from ..util.checked import checked
from ..util.validation import check_between
from .stopping_rule import StoppingRule

_ROUNDING = 1e-9
"""Of counts that are whole numbers up to the rounding of their weights."""


class BetaMajority(StoppingRule):
    """``1 - I_{1/2}(v1 + 1, v2 + 1) >= confidence`` with the two largest counts v1 >= v2, and I the regularised incomplete beta function.

    Of two answers let p be the probability of the first, uniform beforehand. Given v1 votes for it and v2 for the other, p has the
    distribution Beta(v1 + 1, v2 + 1), and this is the probability of p > 1/2: that the leader leads in truth [1]. Other answers are left
    out, as in [1]. In closed form, with n = v1 + v2 + 1::

        1 - I_{1/2}(v1 + 1, v2 + 1) = P(Binomial(n, 1/2) <= v1) = 2^{-n} sum_{j <= v1} C(n, j)

    Where votes have weights, counts are effective ones (:class:`~ppl_llm.inference.posterior.votes.Votes`) and in general no whole numbers;
    v1 is then rounded down and v2 up, which never stops earlier.

    :param float confidence: in (1/2, 1); 0.95 in [1]. Without a dissenting vote 0.95 takes 4 votes, since 1 - 2^-5 = 0.969.
    :raises ValueError: for a confidence out of range.

    References

    [1] *Let's Sample Step by Step: Adaptive-Consistency for Efficient Reasoning and Coding with LLMs*, Pranjal Aggarwal, Aman Madaan,
        Yiming Yang, Mausam (2023), the Beta stopping criterion.
    """

    @checked
    def __init__(self, confidence: float = 0.95) -> None:
        check_between("confidence", confidence, 0.5, 1.0)
        self.confidence = float(confidence)

    @staticmethod
    def probability(first: int, second: int) -> float:
        """That the answer with ``first`` votes leads the one with ``second``."""
        n = first + second + 1
        return sum(math.comb(n, j) for j in range(first + 1)) / (1 << n)

    def __call__(self, posterior: AdaptivePosterior) -> bool:
        first, second = [*posterior.votes.counts.values(), 0.0, 0.0][:2]
        return self.probability(math.floor(first + _ROUNDING), math.ceil(second - _ROUNDING)) >= self.confidence

    def __repr__(self) -> str:
        return f"BetaMajority({self.confidence:g})"
