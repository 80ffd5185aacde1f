"""Errors of inference. An error raised in the middle of a run carries what was computed as ``partial_posterior`` (``None`` before the
first barrier)."""

from __future__ import annotations


class SMCFailed(ValueError):
    """Every particle of every population has weight zero. Where some populations live, the others are ``posterior.dead``.

    :ivar str site: the site after which the last population was dead.
    """

    def __init__(self, site: str, num_particles: int, num_populations: int) -> None:
        self.site = site
        where = f" in each of {num_populations} populations" if num_populations > 1 else ""
        super().__init__(
            f"all {num_particles} particles have weight zero after site {site!r}{where}: none satisfies what is observed there. "
            "Use more particles, a proposal that proposes satisfying values, or a softer factor."
        )


class AuditError(AssertionError):
    """Log-probabilities of the replayed genealogy differ from those that the sweep accumulated."""
