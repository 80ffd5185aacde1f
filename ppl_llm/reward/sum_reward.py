"""The weighted sum of rewards in log-odds."""

from __future__ import annotations

from torch import Tensor

from .combined_reward import CombinedReward


class SumReward(CombinedReward):
    """Log-odds z = sum_i w_i z_i.

    With weights 1 the parts are independent pieces of evidence about one event, each with even prior odds; with weights that sum to 1 it
    is their logarithmic opinion pool. Under the potential ``odds`` the log-factors of the parts add up. A part that is certain (``inf``)
    overrules the others; the neutral value is 0, hence ``pending=0.0`` for parts that wait for the finished answer.

    :param rewards: the parts, at least one.
    :param weights: w_i, not negative; 1 by default.
    """

    def _combined(self, parts: list[tuple[float, Tensor]]) -> Tensor:
        total = parts[0][0] * parts[0][1]
        for weight, z in parts[1:]:
            total = total + weight * z
        bad = total.isnan().nonzero()
        if len(bad):
            *lane, step = bad[0].tolist()
            raise ValueError(
                f"the rewards of step {step} of lane {tuple(lane)} contradict each other with certainty (inf and -inf); "
                "use ProductReward, or pending=0.0 and values short of certain"
            )
        return total
