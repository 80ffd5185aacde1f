"""Answers and candidates of posteriors over problems."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..answers.voting import Answer
from ..context import Context
from ..inference import ParticlePosterior
from ..programs.models import ReasoningModel
from ..programs.multi_temperature import SITE
from ..reward.base import scored_steps, step_scores
from ..stop_reason import StopReason
from ..tasks.base import StepChecker
from .aggregators import (
    CERTAIN,
    Candidate,
    Thought,
    best_of_majority_at_k,
    best_of_n,
    majority,
    posterior_majority,
    soft_best_of_n,
    weighted_majority,
)
from .confidence_votes import deepconf_vote


def _first(candidates: Sequence[Candidate], aggregation: str, k: int = 1, frequency: float = 0.1) -> Answer:
    return next(iter(best_of_majority_at_k(candidates, k, frequency, aggregation)), None)


VOTES: dict[str, Callable[..., Answer]] = {
    "majority": lambda candidates, aggregation: majority(candidates),
    "posterior": lambda candidates, aggregation: posterior_majority(candidates),
    "shares": lambda candidates, aggregation: posterior_majority(candidates),
    "best-of-n": best_of_n,
    "weighted": weighted_majority,
    "soft-best-of-n": lambda candidates, aggregation, beta=10.0: soft_best_of_n(candidates, beta, aggregation),
    "best-of-majority": _first,
    "deepconf": lambda candidates, aggregation: deepconf_vote(candidates),
}
"""From candidates, an aggregation and the options of the vote to an answer."""


def submitted(vote: str, candidates: Sequence[Candidate], aggregation: str, **options: Any) -> list[Answer]:
    """The answers of a vote that may give several, best first."""
    if vote == "best-of-majority":
        return best_of_majority_at_k(candidates, options["k"], options["frequency"], aggregation)
    return [VOTES[vote](candidates, aggregation, **options)]


@torch.no_grad()
def candidates(
    model: ReasoningModel,
    posterior: ParticlePosterior | Sequence[ParticlePosterior],
    problem: int,
    answer_scores: bool = False,
    checker: StepChecker | None = None,
) -> list[Candidate]:
    """The particles of one problem.

    :param posterior: of a list of problems, or one for each of them.
    :param int problem: index in that list.
    :param bool answer_scores: ask the reward model for its score of each whole solution, too.
    :param StepChecker checker: of the problem's steps.
    """
    here: tuple[Any, ...]
    if isinstance(posterior, ParticlePosterior):
        found, here = posterior, (..., problem)
        context: Context = found.value.select_plate(1, problem)
    else:
        found, here = posterior[problem], (...,)
        context = found.value
    weights = found.weights[here].tolist()
    scores = None if model.prm is None else step_scores(model.prm, context, context.num_steps >= model.max_steps).cpu()
    whole = model.prm.whole_log_odds(context).tolist() if answer_scores else [None] * len(weights)  # type: ignore[union-attr]
    real = None if model.prm is None else scored_steps(model.prm, context).cpu()
    tokens = (context.lengths - context.prompt_lengths).tolist()
    step_tokens, taken = (context.ends - context.step_starts).tolist(), (context.reasons != StopReason.FINISHED).tolist()
    cut = (context.reasons == StopReason.LENGTH).sum(-1).tolist()
    wrong = [None] * len(weights) if checker is None else [checker.labels(steps).count(False) for steps in context.steps]
    sure = [None] * len(weights) if model.confidence is None else model.confidence.of(found.value)[here].tolist()
    done, finished, thoughts = context.done.tolist(), context.finished.tolist(), _thoughts(context)
    drawn = found.sites.get(SITE)
    temperatures = [1.0] * len(done) if drawn is None else drawn.expand_as(found.log_weights)[here].tolist()
    # Of its own steps: neither of drafts nor of the temperature.
    known = [log_p[here] for name, log_p in found.site_log_probs.items() if name in found.sites and name.startswith("step_")]
    log_probs = torch.stack(known).sum(0).tolist() if known else [None] * len(done)
    return [
        Candidate(
            answer=answer,
            weight=weights[n],
            step_log_odds=() if scores is None or real is None else _scores(scores[n][real[n]]),
            tokens=tokens[n],
            log_prob=log_probs[n],
            finished=finished[n],
            cut=done[n] and not finished[n],
            text=text,
            path=hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
            whole_log_odds=whole[n],
            step_tokens=tuple(itertools.compress(step_tokens[n], taken[n])),
            cut_steps=cut[n],
            temperature=temperatures[n],
            wrong_steps=wrong[n],
            confidence=sure[n],
            thinking=thoughts[n],
        )
        for n, (answer, text) in enumerate(zip(context.answers(), context.text, strict=True))
    ]


def _thoughts(context: Context) -> list[Thought | None]:
    """How each solution thought."""
    if context.thinking is None:
        return [None] * len(context)
    by = [[StopReason(reason) for reason in row] for row in context.reasons.tolist()]
    closed = ["model" if StopReason.CLOSE in row else "bound" if StopReason.BUDGET in row else None for row in by]
    return list(map(Thought, context.thinking_tokens.tolist(), context.waits.tolist(), closed))


def _scores(log_odds: Tensor) -> tuple[float, ...]:
    """Of the steps of a solution, in finite numbers; one without any text is certainly wrong."""
    return tuple(log_odds.clamp(-CERTAIN, CERTAIN).tolist()) or (-CERTAIN,)


def as_record(candidate: Candidate, keep_text: bool = False, temperature: bool = False) -> dict[str, Any]:
    """Plain values; scores to the last digit of float32, so that votes recomputed from them are the same.

    :param bool keep_text: with the text of the solution.
    :param bool temperature: with its temperature, where solutions of a run have different ones.
    """
    known = {
        "log_prob": (candidate.log_prob, ".6g"),
        "whole_log_odds": (candidate.whole_log_odds, ".9g"),
        "confidence": (candidate.confidence, ".9g"),
    }
    return {
        "answer": candidate.answer,
        "weight": float(f"{candidate.weight:.6g}"),
        "log_odds": [_finite(z, ".9g") for z in candidate.step_log_odds],
        "tokens": candidate.tokens,
        "finished": candidate.finished,
        "path": candidate.path,
        **({} if candidate.step_tokens is None else {"steps": list(candidate.step_tokens), "cut_steps": candidate.cut_steps}),
        **({} if candidate.thinking is None else {"thinking": candidate.thinking._asdict()}),
        **({"cut": True} if candidate.cut else {}),
        **({"text": candidate.text} if keep_text else {}),
        **({"temperature": candidate.temperature} if temperature else {}),
        **({} if candidate.wrong_steps is None else {"wrong_steps": candidate.wrong_steps}),
        **{name: _finite(value, digits) for name, (value, digits) in known.items() if value is not None},
    }


def _finite(value: float, digits: str) -> float:
    return float(format(min(max(value, -1e300), 1e300), digits))


def from_record(record: dict[str, Any], temperature: float = 1.0) -> Candidate:
    """The reverse of :func:`as_record`.

    :param float temperature: of the run, which a record does not repeat.
    """
    return Candidate(
        record["answer"],
        record["weight"],
        tuple(record["log_odds"]),
        record["tokens"],
        record.get("log_prob"),
        record["finished"],
        temperature=record.get("temperature", temperature),
        path=record["path"],
        whole_log_odds=record.get("whole_log_odds"),
        confidence=record.get("confidence"),
        text=record.get("text"),
        step_tokens=tuple(record["steps"]) if "steps" in record else None,
        cut_steps=record.get("cut_steps", 0),
        wrong_steps=record.get("wrong_steps"),
        thinking=Thought(**record["thinking"]) if "thinking" in record else None,
        cut=record.get("cut", False),
    )


def fingerprint(values: Any) -> str:
    """A short hash of plain values."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
