"""The solutions of a posterior to one problem, step by step, over all of its parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .genealogy import Answer, Describe, answers_of, own_words, plain
from .populations import Population
from .viewable import Viewable

Low = tuple[int, str, float, Hashable]
"""Number of a step, its text, its score, and the answer that it leads to."""


@dataclass
class Solutions:
    """The M particles of a posterior, those of its parts one after the other.

    :ivar list weights: ``[M]``, normalised.
    :ivar list answers: ``[M]``.
    :ivar list steps: ``[M]`` texts of the steps of each, without those that it did not take.
    :ivar list scores: ``[M]`` scores of these steps.
    :ivar list origins: ``[M]`` what tells independent ones apart: part and ancestor at the first step.
    :ivar list parts: for each part of the posterior the numbers of its particles.
    :ivar bool known: whether anything is known of steps.
    :ivar bool scored: whether any score is.
    :ivar bool rewarded: whether anything was observed, as far as is known.
    :ivar bool independent: whether particles of different origin are independent.
    """

    weights: list[float]
    answers: list[Hashable]
    steps: list[tuple[str, ...]] = field(default_factory=list)
    scores: list[tuple[float | None, ...]] = field(default_factory=list)
    origins: list[Hashable] = field(default_factory=list)
    parts: list[range] = field(default_factory=list)
    known: bool = False
    scored: bool = False
    rewarded: bool = False
    independent: bool = True
    _lineages: list[tuple[int, list[int], list[int], bool]] = field(default_factory=list)
    _lost: list[tuple[int, str, float]] = field(default_factory=list)

    def add(self, number: int, population: Population, describe: Describe | None) -> None:
        """The particles of a part that is no pool.

        :param int number: tells it from others.
        """
        posterior, begin = population.posterior, len(self.steps)
        n, particles = posterior.num_particles, posterior.particles
        text_of: Callable[[str, Tensor], str | None] = describe or _step_text(population)
        lineages = [population.of_particles(lineage).tolist() for lineage in particles.lineages()]
        resampled = any(bool(population.own(record.resampled)) for record in particles.records)
        moved = posterior.unit == "stage" or any(record.move_rate is not None for record in particles.records)
        alive = [{lineage[i] for i in range(n) if self.weights[begin + i] > 0} for lineage in lineages]
        texts: list[list[str]] = [[] for _ in range(n)]
        scores: list[list[float | None]] = [[] for _ in range(n)]
        barriers: list[int] = []
        said: list[str] = []
        for site in particles.sites:
            own = lineages[site.barriers]
            if site.value is not None:
                each_said = _spread([text_of(site.name, value) for value in population.value(site.value).cpu()], n)
                if any(text is None for text in each_said):
                    continue
                said = [str(text) for text in each_said]
                barriers.append(site.barriers)
                for i in range(n):
                    texts[i].append(said[own[i]])
                    scores[i].append(None)
            if site.score is not None and barriers:
                numbers = population.value(site.score).double().cpu()
                each = _spread(numbers.reshape(len(numbers), -1).mean(1).tolist(), n)
                for i in range(n):
                    scores[i][-1] = None if math.isnan(each[own[i]]) else each[own[i]]
                self.scored = self.scored or any(not math.isnan(score) for score in each)
                if barriers[-1] == site.barriers:
                    gone = (k for k in range(n) if k not in alive[site.barriers] and not math.isnan(each[k]))
                    self._lost += [(len(barriers), said[k], each[k]) for k in gone]
        self.known = self.known or bool(barriers)
        likelihood = particles.log_likelihood
        observed = posterior.estimates_posterior if likelihood is None else bool((likelihood != 0).any())
        self.rewarded = self.rewarded or self.scored or observed
        for i in range(n):
            length = max((t + 1 for t, text in enumerate(texts[i]) if text), default=0)
            self.steps.append(tuple(texts[i][:length]))
            self.scores.append(tuple(scores[i][:length]))
            self.origins.append((number, lineages[0][i]))
            self._lineages.append((number, [lineage[i] for lineage in lineages], barriers, resampled and not moved))

    def common_steps(self, n: int, m: int) -> int | None:
        """Steps that two particles have from a common ancestor; ``None`` where nothing was resampled, moves may have
        rewritten it, or they are of different parts."""
        (part, one, barriers, resampled), (other_part, other, _, _) = self._lineages[n], self._lineages[m]
        if part != other_part or not resampled:
            return None
        alike = next((c for c, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
        return sum(barrier < alike for barrier in barriers)

    def disliked(self, given: Sequence[Hashable], counted: Sequence[int]) -> tuple[list[Low], Low | None]:
        """Steps of the solutions that count, the least score first, and the least of those that died out. A score of 1 is no dislike: a
        reward of whole answers has it for the steps before.

        :param given: the answer of each particle.
        """
        low: dict[tuple[str, ...], tuple[float, dict[Hashable, float]]] = {}
        for n in counted:
            for t, score in enumerate(self.scores[n]):
                if score is not None and score < 1:
                    _, leads = low.setdefault(self.steps[n][: t + 1], (score, {}))
                    leads[given[n]] = leads.get(given[n], 0.0) + max(self.weights[n], 1e-300)
        found: list[Low] = [
            (len(steps), steps[-1], score, max(leads, key=lambda answer: leads[answer])) for steps, (score, leads) in low.items()
        ]
        found.sort(key=lambda each: (each[2], each[0], each[1]))
        lost = min((each for each in self._lost if each[2] < 1), key=lambda each: (each[2], each[0], each[1]), default=None)
        return found, None if lost is None else (*lost, None)


def _spread(values: list[Any], n: int) -> list[Any]:
    """``[N]``, of what all particles share as well."""
    return values * n if len(values) == 1 else values


def _step_text(population: Population) -> Callable[[str, Tensor], str | None]:
    """What a site says, and its name where that is a number only; ``None`` for what is no step of a model with words of its own."""
    able = own_words(population)

    def text(name: str, value: Tensor) -> str | None:
        return f"{name} = {plain(value)}" if able is None else able(value)

    return text


def _unpooled(posterior: Viewable) -> Iterator[Viewable]:
    if not posterior.parts:
        yield posterior
    for part in posterior.parts:
        yield from _unpooled(part)


def solutions_of(posterior: Viewable, plate: tuple[int, ...], describe: Describe | None, answer: Answer | None) -> Solutions:
    """Of the problem at an index of the independent plates.

    :raises TypeError: for a model without answers, if none is given.
    """
    whole = Population({}, posterior, plate)
    answers = answers_of(whole, answer)
    first = posterior.particle((0, *whole.index))
    if answers is None and answer is None and not callable(getattr(first, "answers", None)):
        raise TypeError(
            f"explain() needs a model that returns its context, this one returned {type(first).__name__}; give answer=function, of what it "
            "returned for a particle"
        )
    weights: Tensor = whole.of_particles(posterior.particles.weights.normalized)
    found = Solutions(torch.nan_to_num(weights).double().cpu().tolist(), answers or [None] * posterior.num_particles)
    number = itertools.count()
    for part in posterior.parts or [posterior]:
        begin = len(found.steps)
        for own in _unpooled(part):
            found.add(next(number), Population({}, own, plate), describe)
        found.parts.append(range(begin, len(found.steps)))
    method = getattr(posterior, "method", "")
    found.independent = posterior.estimates_posterior or method == "self-consistency"
    return found
