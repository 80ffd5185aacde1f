"""What an audit found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AuditReport:
    """Outcome of a passed audit.

    :ivar float error: largest difference of a site's log-probability between sweep and replay beyond the rounding of float32, in nats.
    :ivar float rounding: largest difference at all.
    :ivar int num_sites: sites compared.
    """

    error: float
    rounding: float
    num_sites: int
