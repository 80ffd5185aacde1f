"""Deliberately wrong adaptive budgets: more of the table of tests/helpers/mutants.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ppl_llm.inference import Adaptive, AdaptivePosterior
from ppl_llm.inference.adaptive.adaptive_run import AdaptiveRun
from ppl_llm.inference.posterior.votes import Votes
from tests.helpers.mutants import mutant

_JOINT = "tests/inference/adaptive/test_joint_distribution.py::test_rejects_wrong_draws"
_PLACES = "tests/inference/adaptive/test_problems.py::test_rejects_places_that_are_kept"


class _Wrong(Adaptive):
    made: type[AdaptiveRun]

    def start(self, args: tuple[Any, ...], kwargs: dict[str, Any], listed: bool) -> AdaptiveRun:
        return self.made(self.options, args, kwargs, listed)


class _LastBatch(AdaptiveRun):
    def votes(self, num_batches: int) -> Votes:
        return super().votes_of(self.batches[num_batches - 1])


@mutant("the rule sees the last batch alone", _JOINT)
class SeesLastBatch(_Wrong):
    """Counts are those of the last batch; the votes of the batches before are forgotten."""

    made = _LastBatch


class _AgainstAll(AdaptiveRun):
    def votes(self, num_batches: int) -> Votes:
        votes = super().votes(num_batches)
        first = next(iter(votes.counts), None)
        others = tuple({given if given == first else "another": share for given, share in each.items()} for each in votes.shares)
        return Votes(others, votes.log_weights)


@mutant("the leader against all others together", _JOINT)
class AgainstAll(_Wrong):
    """The second count is that of all other answers together."""

    made = _AgainstAll


class _Foresight(AdaptiveRun):
    """Draws a batch ahead."""

    def run(self) -> AdaptivePosterior:
        until = self.options.until
        states: list[AdaptivePosterior] = []
        self.options = replace(self.options, until=lambda posterior: bool(states.append(posterior)))  # type: ignore[func-returns-value]
        final = super().run()
        for state, ahead in zip(states, [*states[1:], final], strict=True):
            if until(ahead):
                return state
        return final


@mutant("a stop decided on the batch to come", _JOINT)
class DecidesAhead(_Wrong):
    """The next batch is on its way when the rule is asked, and the rule sees it; the answer does not."""

    made = _Foresight


class _WholeBatches(AdaptiveRun):
    def next_size(self) -> int:
        return self.options.batch if self.drawn < self.options.max_particles else 0


@mutant("a last batch beyond the budget", _JOINT)
class WholeBatches(_Wrong):
    """Batches of the same size to the end."""

    made = _WholeBatches


@mutant("places that are kept", _PLACES)
class KeepsPlaces(Adaptive):
    """Problems in lockstep: those that fill the batch run together, and the next begin when the last of them has stopped."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        together = max(1, self.max_sequences // self.options.batch)
        problems = args[0]
        chunks = [problems[i : i + together] for i in range(0, len(problems), together)]
        return [found for chunk in chunks for found in super(KeepsPlaces, self).run(chunk, *args[1:], **kwargs)]


WRONG_DRAWS: dict[str, type[Adaptive]] = {
    "last batch": SeesLastBatch,
    "against all": AgainstAll,
    "ahead": DecidesAhead,
    "whole batches": WholeBatches,
}
WRONG_PLACES: dict[str, type[Adaptive]] = {"kept": KeepsPlaces}
