"""Figures of tokens that somebody has asked for, such as a reward: taken where the tokens are drawn, for want of a second pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..context import PAD, Context
from ..context_cache import CacheEntry
from .base import StepOptions

MEASURES = ("log_prob", "entropy", "top_k", "kl", "margin")


@dataclass(frozen=True)
class TokenFigure:
    """A number for each token of a step, of the distribution p that the token was drawn from but at a temperature of its own. Each is the
    larger the surer the model is.

    :param str measure: ``log_prob`` of the token; minus the ``entropy`` of p; ``top_k``, minus the mean log-probability of the k most
        probable tokens; ``kl``, the divergence of p from the uniform distribution, ``-mean_j log(V p_j)``; ``margin``, the probability of
        the most probable token minus that of the next.
    :param int k: of ``top_k``.
    """

    measure: str
    temperature: float = 1.0
    k: int = 0

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """``[...]`` in float64.

        :param Tensor logits: ``[..., V]``, not warped.
        :param Tensor tokens: ``[...]``.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits if self.temperature == 1.0 else logits / self.temperature
        if self.measure == "log_prob":
            return log_probs_of(logits, tokens)
        if self.measure == "entropy":
            return -entropies_of(logits)
        total = logits.logsumexp(-1).double()
        if self.measure == "kl":
            return total - logits.mean(-1, dtype=torch.float64) - math.log(logits.shape[-1])
        best = logits.topk(min(self.k or 2, logits.shape[-1]), -1).values.double()
        if self.measure == "top_k":
            return total - best.mean(-1)
        return (best - total[..., None]).exp().diff(dim=-1).neg()[..., 0]


def log_probs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities ``[...]`` in float64 of tokens ``[...]`` given logits ``[..., V]``.

    ``log_softmax`` in float32 is too high by some 2e-5 on average in vocabularies of 50,000 tokens and more; ``logsumexp`` is not.
    """
    return logits.gather(-1, tokens[..., None])[..., 0].double() - logits.logsumexp(-1).double()


def entropies_of(logits: Tensor) -> Tensor:
    """Entropies ``[...]`` in float64 of the distributions with logits ``[..., V]``."""
    return torch.special.entr((logits - logits.logsumexp(-1, keepdim=True)).exp()).sum(-1, dtype=torch.float64)


def log_prob_figure(options: StepOptions) -> TokenFigure | None:
    """The figure whose sum over a step's tokens is the step's log-probability; ``None`` where there is none, as for truncated steps."""
    if options.constraint is not None or options.top_p < 1.0 or options.top_k is not None or isinstance(options.temperature, Tensor):
        return None
    return TokenFigure("log_prob", float(options.temperature))


class _Wanted(NamedTuple):
    """Under which a context keeps a figure of its language model's tokens: an entry without tensors is a wish.

    :ivar bool once: of the next step only, whose entry the contexts after it take along but wish for no more.
    """

    lm: Any
    figure: TokenFigure
    once: bool = False


def want(context: Context, figure: TokenFigure, once: bool = False) -> None:
    """Ask for a figure of the steps that the context's language model will sample from here on.

    :param bool once: of the next one only; what was known of earlier ones that were asked for so is forgotten.
    """
    entries, lasting = context.cache_entries, _Wanted(context.lm, figure)
    if not once:
        entries.setdefault(lasting, CacheEntry(None, {}))
        return
    for key in [key for key in entries if isinstance(key, _Wanted) and key.once and key.lm is context.lm]:
        del entries[key]
    if lasting not in entries:
        entries[lasting._replace(once=True)] = CacheEntry(None, {})


def wanted(context: Context, lm: Any) -> tuple[TokenFigure, ...]:
    """The figures that a language model is asked for."""
    own = [(key, entry) for key, entry in context.cache_entries.items() if isinstance(key, _Wanted) and key.lm is lm]
    return tuple(key.figure for key, entry in own if not (key.once and entry.tensors))


def keep(context: Context, lm: Any, figures: tuple[TokenFigure, ...], tokens: Tensor, values: Tensor) -> None:
    """Keep the figures of a step that was sampled from here.

    :param Tensor tokens: ``[*batch, M]``, the step.
    :param Tensor values: ``[*batch, M, F]``.
    """
    entries = context.cache_entries
    for figure, own in zip(figures, values.unbind(-1), strict=True):
        tensors = {"prefix": context.tokens, "lengths": context.lengths, "tokens": tokens, "values": own}
        entries[_Wanted(lm, figure, once=_Wanted(lm, figure) not in entries)] = CacheEntry(None, tensors)


def kept(context: Context, figure: TokenFigure, lengths: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor] | None:
    """A figure of the tokens of a step, as far as it is known of this step after these tokens.

    :param Context context: at the step's beginning, or later.
    :param Tensor lengths: ``[*batch]``, of the sequences before the step.
    :param Tensor tokens: ``[*batch, M]``, the step.
    :returns: the values ``[*batch, M]`` in float64, and ``[*batch]`` for which sequences they are known; ``None`` where none is.
    """
    entries, key = context.cache_entries, _Wanted(context.lm, figure)
    entry = entries.get(key) or entries.get(key._replace(once=True))
    if entry is None or not entry.tensors or entry.tensors["lengths"].shape != lengths.shape:
        return None
    prefix, sampled, width = entry.tensors["prefix"], entry.tensors["tokens"], tokens.shape[-1]
    missing = max(0, width - sampled.shape[-1])
    sampled = torch.nn.functional.pad(sampled, (0, missing), value=PAD)
    values = torch.nn.functional.pad(entry.tensors["values"], (0, missing))
    same = (sampled[..., :width] == tokens).all(-1) & (sampled[..., width:] == PAD).all(-1) & (entry.tensors["lengths"] == lengths)
    # Whatever has become of the entry since: its values are those of the tokens that they follow, and of no others.
    common = min(prefix.shape[-1], context.tokens.shape[-1])
    before = torch.arange(common, device=lengths.device) < lengths[..., None]
    same &= ~((prefix[..., :common] != context.tokens[..., :common]) & before).any(-1)
    return values[..., :width], same
