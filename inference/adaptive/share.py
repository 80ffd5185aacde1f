"""Stop when one answer has a given share of the votes."""

from __future__ import annotations

from ..posterior.adaptive_posterior import AdaptivePosterior
from ..util.checked import checked
from ..util.validation import check_between
from .stopping_rule import StoppingRule

_ROUNDING = 1e-9


class Share(StoppingRule):
    """The leading answer has at least the share ``least`` of all votes; candidates without an answer count among them.

    With ``doubling=True`` and 0.75 it is the adaptive self-consistency of its_hub: 2, 4, 8, .. samples until three of four agree. A share
    says nothing of how many votes there are, so that the first batch decides how careful the rule is: of two that agree it is 1. Where
    votes have weights there must be two effective ones, since a single one always agrees with itself.

    :param float least: theta, in (0, 1).
    :raises ValueError: for a share out of range.
    """

    @checked
    def __init__(self, least: float = 0.75) -> None:
        check_between("share", least, 0.0, 1.0)
        self.least = float(least)

    def __call__(self, posterior: AdaptivePosterior) -> bool:
        counts, total = posterior.votes.counts, posterior.votes.total
        return bool(counts) and total >= 2 - _ROUNDING and next(iter(counts.values())) >= self.least * total - _ROUNDING

    def __repr__(self) -> str:
        return f"Share({self.least:g})"
