"""Errors of inference. An error raised in the middle of a run carries what was computed as ``partial_posterior`` (``None`` before the
first barrier)."""

from __future__ import annotations


class SMCFailed(ValueError):
    """Every particle of a population has weight zero.

    :ivar str site: the site after which the population was dead.
    :ivar tuple problem: plate indices of the dead population, ``()`` without plates.
    """

    def __init__(self, site: str, problem: tuple[int, ...], num_particles: int) -> None:
        self.site, self.problem = site, problem
        where = f" for problem {problem[0] if len(problem) == 1 else problem}" if problem else ""
        super().__init__(
            f"all {num_particles} particles have weight zero after site {site!r}{where}: none satisfies what is observed there. "
            "Use more particles, a proposal that proposes satisfying values, or a softer factor."
        )


class AuditError(AssertionError):
    """Log-probabilities of the replayed genealogy differ from those that the sweep accumulated."""
