"""The populations of a posterior, each with its own genealogy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .viewable import Viewable


@dataclass(frozen=True)
class Population:
    """N particles that compete with each other.

    :ivar dict place: where it is, e.g. ``{"problem": 2, "island": 0}``; empty if it is the only one.
    :ivar ParticlePosterior posterior: that it belongs to.
    :ivar tuple plate: index of each independent plate.
    :ivar bool evidence: whether its mean weight estimates the evidence.
    """

    place: dict[str, int]
    posterior: Viewable
    plate: tuple[int, ...]
    evidence: bool = True

    @property
    def label(self) -> str:
        return ", ".join(f"{name} {number}" for name, number in self.place.items())

    @property
    def index(self) -> tuple[int, ...]:
        """An index for each level of ``max_plate_nesting``, 0 where a level is no independent plate."""
        posterior, picked = self.posterior, iter(self.plate)
        levels = range(-posterior.particles.nesting, 0)
        return tuple(next(picked) if dim in posterior.particles.plate_dims else 0 for dim in levels)

    def of_particles(self, tensor: Tensor) -> Tensor:
        """``[N]`` of ``[N, *plates]``."""
        for i in self.index:
            tensor = tensor[:, min(i, tensor.shape[1] - 1)]
        return tensor

    def own(self, tensor: Tensor) -> Tensor:
        """A number of ``[*plates]``."""
        for i in self.index:
            tensor = tensor[min(i, tensor.shape[0] - 1)]
        return tensor

    def value(self, tensor: Tensor) -> Tensor:
        """``[N, *shared plates, *event]`` of a site's ``[N, *batch, *event]``: all elements of a plate that the population shares."""
        kept = 1
        for level, i in enumerate(self.index):
            dim = level - len(self.index)
            if dim in self.posterior.particles.plate_dims:
                tensor = tensor.select(kept, min(i, tensor.shape[kept] - 1))
            else:
                kept += 1
        return tensor


def populations(posterior: Viewable) -> list[Population]:
    """All of them: islands and iterations of chains apart, then plate by plate."""
    return list(_within(posterior, {}, True))


def _within(posterior: Viewable, place: dict[str, int], evidence: bool) -> Iterator[Population]:
    if posterior.parts:
        for number, part in zip(posterior.part_numbers, posterior.parts, strict=True):
            yield from _within(part, {**place, posterior.part_name: number}, evidence and posterior.unbiased)
        return
    shape = tuple(posterior.log_weights.shape[1:])
    for plate in itertools.product(*map(range, shape)):
        names = plate_names(len(shape))
        yield Population({**dict(zip(names, plate, strict=True)), **place}, posterior, plate, evidence and _has_evidence(posterior))


def _has_evidence(posterior: Viewable) -> bool:
    return posterior.estimates_posterior and posterior.no_evidence is None


def plate_names(count: int) -> list[str]:
    """Names of independent plates in tables and titles."""
    return ["problem"] if count == 1 else [f"problem_{level}" for level in range(count)]


def one(posterior: Viewable, plate: int | tuple[int, ...] | None, what: str) -> Population:
    """The population at a plate index.

    :param plate: may be left out where there is only one.
    :param str what: is to be shown, for the error.
    :raises ValueError: if there are several and none was named, or there is none such.
    """
    if posterior.parts:
        where, name = posterior.parts_at, posterior.part_name
        several = f"{name}{'es' if name.endswith('ch') else 's'}"
        raise ValueError(
            f"this posterior pools {len(posterior.parts)} {several}, each with {what} of its own: take one of posterior.{where}, e.g. "
            f"posterior.{where}[0]; to_html shows all of them"
        )
    given = plate_index(posterior, plate)
    return Population(dict(zip(plate_names(len(given)), given, strict=True)), posterior, given, _has_evidence(posterior))


def plate_index(posterior: Viewable, plate: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """An index for each independent plate.

    :raises ValueError: for anything else.
    """
    shape = tuple(posterior.log_weights.shape[1:])
    given = () if plate is None else (plate,) if isinstance(plate, int) else tuple(plate)
    if len(given) != len(shape) or any(not 0 <= i < size for i, size in zip(given, shape, strict=True)):
        example = 0 if len(shape) == 1 else (0,) * len(shape)
        several = f"a population for each index of its plates {shape}: pass e.g. plate={example!r}"
        wanted = several if shape else "a single one: leave plate out"
        raise ValueError(f"{'' if plate is None else f'plate={plate!r} names no population; '}this posterior has {wanted}")
    return given
