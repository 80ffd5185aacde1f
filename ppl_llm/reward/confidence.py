"""How sure the language model is of the tokens that it writes, as a reward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..context import PAD, Context
from ..context_cache import CacheEntry, CacheKey, find_entry
from ..inference.util.checked import checked
from ..inference.util.validation import check_count, check_optional_count, unknown_name
from ..lm.autoregressive import AutoregressiveLM
from ..lm.base import language_model
from ..lm.token_figures import TokenFigure, kept, want
from .confidence_windows import OVER, WINDOWED, answer_places, reduced
from .score_cache import cut_at, done_at, finished_at, repeat_last, without_end

MEASURES = {"log-prob": "log_prob", "entropy": "entropy", "top-k": "top_k", "kl": "kl", "margin": "margin"}
"""Kinds of confidence, and what the tokens' figures are called."""

_GEOMETRIC = ("log-prob", "entropy")
"""Whose mean c is the logarithm of a probability."""


class Confidence:
    """A figure C of the language model's own next-token distributions p, larger the surer it is, as the score of a step or of all steps so
    far.

    ============  ===================================================  =====================  ==========================================
    kind          figure of a token                                    score s                source
    ============  ===================================================  =====================  ==========================================
    ``log-prob``  log p(token)                                         exp C, the geometric
                                                                       mean probability
    ``entropy``   minus the entropy of p                               exp C
    ``top-k``     minus the mean log-probability of the k likeliest    C / (1 + C)            DeepConf [1], token confidence
    ``kl``        divergence of p from the uniform distribution        C / (1 + C)            self-certainty [2]
    ``margin``    p of the likeliest token minus p of the next         C                      CoT-decoding [3], ``over="answer"``
    ============  ===================================================  =====================  ==========================================

    C is a mean over tokens: of the step by default; with ``over`` of all tokens so far, in windows of ``window`` tokens:

    - ``mean``: all of them, the average trace confidence of [1]; ``tail``: the last window.
    - ``least``: the window with the least mean, the lowest group confidence of [1]; ``bottom``: the mean over the tenth of all windows that
      are least. A text shorter than a window is one.
    - ``answer``: the tokens of the answer, once it is given. Before, the score is ``inf``, as of a reward of whole answers.

    Under the potential ``likelihood`` a step's factor is s; under ``odds`` it is C itself for ``top-k`` and ``kl``, the vote of [1].

    With a ``threshold`` the score is 1 where the confidence is at least that and 0 elsewhere: with ``least``, the target is the language
    model given that no window falls below it, and a particle is cut where one does. A text that is shorter than a window, and has not
    ended, is not.

    No reward model is needed: the figure is taken while the context's language model samples a step, and only steps that were not sampled,
    and the first one where nobody called :meth:`prepare`, cost a pass (a :class:`~ppl_llm.reward.base.RewardModel`). Words that a thinking
    budget writes count as any others.

    :param str kind: see the table; all but ``log-prob`` need a local language model.
    :param int window: tokens of a window; for ``least``, which is then the default, ``bottom`` and ``tail``.
    :param str over: see above; by default ``step``, the tokens of the step.
    :param int k: of ``top-k``.
    :param float temperature: of p; 1 for the model's own, whatever the steps are sampled at.
    :param threshold: the least confidence that has a weight, on the scale of :meth:`of`; a number, or one for each problem of a plate.
    :raises ValueError: for an unknown kind, or what does not go together.

    References

    [1] *Deep Think with Confidence*, Yichao Fu et al. (2025), arXiv 2508.15260.
    [2] *Scalable Best-of-N Selection for Large Language Models via Self-Certainty*, Zhewei Kang et al. (2025), arXiv 2502.18581.
    [3] *Chain-of-Thought Reasoning Without Prompting*, Xuezhi Wang, Denny Zhou (2024), arXiv 2402.10200.
    """

    of_language_model = True
    """Its scores are figures of the context's language model."""

    @checked
    def __init__(
        self,
        kind: str = "log-prob",
        *,
        window: int | None = None,
        over: str | None = None,
        k: int = 20,
        temperature: float = 1.0,
        threshold: float | Tensor | None = None,
    ) -> None:
        if kind not in MEASURES:
            raise unknown_name("kind", kind, MEASURES)
        check_optional_count("window", window)
        check_count("k", k)
        over = over if over is not None else "step" if window is None else "least"
        if over not in OVER:
            raise unknown_name("over", over, OVER)
        if (over in WINDOWED) != (window is not None):
            needs = "needs a window, such as 64" if window is None else f"has no windows, and window is {window}"
            raise ValueError(f"over={over!r} {needs}; windows go with {', '.join(WINDOWED)}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        if threshold is not None and bool(torch.as_tensor(threshold).isnan().any()):
            raise ValueError("threshold must be a confidence, got nan: nothing would be at least that")
        self.kind, self.window, self.over, self.k, self.temperature, self.threshold = kind, window, over, k, temperature, threshold
        self._figure = TokenFigure(MEASURES[kind], temperature, k if kind == "top-k" else 0)
        self._key = CacheKey(f"confidence {self}")

    @classmethod
    def parse(cls, text: str) -> Confidence:
        """``KIND``, ``KIND:WINDOW`` or ``KIND:WINDOW:OVER``, as on the command line; ``margin:answer`` has no window.

        :raises ValueError: for anything else.
        """
        kind, *rest = text.split(":")
        numbers = [each.isdecimal() and each.isascii() for each in rest]
        if len(rest) > 2 or not all(rest) or (len(rest) == 2 and numbers != [True, False]) or (len(rest) == 1 and not rest[0].isascii()):
            raise ValueError(f"confidence must be KIND, KIND:WINDOW or KIND:WINDOW:OVER, such as top-k:64:tail, got {text!r}")
        window = int(rest[0]) if rest and numbers[0] else None
        over = rest[-1] if rest and not numbers[-1] else None
        return cls(kind, window=window, over=over)

    def __str__(self) -> str:
        own = [self.kind, *([] if self.window is None else [str(self.window)]), *([] if self.over == "step" else [self.over])]
        return ":".join(own)

    @property
    def of_prefixes(self) -> bool:
        """Whether a score is that of all steps so far."""
        return self.over != "step"

    def cutting(self, threshold: float | Tensor) -> Confidence:
        """The same with a threshold."""
        return Confidence(self.kind, window=self.window, over=self.over, k=self.k, temperature=self.temperature, threshold=threshold)

    def prepare(self, context: Context) -> None:
        """Have the figure taken while steps are sampled from here on."""
        want(context, self._figure)

    def note(self, context: Context) -> None:
        """Take the figures of the last steps, while what sampling had of them is at hand."""
        self._told(context)

    def step_log_odds(self, context: Context) -> Tensor:
        return self._told(context)["scores"]

    def concluded_log_odds(self, context: Context) -> Tensor:
        """:meth:`step_log_odds` where no step will follow: with ``over="answer"``, a solution without an end is certainly wrong."""
        scores = self.step_log_odds(context)
        return scores if self.over != "answer" else without_end(scores, context)

    def of(self, context: Context) -> Tensor:
        """The confidence of each solution as a whole, ``[*batch]`` in float64, at least 0: exp C for ``log-prob`` and ``entropy``, else C.

        Of all its tokens where ``over`` is ``step``. 0 for a solution without a token, or, with ``over="answer"``, without an answer.
        """
        values, lengths = self._told(context)["values"], (context.lengths - context.prompt_lengths)
        over = "mean" if self.over == "step" else self.over
        if over == "answer":
            found, has = self._answers(context, values)
        else:
            found, has = reduced(values, lengths, over, self.window), lengths > 0
        return torch.where(has, found.exp() if self.kind in _GEOMETRIC else found, 0.0)

    def _told(self, context: Context) -> dict[str, Tensor]:
        """Scores ``[*batch, T]`` of all steps, and the figures ``[*batch, W]`` of all tokens behind the prompt, 0 behind the ends."""
        self.prepare(context)
        entry = find_entry(context.cache_entries, self._key, lambda owner: None)
        if entry is None or not entry.fits(context.batch_shape):
            nothing = torch.zeros(*context.batch_shape, 0, device=context.tokens.device)
            entry = CacheEntry(None, {"scores": nothing, "values": nothing.double()})
        scores, values = entry.tensors["scores"], entry.tensors["values"]
        begin = scores.shape[-1]
        for step in range(begin, context.num_steps):
            before, tokens = split_step(context, step)
            place = (before.lengths - before.prompt_lengths)[..., None] + torch.arange(tokens.shape[-1], device=tokens.device)
            values = _grown(values, place, self._values(context, before, tokens), tokens != PAD)
            score, own = self._score(context, values, step)
            bad = score.isnan().nonzero()
            if len(bad):
                raise ValueError(f"the confidence of step {step} of sequence {tuple(bad[0].tolist())} is nan")
            scores = repeat_last(scores, score[..., None], own[..., None])
        told = {"scores": scores, "values": values}
        if context.num_steps > begin:
            context.cache_entries[self._key] = CacheEntry(None, told)
        return told

    def _score(self, context: Context, values: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Log-odds ``[*batch]`` of a step, and which sequences took it."""
        starts = context.step_starts[..., step] - context.prompt_lengths
        ends = context.ends[..., step] - context.prompt_lengths
        taken = ends > starts
        if self.over == "answer":
            return self._answer_log_odds(context, values, step), taken
        begins = starts if self.over == "step" else torch.zeros_like(starts)
        over = "mean" if self.over == "step" else self.over
        column = torch.arange(values.shape[-1], device=values.device)
        width = int((ends - begins).max()) if ends.numel() else 0
        own = values.gather(-1, (begins[..., None] + column[:width]).clamp(max=max(0, values.shape[-1] - 1)))
        own = torch.where(column[:width] < (ends - begins)[..., None], own, 0.0)
        score = self._log_odds(reduced(own, ends - begins, over, self.window))
        if self.threshold is not None and self.window is not None:  # no window is full, and one may still be
            score = torch.where((ends < self.window) & ~done_at(context)[..., step], torch.inf, score)
        return score, taken

    def _answer_log_odds(self, context: Context, values: Tensor, step: int) -> Tensor:
        finished, cut = finished_at(context)[..., step], cut_at(context)[..., step]
        waiting = torch.where(cut, -torch.inf, torch.inf).to(values.device)
        if not bool(finished.any()):
            return waiting
        found, has = self._answers(context, values)
        judged = torch.where(has, self._log_odds(found), -torch.inf)
        return torch.where(finished, judged, waiting)

    def _answers(self, context: Context, values: Tensor) -> tuple[Tensor, Tensor]:
        """The mean ``[*batch]`` over the tokens of the answers, and which sequences have one."""
        places = answer_places(context, values.shape[-1])
        size = places.sum(-1)
        return torch.where(places, values, 0.0).sum(-1) / size.clamp(min=1), size > 0

    def _log_odds(self, c: Tensor) -> Tensor:
        """Of the score, from C."""
        if self.threshold is not None:
            least = torch.as_tensor(self.threshold, dtype=torch.float64, device=c.device)
            if least.dim() > c.dim() or any(a not in (1, b) and b != 1 for a, b in zip(least.shape[::-1], c.shape[::-1], strict=False)):
                raise ValueError(
                    f"threshold must be a number, or one for each problem of the plate, got {tuple(least.shape)} of them for solutions "
                    f"{tuple(c.shape)}"
                )
            return torch.where((c.exp() if self.kind in _GEOMETRIC else c) >= least, torch.inf, -torch.inf).float()
        if self.kind in _GEOMETRIC:
            c = c.clamp(max=0.0)
            return (c - torch.log(-torch.expm1(c))).float()
        if self.kind == "margin":
            return (c.log() - torch.log1p(-c)).float()
        return c.clamp(min=0.0).log().float()

    def _values(self, context: Context, before: Context, tokens: Tensor) -> Tensor:
        """The figure ``[*batch, M]`` in float64 of the tokens of a step."""
        lm: Any = language_model(before)
        if self.kind != "log-prob" and not isinstance(lm, AutoregressiveLM):
            raise ValueError(f"kind={self.kind!r} needs the logits of a local language model, which {type(lm).__name__} does not give")
        found = kept(context, self._figure, before.lengths, tokens)
        known = torch.zeros_like(before.done) if found is None else found[1]
        values = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device) if found is None else found[0]
        if bool((known | (tokens == PAD).all(-1)).all()):
            return values
        rest = replace(before, done=before.done | known)
        scored = lm.token_values(rest, torch.where(known[..., None], PAD, tokens), self._figure)
        return torch.where(known[..., None], values, scored)


def split_step(context: Context, step: int) -> tuple[Context, Tensor]:
    """The context before a step, and the step's tokens ``[*batch, M]`` padded with ``PAD``."""
    starts, ends = context.step_starts[..., step], context.ends[..., step]
    width = max(1, int((ends - starts).max()))
    column = starts[..., None] + torch.arange(width, device=starts.device)
    tokens = context.tokens.gather(-1, column.clamp(max=context.tokens.shape[-1] - 1))
    before = replace(context.before(step), cache_entries=context.cache_entries)  # the passes over both are the same
    return before, torch.where(column < ends[..., None], tokens, PAD)


def _grown(values: Tensor, place: Tensor, new: Tensor, real: Tensor) -> Tensor:
    """Figures ``[*batch, W]`` with those of a step ``[*batch, M]`` at its places."""
    width = max(values.shape[-1], int(torch.where(real, place + 1, 0).max()))
    grown = torch.nn.functional.pad(values, (0, width - values.shape[-1] + 1))
    return grown.scatter(-1, torch.where(real, place, width), torch.where(real, new, 0.0))[..., :width]
