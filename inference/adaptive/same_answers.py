"""Stop when the last answers are all the same."""

from __future__ import annotations

from ..posterior.adaptive_posterior import AdaptivePosterior
from ..util.checked import checked
from ..util.validation import check_count
from .stopping_rule import StoppingRule


class SameAnswers(StoppingRule):
    """The last ``window`` votes, in the order in which they were drawn, are for one answer.

    With batches of ``window`` candidates this is early-stopping self-consistency [1]: a window without any dissent ends the run. A
    candidate without an answer dissents. Of a vote that is divided, such as a filter's, its largest share counts.

    :param int window: w, at least 2.
    :raises ValueError: for a window out of range.

    References

    [1] *Escape Sky-high Cost: Early-stopping Self-Consistency for Multi-step Reasoning*, Yiwei Li et al. (2024).
    """

    @checked
    def __init__(self, window: int = 5) -> None:
        check_count("window", window, 2)
        self.window = window

    def __call__(self, posterior: AdaptivePosterior) -> bool:
        last = posterior.votes.row[-self.window :]
        return len(last) == self.window and last[0] is not None and all(answer == last[0] for answer in last)

    def __repr__(self) -> str:
        return f"SameAnswers({self.window})"
