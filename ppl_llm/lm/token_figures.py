"""Figures of sampled tokens that somebody has asked for, such as a reward: summed where the tokens are drawn, for want of a second pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..context import PAD, Context
from ..context_cache import CacheEntry

MEASURES = ("log_prob", "entropy")


@dataclass(frozen=True)
class TokenFigure:
    """A number for each token of a step, of the distribution that the token was drawn from but at a temperature of its own.

    :param str measure: ``log_prob`` of the token, or ``entropy`` of the distribution.
    """

    measure: str
    temperature: float = 1.0

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """``[...]`` in float64.

        :param Tensor logits: ``[..., V]``, not warped.
        :param Tensor tokens: ``[...]``.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits if self.temperature == 1.0 else logits / self.temperature
        return log_probs_of(logits, tokens) if self.measure == "log_prob" else entropies_of(logits)


def log_probs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities ``[...]`` in float64 of tokens ``[...]`` given logits ``[..., V]``.

    ``log_softmax`` in float32 is too high by some 2e-5 on average in vocabularies of 50,000 tokens and more; ``logsumexp`` is not.
    """
    return logits.gather(-1, tokens[..., None])[..., 0].double() - logits.logsumexp(-1).double()


def entropies_of(logits: Tensor) -> Tensor:
    """Entropies ``[...]`` in float64 of the distributions with logits ``[..., V]``."""
    return torch.special.entr((logits - logits.logsumexp(-1, keepdim=True)).exp()).sum(-1, dtype=torch.float64)


class _Wanted(NamedTuple):
    """Under which a context keeps a figure of its language model's tokens: an entry without tensors is a wish."""

    lm: Any
    figure: TokenFigure


def want(context: Context, figure: TokenFigure) -> None:
    """Ask for a figure of the steps that the context's language model will sample from here on."""
    context.cache_entries.setdefault(_Wanted(context.lm, figure), CacheEntry(None, {}))


def wanted(context: Context, lm: Any) -> tuple[TokenFigure, ...]:
    """The figures that a language model is asked for."""
    return tuple(key.figure for key in context.cache_entries if isinstance(key, _Wanted) and key.lm is lm)


def keep(context: Context, lm: Any, figures: tuple[TokenFigure, ...], tokens: Tensor, sums: Tensor) -> None:
    """Keep the sums of figures over a step that was sampled from here.

    :param Tensor tokens: ``[*batch, M]``, the step.
    :param Tensor sums: ``[*batch, F]``.
    """
    for figure, sum_ in zip(figures, sums.unbind(-1), strict=True):
        tensors = {"tokens": tokens, "lengths": context.lengths, "sum": sum_}
        context.cache_entries[_Wanted(lm, figure)] = CacheEntry(None, tensors)


def kept(context: Context, figure: TokenFigure, lengths: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor] | None:
    """The sums of a figure over a step, as far as it is the one that was sampled last.

    :param Tensor lengths: ``[*batch]``, of the sequences before the step.
    :param Tensor tokens: ``[*batch, M]``, the step.
    :returns: ``[*batch]`` each: the sums in float64, and for which sequences they are known; ``None`` where none is.
    """
    entry = context.cache_entries.get(_Wanted(context.lm, figure))
    if entry is None or not entry.tensors or entry.tensors["lengths"].shape != lengths.shape:
        return None
    sampled, width = entry.tensors["tokens"], tokens.shape[-1]
    sampled = torch.nn.functional.pad(sampled, (0, max(0, width - sampled.shape[-1])), value=PAD)
    same = (sampled[..., :width] == tokens).all(-1) & (sampled[..., width:] == PAD).all(-1)
    return entry.tensors["sum"], same & (entry.tensors["lengths"] == lengths)
