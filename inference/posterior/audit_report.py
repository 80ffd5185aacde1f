"""What an audit found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AuditReport:
    """Outcome of a passed audit.

    :ivar float error: largest difference of a site's log-probability between sweep and replay beyond the rounding of its number format, in
        nats.
    :ivar float rounding: largest difference at all.
    :ivar int num_sites: sites whose log-probabilities were compared.
    :ivar int num_leaves: deterministic sites, and leaves of what the model returned, that were compared.
    :ivar int num_resampled: barriers at which the sweep resampled.
    :ivar int num_permuted: barriers at which the replay permuted the particles; 0 with a single particle, where nothing can be stale.
    """

    error: float
    rounding: float
    num_sites: int
    num_leaves: int
    num_resampled: int
    num_permuted: int
