"""Annealed resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..particles.weights import Weights
from ..util.checked import check_fields
from ..util.validation import check_count, unknown_name

RULES = ("ess", "entropy", "base")


@dataclass(frozen=True)
class EntropicAnnealing:
    """Resampling in proportion to ``W^(1/T)``: while a population collapses early, the weights are flattened to keep it diverse.

    At step t of ``num_steps``, with u = t / num_steps, e = ESS / N and H the entropy of the weights divided by log N, the temperature T
    is 1 unless e < ``ess_threshold`` and u < ``early_phase``; then it is, by the rule,

    ===========  ====================================
    ``ess``      max(1, (1 - u) / e)
    ``entropy``  max(1, 1 / (H + (1 - H) u))
    ``base``     max(1, 2 - u)
    ===========  ====================================

    The particles keep the residual weights ``W^(1 - 1/T)``, so that the target and the evidence of the filter are what they would be
    without annealing. The published algorithm [1] drops them (``keeps_target=False``); its target then depends on the population.

    Example::

        SMC(model, 64, selection=EntropicAnnealing("ess", num_steps=40)).run(problem)

    :param str rule: ``ess``, ``entropy`` or ``base``.
    :param int num_steps: barriers of the longest execution.
    :param bool keeps_target: whether particles keep the residual weights.
    :param float ess_threshold: anneal below this ESS / N.
    :param float early_phase: anneal before this part of the steps.
    :raises ValueError: for an unknown rule or numbers out of range.

    References

    [1] *Mitigating Premature Exploitation in Particle-based Monte Carlo for Inference-Time Scaling*, Giorgio Giannone et al. (2025).
    """

    rule: str = "ess"
    num_steps: int = field(kw_only=True)
    keeps_target: bool = field(default=True, kw_only=True)
    ess_threshold: float = field(default=0.5, kw_only=True)
    early_phase: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rule not in RULES:
            raise unknown_name("rule", self.rule, RULES)
        check_count("num_steps", self.num_steps)
        for name in ("ess_threshold", "early_phase"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {value!r}")

    def __call__(self, weights: Weights, state: Any, step: int) -> Tensor:
        log_w = weights.log_weights.log_softmax(0)
        return torch.where(log_w == -torch.inf, log_w, log_w / self.temperature(weights, step))

    def temperature(self, weights: Weights, step: int) -> Tensor:
        """``[*plates]``: T at the barrier that follows ``step`` others."""
        progress = (step + 1) / self.num_steps
        share = weights.ess / weights.num_particles
        if self.rule == "ess":
            raised = (1 - progress) / share
        elif self.rule == "entropy":
            w = weights.normalized
            entropy = -torch.xlogy(w, w).sum(0) / math.log(max(weights.num_particles, 2))
            raised = 1 / (entropy + (1 - entropy) * progress)
        else:
            raised = torch.full_like(share, 2 - progress)
        gate = (share < self.ess_threshold) & torch.tensor(progress < self.early_phase, device=share.device)
        return torch.where(gate, raised.clamp(min=1.0), 1.0)
