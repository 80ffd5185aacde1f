"""The value of a prefix from the scores of its steps: a logistic regression."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from ..context import Context
from ..inference.util.checked import checked
from .base import RewardModel, scored_steps

_FAR = 20.0
"""Log-odds beyond which a score says no more."""
_RIDGE = 0.05
"""A tenth of an observation pulls standardised weights towards 0, so that data that can be separated stay finite."""


class PrefixValue:
    """P(the answer will be right | scores so far, position) by logistic regression (a :class:`~ppl_llm.reward.base.RewardModel`).

    The log-odds after step t are ``w . (z_t, logit(prod_{s <= t} r_s), t, 1)``, with z_s another reward's log-odds of step s and r_s the
    probability that they state. As a value on the way it turns scores of steps, which say whether a step is right, into an estimate of
    V_t; :class:`~ppl_llm.Twist` puts a verifier at the end. :func:`ppl_llm.evaluation.fit_twist` fits it to a run.

    :param RewardModel prm: scores the steps.
    :param Tensor weights: ``[4]`` float64.
    :raises ValueError: for another number of weights, or one that is not finite.
    """

    of_prefixes: ClassVar[bool] = True

    @checked
    def __init__(self, prm: RewardModel, weights: Tensor) -> None:
        if weights.shape != (4,) or not torch.isfinite(weights).all():
            raise ValueError(f"PrefixValue takes 4 finite weights, got {weights.tolist()!r}")
        self.prm, self.weights = prm, weights

    def step_log_odds(self, context: Context) -> Tensor:
        """See :class:`~ppl_llm.RewardModel`."""
        z = self.prm.step_log_odds(context)
        return (features(z, scored_steps(self.prm, context).to(z.device)) @ self.weights.to(z.device)).to(z.dtype)

    @classmethod
    def fit(cls, prm: RewardModel, log_odds: Tensor, real: Tensor, right: Tensor) -> PrefixValue:
        """Maximum likelihood by L-BFGS, every step an observation of what became of its solution.

        :param Tensor log_odds: ``[M, T]``, finite, of the steps of solutions.
        :param Tensor real: ``[M, T]``, the steps that exist, which come first.
        :param Tensor right: ``[M]``, 0 or 1.
        :raises ValueError: with right or wrong solutions only, or log-odds that are nan.
        """
        if log_odds[real].isnan().any():
            raise ValueError("the log-odds of the steps hold nan")
        if not right.min() < right.max():
            raise ValueError(f"all {len(right)} solutions are {'right' if right.max() > 0 else 'wrong'}; a twist is fitted to both kinds")
        x, y = features(torch.where(real, log_odds, 0.0), real)[real], right[:, None].expand_as(real)[real].double()
        scale = torch.cat([x[:, :3].std(0).clamp(min=1e-6), torch.ones(1, dtype=x.dtype)])
        weights = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            misfit = binary_cross_entropy_with_logits(x / scale @ weights, y, reduction="sum")
            value = misfit + _RIDGE * weights[:3].square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        return cls(prm, weights.detach() / scale)


def features(z: Tensor, real: Tensor) -> Tensor:
    """``[*batch, T, 4]`` float64 of the log-odds ``[*batch, T]`` of steps.

    :param Tensor real: ``[*batch, T]``; a step that does not exist has the features of the one before it.
    """
    kept = z.double().clamp(-_FAR, _FAR)
    product = torch.where(real, logsigmoid(kept), 0.0).cumsum(-1).clamp(max=-1e-9)
    odds = (product - torch.log(-torch.expm1(product))).clamp(-_FAR, _FAR)
    return torch.stack([kept, odds, real.cumsum(-1).double(), torch.ones_like(kept)], -1)
