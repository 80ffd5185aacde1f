"""Weights of candidates that depend on the answers of all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..particles.weights import Weights
from ..posterior.equivalence_classes import Equivalent, alike
from ..posterior.particle_posterior import ParticlePosterior
from ..posterior.search_posterior import SearchPosterior
from ..util.validation import check_function

Rule = Callable[[Sequence[Hashable], tuple[int, ...]], Tensor]
"""From the answers of a population, and its index at every level of ``max_plate_nesting``, to log-weights ``[N]``."""


def own_answer(value: Any) -> Hashable:
    """
    :raises TypeError: for a particle whose value has no ``answers()``.
    """
    if not callable(getattr(value, "answers", None)):
        raise TypeError(
            f"votes need an answer of each particle, and this model returns {type(value).__name__}, which has no answers(): give "
            "answer=function, which makes an answer of it"
        )
    given: Hashable = value.answers()
    return given


def answer_function(answer: Callable[[Any], Hashable] | None, equivalent: Equivalent | None) -> Callable[[Any], Hashable]:
    """What makes an answer of a particle's value, by default :func:`own_answer`.

    :raises ValueError: if one of the two is given and no function.
    """
    check_function("answer", answer)
    check_function("equivalent", equivalent)
    return answer or own_answer


def answers_at(
    found: ParticlePosterior, index: tuple[int, ...], answer: Callable[[Any], Hashable], equivalent: Equivalent | None
) -> list[Hashable]:
    """``[N]`` of a population, those that count as the same under their representative."""
    return alike([answer(found.particle((n, *index))) for n in range(found.num_particles)], equivalent)


def with_weights_of_answers(
    found: ParticlePosterior, answer: Callable[[Any], Hashable], equivalent: Equivalent | None, rule: Rule, **kwargs: Any
) -> SearchPosterior:
    """The candidates with the weights that a rule gives in each population.

    :param kwargs: of :class:`SearchPosterior`.
    """
    log_weights = found.particles.weights.log_weights.clone()
    for index in itertools.product(*map(range, log_weights.shape[1:])):
        at: tuple[Any, ...] = (slice(None), *index)
        log_weights[at] = rule(answers_at(found, index, answer, equivalent), index).to(log_weights)
    result = SearchPosterior.of(found, Weights(log_weights), decisive=True, **kwargs)
    result.complete, result.audit, result.additive = found.complete, found.audit, False
    return result


def only(chosen: Sequence[int], log_weights: Tensor) -> Tensor:
    """The log-weights ``[N]`` of some candidates; the others have none."""
    kept = torch.full_like(log_weights, -torch.inf)
    kept[list(chosen)] = log_weights[list(chosen)]
    return kept
