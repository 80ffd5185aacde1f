"""Every particle of a population at every step, as numbers and texts to draw."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..particles.history import ResamplingRecord, Site
from ..particles.pytree import map_objects
from .populations import Population

Describe = Callable[[str, Tensor], str]
"""Name and value ``[*event]`` of a latent site of one particle, in words."""
Answer = Callable[[Any], Hashable]
"""What the model returned for one particle, reduced to what particles agree or differ in."""

_SHORT = 8


@dataclass(frozen=True)
class Genealogy:
    """One column for each segment between barriers, C in all, with N particles; and the N particles of the posterior after it.

    What was not known is nan, or ``None`` for a whole tensor.

    :ivar Tensor parents: ``[C - 1, N]``: particle in the column before.
    :ivar Tensor log_weights: ``[C, N]`` before the column's barrier.
    :ivar Tensor log_factors: ``[C, N]``: what the observed sites of the segment added to the log-likelihood.
    :ivar Tensor scores: ``[C, N]``: mean of what observed sites say of a particle.
    :ivar Tensor done: ``[C, N]``: particles that had finished at the barrier.
    :ivar Tensor ess: ``[C]``.
    :ivar Tensor resampled: ``[C]``.
    :ivar Tensor log_evidence: ``[C]``, ``None`` where the mean weight is no estimate of it.
    :ivar list texts: ``[C][N]``.
    :ivar Tensor column: ``[N]`` in which each particle of the posterior lived last.
    :ivar Tensor particle: ``[N]``: its particle there.
    :ivar Tensor weights: ``[N]`` of the particles of the posterior, normalised.
    :ivar list answers: ``[N]``, ``None`` where the model gives none.
    :ivar list last_texts: ``[N]`` of the particles of the posterior, where none are known by columns.
    """

    parents: Tensor
    log_weights: Tensor
    log_factors: Tensor
    scores: Tensor
    done: Tensor
    ess: Tensor
    resampled: Tensor
    log_evidence: Tensor | None
    texts: list[list[str]]
    column: Tensor
    particle: Tensor
    weights: Tensor
    answers: list[Hashable] | None
    last_texts: list[str] | None

    @classmethod
    def of(cls, population: Population, describe: Describe | None = None, answer: Answer | None = None, texts: bool = True) -> Genealogy:
        """
        :param describe: sites in words; by default by the ``describe(value)`` method of an object in what the model returned.
        :param answer: by default the ``answers()`` method of what the model returned for a particle.
        :param bool texts: whether to describe the sites at all.
        """
        posterior, history = population.posterior, population.posterior.history
        n, like = posterior.num_particles, posterior.particles.weights.log_weights
        steps = list(history.records)
        open_end = not steps or any(site.barriers == len(steps) for site in history.sites)
        if open_end:  # the last segment has no barrier
            none = torch.zeros_like(posterior.particles.weights.log_mean, dtype=torch.bool)
            own = torch.arange(n).view(-1, *(1,) * (like.dim() - 1)).expand_as(like)
            steps.append(ResamplingRecord(posterior.particles.weights.ess, own, none, like, posterior.particles.log_likelihood))

        def stacked(tensors: list[Tensor | None]) -> Tensor:
            nan = torch.full((n,), torch.nan, dtype=torch.float64)
            return torch.stack([nan if tensor is None else population.of_particles(tensor).cpu().double() for tensor in tensors])

        parents = torch.stack([population.of_particles(step.ancestors).cpu() for step in steps])[:-1]
        log_weights = stacked([step.log_weights for step in steps])
        cumulative = stacked([None if posterior.particles.log_likelihood is None else step.log_likelihood for step in steps])
        before = torch.cat([torch.zeros(1, n).double(), cumulative[:-1].gather(1, parents)])
        log_n = torch.tensor(float(n)).double().log()
        return cls(
            parents=parents,
            log_weights=log_weights,
            log_factors=torch.where(before == -torch.inf, 0.0, cumulative - before),
            scores=_scores(population, len(steps)),
            done=torch.nan_to_num(stacked([step.done for step in steps])).bool(),
            ess=torch.stack([population.own(step.ess).cpu() for step in steps]),
            resampled=torch.stack([population.own(step.resampled).cpu() for step in steps]),
            log_evidence=log_weights.logsumexp(1) - log_n if population.evidence else None,
            texts=_texts(population, history.sites, len(steps), describe) if texts else [[""] * n for _ in steps],
            column=population.of_particles(history.barriers).cpu(),
            particle=population.of_particles(history.particle).cpu(),
            weights=population.of_particles(posterior.particles.weights.normalized).cpu(),
            answers=answers_of(population, answer),
            last_texts=_last_texts(population, describe) if texts and not history.sites else None,
        )

    @property
    def num_columns(self) -> int:
        return len(self.texts)

    @property
    def num_particles(self) -> int:
        return self.weights.shape[0]

    @property
    def normalized(self) -> Tensor:
        """``[C, N]``: weights of each column; nan where they are not known."""
        return self.log_weights.softmax(1)

    @property
    def finished_before(self) -> Tensor:
        """``[C, N]``: particles that had finished before the segment, and did nothing in it."""
        return torch.cat([torch.zeros(1, self.num_particles).bool(), self.done[:-1].gather(1, self.parents)])

    def trimmed(self) -> Genealogy:
        """Without the columns at the end in which nothing happens: every particle had finished, and none was resampled."""
        last, column, particle = self.num_columns - 1, self.column, self.particle
        idle = self.finished_before.all(1)
        while last > 0 and bool(idle[last]) and not bool(self.resampled[last]):
            here = column == last
            particle = torch.where(here, self.parents[last - 1][particle], particle)
            last, column = last - 1, torch.where(here, last - 1, column)
        kept = slice(last + 1)
        return replace(
            self,
            parents=self.parents[:last],
            log_weights=self.log_weights[kept],
            log_factors=self.log_factors[kept],
            scores=self.scores[kept],
            done=self.done[kept],
            ess=self.ess[kept],
            resampled=self.resampled[kept],
            log_evidence=None if self.log_evidence is None else self.log_evidence[kept],
            texts=self.texts[kept],
            column=column,
            particle=particle,
        )

    @property
    def offspring(self) -> Tensor:
        """``[C, N]``: particles of the posterior that descend from each particle."""
        count = torch.zeros(self.num_columns, self.num_particles, dtype=torch.long)
        count.index_put_((self.column, self.particle), torch.ones_like(self.particle), accumulate=True)
        for c in range(self.num_columns - 1, 0, -1):
            count[c - 1].index_add_(0, self.parents[c - 1], count[c])
        return count

    @property
    def alive(self) -> Tensor:
        """``[C, N]``: particles with any."""
        return self.offspring > 0

    @property
    def rows(self) -> Tensor:
        """``[C, N]``: the row in which to draw each particle, so that no two lines of descent cross."""
        rows = [torch.arange(self.num_particles)]
        for parents in self.parents:
            rows.append(rows[-1][parents].argsort(stable=True).argsort())
        return torch.stack(rows)

    @property
    def last_rows(self) -> Tensor:
        """``[N]``: the same for the particles of the posterior."""
        return self.rows[self.column, self.particle].argsort(stable=True).argsort()


def answers_of(population: Population, answer: Answer | None) -> list[Hashable] | None:
    """``[N]``: the answer of each particle of the posterior."""
    posterior = population.posterior
    particles = (posterior.particle((n, *population.index)) for n in range(posterior.num_particles))
    if answer is not None:
        return [answer(particle) for particle in particles]
    found = [particle.answers() if callable(getattr(particle, "answers", None)) else None for particle in particles]
    return None if all(each is None for each in found) else found


def _scores(population: Population, num_columns: int) -> Tensor:
    found: list[list[Tensor]] = [[] for _ in range(num_columns)]
    for site in population.posterior.history.sites:
        if site.score is not None:
            score = population.value(site.score).cpu().double()
            found[site.barriers].append(score.reshape(len(score), -1).mean(1))
    nan = torch.full((population.posterior.num_particles,), torch.nan, dtype=torch.float64)
    return torch.stack([torch.stack(column).mean(0) if column else nan for column in found])


def _texts(population: Population, sites: Iterable[Site], num_columns: int, describe: Describe | None) -> list[list[str]]:
    describe = describe or _describer(population)
    n = population.posterior.num_particles
    parts: list[list[list[tuple[str, str]]]] = [[[] for _ in range(n)] for _ in range(num_columns)]
    for site in sites:
        if site.value is not None:
            for particle, value in enumerate(population.value(site.value).cpu()):
                parts[site.barriers][particle].append((site.name, describe(site.name, value)))
    return [[_joined(found) for found in column] for column in parts]


def _last_texts(population: Population, describe: Describe | None) -> list[str]:
    sites = (Site(name, value, None, 0) for name, value in population.posterior.sites.items())
    return _texts(population, sites, 1, describe)[0]


def _joined(found: list[tuple[str, str]]) -> str:
    """Names only where there is something to tell apart."""
    return found[0][1] if len(found) == 1 else "\n".join(f"{name} = {text}" for name, text in found if text)


def own_words(population: Population) -> Callable[[Tensor], str | None] | None:
    """The method ``describe(value)`` of an object in what the model returned."""
    found: list[Any] = []
    map_objects(population.posterior.value, found.append)
    return next((item.describe for item in found if callable(getattr(item, "describe", None))), None)


def _describer(population: Population) -> Describe:
    able = own_words(population)

    def describe(name: str, value: Tensor) -> str:
        text = able(value) if able is not None else None
        return plain(value) if text is None else text

    return describe


def plain(value: Tensor) -> str:
    """A tensor in a few characters."""
    if value.numel() > _SHORT:
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    items = [f"{item:.4g}" if isinstance(item, float) else str(item) for item in value.flatten().tolist()]
    return items[0] if value.dim() == 0 else f"[{', '.join(items)}]"
