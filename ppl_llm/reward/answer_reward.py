"""Rewards of the answer's text as a whole."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..context import Context
from ..inference.cost import count
from ..inference.util.checked import checked
from ..lm.stop_pattern import StopPattern, position_pattern
from .score_cache import Drawn, ScoreCache, cut_at, finished_at, repeat_last, without_end
from .step_texts import answer_text


class AnswerReward(ABC):
    """Base of rewards that judge a problem's answer by its text (a :class:`~ppl_llm.reward.base.RewardModel`).

    The score of a step is that of the whole answer up to it. Finished answers are judged once each; before, a prefix has the score
    ``pending``, which no model was asked for:

    - ``inf``: certainly right until shown otherwise. The factor is exactly 1 under the potentials ``likelihood`` and difference, so that
      the weights wait for the answer and the target is p(x) s_T. The neutral element of :class:`~ppl_llm.ProductReward`.
      Under ``odds`` it would outweigh every score, so that :func:`~ppl_llm.reasoning` refuses it.
    - ``0.0``: even odds. The factor is 1 under the potential ``odds``, whose log-factor is the log-odds themselves. The neutral element of
      :class:`~ppl_llm.SumReward`.
    - another number: log-odds that an unfinished answer will be right. Under the difference potential it drops out of every sequence that
      finishes; one that is cut off before keeps it, where ``inf`` leaves the judgement to the end.

    An answer that is cut before it has come to its end gets -inf, so that it ranks below every finished one: at the model's last step, and
    wherever it is as long as it may be (``max_tokens_completion``, the model's context). The target is p(x) s_T over finished answers.

    With ``partial`` unfinished answers are judged like finished ones, at every step, and those that are cut, too; or up to the end of their
    last word, line or match of a regular expression, so that no part of a word is judged. Before the first of these the score is
    ``pending``.

    :param partial: judge unfinished answers too; ``word``, ``line`` or a regular expression for the part of them up to the last one.
    :param float pending: log-odds of an unfinished answer that is not judged.
    :raises ValueError: if ``pending`` is nan, or ``partial`` no regular expression.
    """

    _drawn: Drawn | None = None
    """What scores were drawn with, which goes with them into a file."""

    @checked
    def __init__(self, *, partial: bool | str = False, pending: float = math.inf) -> None:
        if math.isnan(pending):
            raise ValueError("pending must be log-odds, e.g. inf (certainly right), 0.0 (even) or -1.5, got nan")
        units = isinstance(partial, str) and partial != "token"
        self._position = re.compile(StopPattern(position_pattern(str(partial)))) if units else None
        self.partial, self.pending = bool(partial), pending

    @cached_property
    def _cache(self) -> ScoreCache:
        return ScoreCache(f"scores of {self.label}", self._drawn)

    @property
    def label(self) -> str:
        """Tells it from other rewards: a run is resumed with one of the same label only."""
        return f"{type(self).__name__}(partial={self._position.pattern if self._position else self.partial!r}, pending={self.pending:g})"

    @abstractmethod
    def answer_log_odds(self, answers: Sequence[tuple[str, str]]) -> Tensor:
        """Log-odds ``[A]`` that answers are right.

        :param answers: pairs of problem and answer so far, all different, at least one.
        """

    def _asked(self, context: Context, sequence: int, step: int, text: str, ended: bool) -> str | None:
        """What a step of a flat sequence is judged by; ``None`` for a step that is not judged.

        :param str text: of the answer up to the end of the step.
        :param bool ended: whether that is its end.
        """
        return text if self._position is None or ended else _up_to_last(self._position, text) or None

    def _says_nothing(self, context: Context, sequence: int, step: int, asked: str | None) -> bool:
        """Whether a step that was asked about so has no score of its own."""
        return False

    def step_log_odds(self, context: Context) -> Tensor:
        known = self._cache.get(context)
        if known.shape[-1] == context.num_steps:
            return known
        return self._cache.put(context, *self._extended(context, known))

    def concluded_log_odds(self, context: Context) -> Tensor:
        """:meth:`step_log_odds` where no step will follow: an answer without an end that is not judged is certainly wrong."""
        scores = self.step_log_odds(context)
        return scores if self.partial else without_end(scores, context)

    def judged_steps(self, context: Context) -> Tensor:
        """``[*batch, T]``: the steps whose score is a judgement; others have ``pending``."""
        return finished_at(context) | self.partial

    def _extended(self, context: Context, known: Tensor) -> tuple[Tensor, str, Tensor]:
        """The scores of all steps, those after ``known [*batch, S]`` judged, and which of them have one of their own."""
        start, device = known.shape[-1], known.device
        flat = context.lengths.numel()
        taken = context.ends > context.step_starts
        finished = finished_at(context)[..., start:].reshape(flat, -1)
        own = taken[..., start:].reshape(flat, -1)
        judged = own & (finished | self.partial)
        own = own.clone()
        tokens, prompts = context.tokens.reshape(flat, -1).tolist(), context.prompt_lengths.flatten().tolist()
        problems, ends = context.problem_index.flatten().tolist(), context.ends[..., start:].reshape(flat, -1).tolist()
        places: list[tuple[int, int]] = []
        text_of: dict[tuple[int, tuple[int, ...]], str] = {}
        asked: dict[tuple[str, str], int] = {}
        which = []
        ended = finished.tolist()
        for sequence, step in judged.nonzero().tolist():
            ids = tuple(tokens[sequence][prompts[sequence] : ends[sequence][step]])
            key = problems[sequence], ids
            if key not in text_of:
                text_of[key] = answer_text(context, sequence, list(ids))
            text = self._asked(context, sequence, start + step, text_of[key], ended[sequence][step])
            if self._says_nothing(context, sequence, start + step, text):
                own[sequence, step] = False
            if text is None or not own[sequence, step]:
                judged[sequence, step] = False
                continue
            places.append((sequence, step))
            which.append(asked.setdefault((context.problems[problems[sequence]], text), len(asked)))
        new = torch.full(judged.shape, self.pending, dtype=torch.float32, device=device)
        if not self.partial:
            new[cut_at(context)[..., start:].reshape(flat, -1).to(device)] = -math.inf
        if places:
            count(prm_calls=len(places))
            new[judged] = self.answer_log_odds(list(asked)).float().to(device)[which]
        scores = repeat_last(known.reshape(flat, start), new, own.to(device)).view(*context.batch_shape, -1)
        return scores, type(self).__name__, torch.cat([self._cache.scored(context), own.view(*context.batch_shape, -1)], -1)


def _up_to_last(pattern: re.Pattern[str], text: str) -> str:
    """The text up to the end of its last match."""
    end = 0
    for match in pattern.finditer(text):
        end = match.end()
    return text[:end]
