"""Resampling schemes as pure functions of (log_weights, u), batched over plates, on the device of the weights."""

from __future__ import annotations

from ..names import unknown_name
from .multinomial import Multinomial, multinomial
from .protocol import Resampler
from .residual import Residual, residual
from .ssp import SSP, ssp
from .stratified import Stratified, stratified
from .systematic import Systematic, systematic

RESAMPLERS: dict[str, Resampler] = {r.__name__: r for r in (multinomial, systematic, stratified, residual, ssp)}


def get_resampler(resampler: str | Resampler) -> Resampler:
    """A scheme by name, or the scheme itself.

    :raises ValueError: for an unknown name, with the nearest known one.
    """
    if not isinstance(resampler, str):
        return resampler
    if resampler not in RESAMPLERS:
        raise unknown_name("resampler", resampler, RESAMPLERS)
    return RESAMPLERS[resampler]


__all__ = [
    "RESAMPLERS",
    "SSP",
    "Multinomial",
    "Resampler",
    "Residual",
    "Stratified",
    "Systematic",
    "get_resampler",
    "multinomial",
    "residual",
    "ssp",
    "stratified",
    "systematic",
]
