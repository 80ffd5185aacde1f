"""Errors of inference. An error raised in the middle of a run carries what was computed as ``partial_posterior`` (``None`` before the
first barrier)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class SMCFailed(ValueError):
    """Every particle of every population has weight zero. Where some populations live, the others are ``posterior.dead``.

    :ivar str site: the site after which the last population was dead.
    :ivar value: what the model gave to the barrier where that was found out, with the particles that have no weight; ``None`` if it is not
        known.
    """

    def __init__(self, site: str, num_particles: int, num_populations: int) -> None:
        self.site = site
        self.value: Any = None
        where = f" in each of {num_populations} populations" if num_populations > 1 else ""
        super().__init__(
            f"all {num_particles} particles have weight zero after site {site!r}{where}: none satisfies what is observed there, or "
            "its constraint. Use more particles, a proposal that proposes satisfying values, or a softer factor."
        )


class AuditError(AssertionError):
    """Log-probabilities of the replayed genealogy differ from those that the sweep accumulated."""


def attach_partial(error: BaseException, build: Callable[[], Any]) -> None:
    """Give an error of a run what was computed before it. The error of the run is never lost: where the result cannot be built, say since
    a state has no ``concatenate``, ``partial_posterior`` is ``None`` and a note says why.

    :param build: makes the ``partial_posterior``.
    """
    try:
        partial = build()
    except Exception as failure:
        partial = None
        error.add_note(f"partial_posterior is None, because building it gave {type(failure).__name__}: {failure}")
    error.partial_posterior = partial  # type: ignore[attr-defined]
