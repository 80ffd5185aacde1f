"""Which answers compete, where they part, what spoke against them, and what would turn the vote: from the particles of a posterior."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..posterior.discrete_marginal import DiscreteMarginal
from ..posterior.equivalence_classes import Equivalent, alike
from .explanation import Competitor, Disliked, Explanation, Parting
from .genealogy import Answer, Describe
from .populations import Population
from .solutions import Solutions, solutions_of
from .viewable import Viewable
from .words import lines

SHOWN = 3
"""Steps that are named."""
LEAST_ITERATIONS = 16
"""Of a chain, for a standard error."""
PAIRS = 100
"""Solutions of each answer that are looked at for a common ancestor."""
_ROUNDING = 1e-9


def explain(
    posterior: Viewable,
    plate: tuple[int, ...],
    *,
    describe: Describe | None = None,
    answer: Answer | None = None,
    equivalent: Equivalent | None = None,
) -> Explanation:
    """Of the problem at an index of the independent plates; see :meth:`~ppl_llm.inference.ParticlePosterior.explain`."""
    whole = Population({}, posterior, plate)
    found = solutions_of(posterior, plate, describe, answer)
    given = alike(found.answers, equivalent)
    weights = found.weights
    scores = _own_scores(posterior, whole)
    masses = DiscreteMarginal(zip(given, weights, strict=True)).probs
    by_score = scores is not None and _best_alone(posterior, given, weights, scores)
    order = _order(given, scores) if by_score and scores is not None else [a for a in masses if a is not None]
    competitors = [_competitor(a, masses.get(a, 0.0), given, weights, found, scores if by_score else None) for a in order]
    first, second = [*competitors, None, None][:2]
    counted = range(len(given)) if by_score else [n for n, w in enumerate(weights) if w > 0]
    kind = "scores" if by_score else "exact" if posterior.exact else "posterior" if posterior.estimates_posterior else "votes"
    error, lead_error = _errors(posterior, found, given, first, second) if kind in ("posterior", "votes") else (None, None)
    log_evidence, parts = _evidence(posterior, plate)
    disliked, dropped = found.disliked(given, counted)
    told = Explanation(
        kind=kind,
        competitors=competitors,
        no_answer=masses.get(None, 0.0),
        entropy=math.fsum(-p * math.log(p) for p in masses.values() if p < 1),
        ess=1.0 / s if (s := math.fsum(w * w for w in weights)) > 0 else 0.0,
        num_particles=len(given),
        distinct=len({found.steps[n] for n in counted}) if found.known else 0,
        ancestors=len(posterior.parts) if posterior.iterations else len({found.origins[n] for n in counted}),
        chain=bool(posterior.iterations),
        error=error,
        lead_error=lead_error,
        log_evidence=log_evidence,
        part_log_evidences=parts,
        parting=_parting(found, given, counted, first, second),
        disliked=[Disliked(*each, dropped=False) for each in disliked[:SHOWN]],
        dropped=None if dropped is None or by_score else Disliked(*dropped, dropped=True),
        more_particles=_more(kind, weights, first, second) if getattr(posterior, "additive", True) else None,
        reward_margin=_margin(kind, found, given, first, second, scores),
        unknown=_unknown(posterior, found, kind),
    )
    return replace(told, lines=lines(told))


def _own_scores(posterior: Any, whole: Population) -> list[float] | None:
    """The scores of a search's candidates."""
    scores = getattr(posterior, "scores", None)
    if scores is None:
        return None
    own: list[float] = scores[(slice(None), *whole.plate)].tolist()
    return own


def _best_alone(posterior: Any, given: Sequence[Hashable], weights: Sequence[float], scores: Sequence[float]) -> bool:
    """Whether the best score alone has made the choice, between several answers: not so where a rule counts answers as well, nor where the
    one that was chosen is not the best."""
    chosen = [n for n, w in enumerate(weights) if w > 0]
    if len(chosen) != 1 or not getattr(posterior, "additive", True) or len({a for a in given if a is not None}) < 2:
        return False
    return given[chosen[0]] is not None and scores[chosen[0]] == max(s for s, a in zip(scores, given, strict=True) if a is not None)


def _order(given: Sequence[Hashable], scores: Sequence[float]) -> list[Hashable]:
    """Answers by the best score of their candidates."""
    best: dict[Hashable, float] = {}
    for each, score in zip(given, scores, strict=True):
        if each is not None and score > best.get(each, -math.inf):
            best[each] = score
    return sorted(best, key=lambda each: -best[each])


def _competitor(
    answer: Hashable, probability: float, given: Sequence[Hashable], weights: Sequence[float], found: Solutions, scores: list[float] | None
) -> Competitor:
    own = [n for n, each in enumerate(given) if each == answer]
    rank = weights if scores is None else scores
    stands = max(own, key=lambda n: rank[n])
    return Competitor(answer, probability, sum(weights[n] > 0 for n in own), found.steps[stands], found.scores[stands])


def _parting(
    found: Solutions, given: Sequence[Hashable], counted: Sequence[int], first: Competitor | None, second: Competitor | None
) -> Parting | None:
    if first is None or second is None or not found.known:
        return None
    ones, others = ([n for n in counted if given[n] == each.answer] for each in (first, second))
    prefixes = {found.steps[n][:t] for n in ones for t in range(len(found.steps[n]) + 1)}
    ends = {n: next(t for t in range(len(found.steps[n]), -1, -1) if found.steps[n][:t] in prefixes) for n in others}
    longest = max(ends.values())
    shared = next(found.steps[n][:longest] for n in others if ends[n] == longest)
    # Of the pairs that share as many steps one that has most of them from a common ancestor, the heaviest first.
    with_it = [
        sorted((n for n in own if found.steps[n][:longest] == shared), key=lambda n: -found.weights[n])[:PAIRS] for own in (ones, others)
    ]
    n, m = max(itertools.product(*with_it), key=lambda pair: found.common_steps(*pair) or 0)
    one, other = (found.steps[i][longest] if longest < len(found.steps[i]) else "" for i in (n, m))
    return Parting(longest + 1, shared, one, other, found.common_steps(n, m))


def _errors(
    posterior: Viewable, found: Solutions, given: Sequence[Hashable], first: Competitor | None, second: Competitor | None
) -> tuple[float | None, float | None]:
    """Standard errors of the leader's probability and of its lead.

    Of weighted particles ``sum_g (sum_{n in g} w_n (f_n - mean))^2`` over groups g with a common ancestor: for a filter the estimate of
    Chan & Lai, *A general theory of particle filters in hidden Markov models and some applications* (2013); where nothing is resampled it
    is that of self-normalised importance sampling, and of equal votes p (1 - p) / N. Of a chain, batch means.
    """
    if first is None or not found.independent:
        return None, None
    marks = [[float(a == first.answer) for a in given]]
    if second is not None:
        marks.append([float(a == first.answer) - float(a == second.answer) for a in given])
    estimate = _batch_means if posterior.iterations else _by_ancestor
    errors = [estimate(posterior, found, f) for f in marks]
    return errors[0], errors[1] if second is not None else None


def _by_ancestor(posterior: Viewable, found: Solutions, f: Sequence[float]) -> float | None:
    mean = math.fsum(w * x for w, x in zip(found.weights, f, strict=True))
    groups: dict[Hashable, float] = {}
    for origin, w, x in zip(found.origins, found.weights, f, strict=True):
        groups[origin] = groups.get(origin, 0.0) + w * (x - mean)
    alive = {origin for origin, w in zip(found.origins, found.weights, strict=True) if w > 0}
    return math.sqrt(math.fsum(g * g for g in groups.values())) if len(alive) > 1 else None


def _batch_means(posterior: Viewable, found: Solutions, f: Sequence[float]) -> float | None:
    """Of the square root of the number of iterations as many batches."""
    own: dict[int, float] = {}  # of each iteration; one that kept the state before it is the same object
    for part, members in zip(posterior.parts, found.parts, strict=True):
        weight = math.fsum(found.weights[n] for n in members)
        own[id(part)] = math.fsum(found.weights[n] * f[n] for n in members) / weight if weight else 0.0
    series = [own[id(iteration)] for iteration in posterior.iterations]
    if len(series) < LEAST_ITERATIONS:
        return None
    size = math.isqrt(len(series))
    batches = torch.tensor(series[-(len(series) // size * size) :], dtype=torch.float64).view(-1, size).mean(1)
    return float(batches.std() / math.sqrt(len(batches)))


def _evidence(posterior: Viewable, plate: tuple[int, ...]) -> tuple[float | None, list[float]]:
    try:
        own = float(posterior.log_evidence[plate])
    except ValueError:
        return None, []
    return own, [float(part.log_evidence[plate]) for part in posterior.parts]


def _more(kind: str, weights: Sequence[float], first: Competitor | None, second: Competitor | None) -> int | None:
    """Particles of average weight, or votes, after which the second answer is ahead."""
    if first is None or kind not in ("posterior", "votes"):
        return None
    number = len(weights) if kind == "posterior" else sum(w > 0 for w in weights)
    behind = first.probability - (0.0 if second is None else second.probability)
    return math.floor(number * behind + _ROUNDING) + 1


def _margin(
    kind: str, found: Solutions, given: Sequence[Hashable], first: Competitor | None, second: Competitor | None, scores: list[float] | None
) -> float | None:
    if first is None or second is None:
        return None
    if kind == "scores":
        assert scores is not None
        one, other = (max(s for s, a in zip(scores, given, strict=True) if a == each.answer) for each in (first, second))
        return one - other
    if kind == "votes" or not found.rewarded:
        return None
    return math.log(first.probability / second.probability)


def _unknown(posterior: Viewable, found: Solutions, kind: str) -> list[str]:
    told = []
    if not found.known:
        told.append("where the answers part: nothing is kept of the steps of these solutions")
    if not found.scored:
        why = "no scores of steps were kept" if found.rewarded else "no reward was asked"
        told.append(f"which steps the reward disliked: {why}")
    origins = {origin for origin, w in zip(found.origins, found.weights, strict=True) if w > 0}
    if kind in ("scores", "votes"):
        told.append("a posterior probability: the weights of a search are votes, and there is no evidence")
    elif posterior.iterations and len(posterior.iterations) < LEAST_ITERATIONS:
        told.append(f"a standard error: {len(posterior.iterations)} iterations are too few for one, {LEAST_ITERATIONS} would do")
    elif kind == "posterior" and not posterior.iterations and len(origins) == 1:
        told.append("a standard error: all particles with a weight descend from one of the first step; run more particles or islands")
    return told
