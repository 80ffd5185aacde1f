"""Every algorithm as the tests run it: the columns of test_matrix.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ppl_llm.inference import SMC, Importance, ParticleGibbs, SuffixMH

ALL = "*"


@dataclass(frozen=True)
class Algorithm:
    """An algorithm with few particles: what is wrong shows there.

    :ivar build: from a program and its ``max_plate_nesting``.
    :ivar bool evidence: whether it estimates the evidence; if not, it is a chain.
    :ivar dict run: keywords of ``run``.
    :ivar int replicas: independent runs, in one batch.
    :ivar dict not_for: for a model's name, or ``ALL``, the words of the error it gives.
    """

    build: Callable[[Callable[..., Any], int], Any]
    evidence: bool = True
    run: dict[str, int] = field(default_factory=dict)
    replicas: int = 1000
    not_for: dict[str, str] = field(default_factory=dict)


def chain(build: Callable[[Callable[..., Any], int], Any], num_samples: int = 12, warmup_steps: int = 12, replicas: int = 250) -> Algorithm:
    return Algorithm(build, evidence=False, run={"num_samples": num_samples, "warmup_steps": warmup_steps}, replicas=replicas)


ALGORITHMS: dict[str, Algorithm] = {
    "Importance": Algorithm(lambda model, nesting: Importance(model, 8, max_plate_nesting=nesting)),
    "SMC": Algorithm(lambda model, nesting: SMC(model, 4, max_plate_nesting=nesting)),
    "SMC, multinomial at every barrier": Algorithm(
        lambda model, nesting: SMC(model, 4, resampler="multinomial", ess_threshold=1.0, max_plate_nesting=nesting)
    ),
    "ParticleGibbs": chain(lambda model, nesting: ParticleGibbs(model, 6, max_plate_nesting=nesting)),
    "ParticleGibbs, systematic": chain(
        lambda model, nesting: ParticleGibbs(model, 6, resampler="systematic", ess_threshold=1.0, max_plate_nesting=nesting)
    ),
    "SuffixMH": chain(lambda model, nesting: SuffixMH(model, max_plate_nesting=nesting), 40, 60),
}
