"""Resampling schemes as pure functions of (log_weights, u), batched over plates, on the device of the weights."""

from __future__ import annotations

from typing import cast

from ..util.validation import unknown_name
from .base import ConditionalResampler, Resampler, is_scheme
from .multinomial import Multinomial, multinomial
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
        if not is_scheme(resampler):
            raise ValueError(f"resampler must be one of {', '.join(RESAMPLERS)}, or a function with num_uniforms(n), got {resampler!r}")
        return resampler
    if resampler not in RESAMPLERS:
        raise unknown_name("resampler", resampler, RESAMPLERS)
    return RESAMPLERS[resampler]


CONDITIONAL_RESAMPLERS: dict[str, ConditionalResampler] = {r.__name__: r for r in (multinomial, systematic, stratified, residual)}


def get_conditional_resampler(resampler: str | Resampler) -> ConditionalResampler:
    """A scheme with a conditional form by name, or the scheme itself.

    :raises ValueError: for an unknown name, or a scheme without a conditional form.
    """
    if isinstance(resampler, str):
        if resampler not in CONDITIONAL_RESAMPLERS:
            raise unknown_name("conditional resampler", resampler, CONDITIONAL_RESAMPLERS)
        return CONDITIONAL_RESAMPLERS[resampler]
    if not callable(getattr(resampler, "conditional", None)):
        known = ", ".join(CONDITIONAL_RESAMPLERS)
        name = getattr(resampler, "__name__", repr(resampler))
        raise ValueError(
            f"resampler {name!r} has no conditional form, which particle Gibbs needs: it must be one of {known}, or a scheme that has one"
        )
    return cast(ConditionalResampler, resampler)


__all__ = [
    "CONDITIONAL_RESAMPLERS",
    "RESAMPLERS",
    "SSP",
    "ConditionalResampler",
    "Multinomial",
    "Resampler",
    "Residual",
    "Stratified",
    "Systematic",
    "get_conditional_resampler",
    "get_resampler",
    "multinomial",
    "residual",
    "ssp",
    "stratified",
    "systematic",
]
