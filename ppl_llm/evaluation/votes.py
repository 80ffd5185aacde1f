"""Answers and candidates of posteriors over problems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..answers import Answer
from ..context import Context, StopReason
from ..inference import ParticlePosterior
from ..models import ReasoningModel
from .aggregators import Candidate, best_of_n, majority, posterior_majority, weighted_majority

VOTES: dict[str, Callable[[Sequence[Candidate], str], Answer]] = {
    "majority": lambda candidates, aggregation: majority(candidates),
    "posterior": lambda candidates, aggregation: posterior_majority(candidates),
    "best-of-n": best_of_n,
    "weighted": weighted_majority,
}


@torch.no_grad()
def candidates(model: ReasoningModel, posterior: ParticlePosterior, problem: int) -> list[Candidate]:
    """The lanes of one problem.

    :param ParticlePosterior posterior: of a list of problems.
    :param int problem: index in that list.
    """
    context: Context = posterior.value.select_plate(1, problem)
    weights = posterior.weights[:, problem].tolist()
    scores = model.prm.step_log_odds(context).cpu()
    real = (context.reasons != StopReason.FINISHED).cpu()
    tokens = (context.lengths - context.prompt_lengths).tolist()
    done = context.done.tolist()
    known = [log_p[:, problem] for name, log_p in posterior.site_log_probs.items() if name in posterior.sites]
    log_probs = torch.stack(known).sum(0).tolist() if known else [None] * len(done)
    return [
        Candidate(
            answer=answer,
            weight=weights[n],
            step_log_odds=tuple(scores[n][real[n]].tolist()),
            tokens=tokens[n],
            log_prob=log_probs[n],
            finished=done[n],
            path=hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
        )
        for n, (answer, text) in enumerate(zip(context.answers(), context.text, strict=True))
    ]


def as_record(candidate: Candidate) -> dict[str, Any]:
    """Plain values; scores to the last digit of float32, so that votes recomputed from them are the same."""
    return {
        "answer": candidate.answer,
        "weight": float(f"{candidate.weight:.6g}"),
        "log_odds": [float(f"{z:.9g}") for z in candidate.step_log_odds],
        "tokens": candidate.tokens,
        "finished": candidate.finished,
        "path": candidate.path,
        **({} if candidate.log_prob is None else {"log_prob": float(f"{candidate.log_prob:.6g}")}),
    }


def from_record(record: dict[str, Any]) -> Candidate:
    """The reverse of :func:`as_record`."""
    return Candidate(
        record["answer"],
        record["weight"],
        tuple(record["log_odds"]),
        record["tokens"],
        record.get("log_prob"),
        record["finished"],
        path=record["path"],
    )


def fingerprint(values: Any) -> str:
    """A short hash of plain values."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
