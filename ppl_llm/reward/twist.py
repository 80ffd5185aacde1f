"""Values of unfinished solutions on the way, and a verifier at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..context import Context
from ..inference.util.checked import checked
from .base import RewardModel, is_estimated, step_scores
from .function_reward import FunctionReward
from .score_cache import done_at

_CERTAIN = 30.0
"""Log-odds beyond which a value counts as that much: one of zero would lose a prefix for good, whatever its solutions are worth."""


class Twist:
    """V_t of the steps so far where a solution is unfinished, and V_T = tau, the verifier's, where nothing follows
    (a :class:`~ppl_llm.reward.base.RewardModel`).

    With the potential ``difference`` (preset ``twisted``) the factors G_t = V_t / V_{t-1} multiply to tau. The target is p(x) tau(x) and
    the evidence is P(right), whatever V is: a good V only makes the estimates vary less. With V_t = P(right | prefix) and steps proposed
    in proportion to p V they do not vary at all [1]. V must be the same whenever a prefix is scored.

    :param RewardModel value: gives the log-odds of V_t, e.g. a :class:`~ppl_llm.HiddenStateReward`.
    :param verifier: a reward of finished answers, e.g. a :class:`~ppl_llm.FunctionReward`, or the function of one.
    :raises ValueError: for what is no reward model, or no function; :class:`~ppl_llm.StepReward` refuses other potentials, and aggregations
        other than ``last``, under which the factors would not multiply to tau.

    References

    [1] *Probabilistic Inference in Language Models via Twisted Sequential Monte Carlo*, Stephen Zhao et al., arXiv 2404.17546 (2024).
    """

    of_prefixes: ClassVar[bool] = True
    telescopes: ClassVar[bool] = True
    """Whether the target holds for factors that multiply to the last score alone."""

    @checked
    def __init__(self, value: RewardModel, verifier: RewardModel | Callable[[str, str], Any]) -> None:
        self.value = value
        self.verifier = cast(RewardModel, verifier) if hasattr(verifier, "step_log_odds") else FunctionReward(cast(Any, verifier))

    @property
    def estimated(self) -> bool:
        """Whether the verifier's scores are estimates, drawn at random; values on the way may be what they like."""
        return is_estimated(self.verifier)

    def step_log_odds(self, context: Context) -> Tensor:
        """See :class:`~ppl_llm.RewardModel`."""
        return self._scores(context, done_at(context), last_step=False)

    def concluded_log_odds(self, context: Context) -> Tensor:
        """The same where no step will follow: the verifier judges those that are unfinished as well."""
        over = done_at(context)
        return self._scores(context, torch.cat([over[..., :-1], torch.ones_like(over[..., -1:])], -1), last_step=True)

    def _scores(self, context: Context, over: Tensor, last_step: bool) -> Tensor:
        verdicts = step_scores(self.verifier, context, last_step)
        values = self.value.step_log_odds(context).clamp(-_CERTAIN, _CERTAIN)
        return torch.where(over.to(values.device), verdicts.to(values), values)

    def release_caches(self) -> None:
        """Free what the value caches, if it does."""
        if callable(release := getattr(self.value, "release_caches", None)):
            release()
