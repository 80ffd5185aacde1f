"""Potentials of prefixes: how the scores of steps 1..t become the factor of step t.

With ``r_t`` the score of the prefix of t steps, :func:`steering_log_factor` gives the factors ``G_t`` of Feynman-Kac steering. Their
product over all steps of a trajectory is ``exp(lambda r_T)`` whichever is chosen; they differ in what resampling sees on the way.

References

[1] *A General Framework for Inference-time Scaling and Steering of Diffusion Models*, Raghav Singhal et al. (2025).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..inference.util.validation import unknown_name

STEERING = ("difference", "max", "sum")
AGGREGATIONS = ("last", "prod", "min", "max", "mean", "window:3")
"""Names of aggregations; a window may have any length."""


def window_of(aggregation: str) -> int | None:
    """Steps of a sliding window such as ``window:3``, ``None`` for another aggregation.

    :raises ValueError: for a name that is no aggregation, or a window without a length of at least 1.
    """
    name, _, length = aggregation.partition(":")
    if name != "window":
        if aggregation not in AGGREGATIONS:
            raise unknown_name("aggregation", aggregation, AGGREGATIONS)
        return None
    if not (length.isascii() and length.isdigit() and int(length) > 0):
        raise ValueError(f"aggregation must have the number of steps of its window, at least 1, such as window:3, got {aggregation!r}")
    return int(length)


def running_log_score(z: Tensor, real: Tensor, aggregation: str) -> Tensor:
    """Log of the aggregated score s_t of every prefix: ``[*batch_shape, T]``.

    :param Tensor z: ``[*batch_shape, T]`` log-odds of the steps.
    :param Tensor real: ``[*batch_shape, T]`` steps that the sequence really took.
    :param str aggregation: ``last``, ``prod``, ``min``, ``max``, ``mean``, or ``window:W``, the mean of the last W steps.
    """
    log_r = logsigmoid(z)
    if (window := window_of(aggregation)) is not None:
        return _window_log_mean(log_r, real, window)
    if aggregation == "prod":
        return torch.where(real, log_r, 0.0).cumsum(-1)
    if aggregation == "min":
        return torch.where(real, log_r, 0.0).cummin(-1).values
    if aggregation == "max":
        return torch.where(real.cumsum(-1) > 0, torch.where(real, log_r, -torch.inf).cummax(-1).values, 0.0)
    if aggregation == "mean":
        return torch.where(real, log_r, -torch.inf).logcumsumexp(-1) - real.cumsum(-1).to(z.dtype).log()
    return log_r


def _window_log_mean(log_r: Tensor, real: Tensor, window: int) -> Tensor:
    number = real.cumsum(-1)
    place = torch.arange(log_r.shape[-1], device=log_r.device)
    inside = (place <= place[:, None]) & real[..., None, :] & (number[..., None, :] > number[..., :, None] - window)
    total = torch.where(inside, log_r[..., None, :], -torch.inf).logsumexp(-1)
    return torch.where(number > 0, total - inside.sum(-1).to(log_r.dtype).log(), 0.0)


def running_log_odds(z: Tensor, real: Tensor, aggregation: str) -> Tensor:
    """Log-odds of the aggregated score of every prefix: ``[*batch_shape, T]``; exact where it is a single step's."""
    if aggregation in ("last", "window:1"):
        return z
    if aggregation == "min":
        return torch.where(real, z, torch.inf).cummin(-1).values
    if aggregation == "max":
        return torch.where(real.cumsum(-1) > 0, torch.where(real, z, -torch.inf).cummax(-1).values, torch.inf)
    log_s = running_log_score(z, real, aggregation).to(torch.float64)
    return (log_s - torch.log(-torch.expm1(log_s.clamp(max=-1e-300)))).to(z.dtype)


def prefix_log_score(z: Tensor, real: Tensor, aggregation: str) -> Tensor:
    """Log of the aggregated score s_T of all steps: ``[*batch_shape]``; arguments as for :func:`running_log_score`."""
    return running_log_score(z, real, aggregation)[..., -1]


def prefix_log_odds(z: Tensor, real: Tensor, aggregation: str) -> Tensor:
    """Log-odds of the aggregated score of all steps: ``[*batch_shape]``."""
    return running_log_odds(z, real, aggregation)[..., -1]


def steering_log_factor(potential: str, scaled: Tensor, terminal: Tensor) -> Tensor:
    """``log G_T`` of the last of T steps: ``[*batch_shape]``.

    ==============  =================================  =================
    potential       log G_t, t < T                     log G_T
    ==============  =================================  =================
    ``difference``  lambda r_t - lambda r_{t-1}        the same
    ``max``         max over s <= t of lambda r_s      see below
    ``sum``         sum over s <= t of lambda r_s      see below
    ==============  =================================  =================

    with ``r_0 = 0``. The terminal factor of ``max`` and ``sum`` is ``lambda r_T`` minus all ``log G_t`` before it. A sequence whose
    weight is zero already gets 0.

    :param Tensor scaled: ``[*batch_shape, T]``, lambda r_t.
    :param Tensor terminal: ``[*batch_shape]``, sequences that take no further step.
    """
    last, before = scaled[..., -1], scaled[..., :-1]
    if potential == "difference":
        previous = before[..., -1] if before.shape[-1] else torch.zeros_like(last)
        return torch.where(previous == -torch.inf, 0.0, last - previous)
    log_factors = scaled.cummax(-1).values if potential == "max" else scaled.cumsum(-1)
    spent = log_factors[..., :-1].sum(-1)
    return torch.where(spent == -torch.inf, 0.0, torch.where(terminal, last - spent, log_factors[..., -1]))
