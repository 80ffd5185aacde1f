"""The weighted product of rewards in probability."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .combined_reward import CombinedReward


class ProductReward(CombinedReward):
    """Probability r = prod_i r_i^(w_i): that every part accepts, if they err independently.

    Under the potential ``likelihood`` the log-factors of the parts add up. The neutral value is certainty, ``pending=inf``, the default of
    parts that wait for the finished answer; a part that is certain of the contrary (``-inf``) decides.

    :param rewards: the parts, at least one.
    :param weights: w_i, not negative; 1 by default.
    """

    def _combined(self, parts: list[tuple[float, Tensor]]) -> Tensor:
        log_r = torch.stack([weight * logsigmoid(z.double()) for weight, z in parts]).sum(0)
        # log r - log(1 - r); 1 - r is a sum of small numbers where r is near 1, which double precision and expm1 keep.
        return (log_r - torch.log(-torch.expm1(log_r))).to(parts[0][1].dtype)
