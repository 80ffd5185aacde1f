"""Searches against plain-Python versions of their published definitions, with the same draws: identical results, problem by problem.

A problem of the plate is a seed: each has draws of its own. Factors are integers, so that sums are exact and ties are frequent.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.inference import (
    DVTS,
    BeamSearch,
)
from ppl_llm.inference.search.beam_search import BeamMessenger
from ppl_llm.inference.search.dvts import SubtreeMessenger
from tests.helpers.searches import disagreement, published_beam_search, published_dvts, results, scripted, searched, tree

SHAPES = [(1, 1), (1, 4), (2, 2), (3, 2), (4, 1), (2, 3)]


@pytest.mark.parametrize("sort_completed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_beam_search_is_the_published_one(shape: tuple[int, int], sort_completed: bool) -> None:
    """12 cases of 100 seeds each."""
    model = tree(0)
    search = BeamSearch(model, *shape, sort_completed=sort_completed, max_plate_nesting=1)
    assert disagreement(search, model, lambda draw: published_beam_search(model, draw, *shape, sort_completed)) == 0.0


@pytest.mark.parametrize("shape", SHAPES)
def test_beam_search_without_duplicates(shape: tuple[int, int]) -> None:
    """100 seeds each; of four symbols many copies draw the same."""
    for ends in (True, False):
        model = tree(0, ends=ends)
        search = BeamSearch(model, *shape, filter_duplicates=True, max_plate_nesting=1)
        assert disagreement(search, model, lambda draw, m=model: published_beam_search(m, draw, *shape, filter_duplicates=True)) == 0.0


def test_duplicates_matter() -> None:
    """At least a fifth of the problems is solved differently with them."""
    model = tree(0)
    search = BeamSearch(model, 3, 2, max_plate_nesting=1)
    assert disagreement(search, model, lambda draw: published_beam_search(model, draw, 3, 2, filter_duplicates=True)) > 0.2


def test_prefixes_that_differ_early_are_no_duplicates() -> None:
    """Equal last steps after different beginnings: both are kept."""
    model = scripted([[1, 2], [3, 3], [1, 1]], {})
    posterior, _ = searched(BeamSearch(model, 2, 1, filter_duplicates=True, max_plate_nesting=1), model, problems=1)
    assert [path for path, _, _ in results(posterior)] == ["131", "231"]


@pytest.mark.parametrize("shape", SHAPES)
def test_dvts_is_the_published_one(shape: tuple[int, int]) -> None:
    model = tree(1)
    search = DVTS(model, *shape, max_plate_nesting=1)
    assert disagreement(search, model, lambda draw: published_dvts(model, draw, *shape)) == 0.0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), length=st.integers(1, 4), width=st.integers(1, 3), expand=st.integers(1, 3), ends=st.booleans())
def test_other_trees(seed: int, length: int, width: int, expand: int, ends: bool) -> None:
    """Trees of all lengths, with and without an end, with and without a barrier after the last step; 20 seeds each."""
    for final_barrier in (True, False):
        model = tree(seed, length, ends=ends, final_barrier=final_barrier)
        beam = BeamSearch(model, width, expand, max_plate_nesting=1)
        assert disagreement(beam, model, lambda draw, m=model: published_beam_search(m, draw, width, expand), seed, 20) == 0.0
        dvts = DVTS(model, width, expand, max_plate_nesting=1)
        assert disagreement(dvts, model, lambda draw, m=model: published_dvts(m, draw, width, expand), seed, 20) == 0.0


def test_particles_of_score_zero_are_never_kept() -> None:
    """A tenth of the steps is impossible: dead particles are neither returned nor continued while others live."""
    model = tree(2, impossible=True)
    search = BeamSearch(model, 4, 3, max_plate_nesting=1)
    assert disagreement(search, model, lambda draw: published_beam_search(model, draw, 4, 3)) == 0.0


# Wrong searches
class KeepsAll(BeamMessenger):
    """``[-(n // M):]`` with n < M is ``[-0:]``: nothing is pruned (search-and-learn, beam_search.py)."""

    def select(self, log_weights: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        self.beam_width = self.options.num_particles
        return super().select(log_weights, done)


class Forgets(BeamMessenger):
    """Scores reset at each selection: the last step alone counts."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        state = super().resample(state, ess)
        self.system.weights = self.system.weights.set_to_mean(torch.ones_like(ess, dtype=torch.bool))
        return state


class FinishedCompete(BeamMessenger):
    """Finished particles stay in the beam and take places of unfinished ones."""

    def select(self, log_weights: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        return super().select(log_weights, torch.zeros_like(done))


class LastOfTies(BeamMessenger):
    """Ties go to the last particle, as ``np.argsort(scores)[-k:]`` has it."""

    def select(self, log_weights: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        ancestors, _ = super().select(log_weights - 1e-9 * (self.options.num_particles - self.system.numbers), done)
        return ancestors, log_weights.gather(0, ancestors)


WRONG_BEAMS = {"keeps all": KeepsAll, "forgets": Forgets, "finished compete": FinishedCompete, "last of ties": LastOfTies}


@pytest.mark.parametrize("name", WRONG_BEAMS)
def test_rejects_wrong_beam_searches(name: str) -> None:
    """At least a fifth of the problems is solved differently."""

    class Wrong(BeamSearch):
        def messenger(self) -> BeamMessenger:
            return WRONG_BEAMS[name](self.options, self.beam_width, sort_completed=self.sort_completed)

    model = tree(0)
    assert disagreement(Wrong(model, 2, 3, max_plate_nesting=1), model, lambda draw: published_beam_search(model, draw, 2, 3)) > 0.2


class UnfinishedVote(SubtreeMessenger):
    """Half-written siblings of a finished solution vote (search-and-learn #57)."""

    def select(self, log_weights: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        ancestors, weights = super().select(log_weights, done)
        last = self.final[-1]
        self.final[-1] = last._replace(log_weights=torch.where(last.eligible, last.scores, last.log_weights))
        return ancestors, weights


class Interleaved(SubtreeMessenger):
    """Particle i belongs to subtree i mod n, not i // expand: candidates of different subtrees compete (as in search-and-learn #28)."""

    def best_of_subtree(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        num_subtrees, expand = self.groups
        order = torch.arange(self.options.num_particles).view(expand, num_subtrees).T.flatten()
        best, score = super().best_of_subtree(log_weights[order])
        back = order.argsort()
        return order[best][back], score[back]


class NeverStops(SubtreeMessenger):
    """Greedy among unfinished candidates: a finished best candidate is passed over."""

    def best_of_subtree(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        return super().best_of_subtree(torch.where(self._done_now, log_weights - 100, log_weights))

    def select(self, log_weights: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        self._done_now = done
        return super().select(log_weights, done)


WRONG_SUBTREES = {"unfinished vote": UnfinishedVote, "interleaved": Interleaved, "never stops": NeverStops}


@pytest.mark.parametrize("name", WRONG_SUBTREES)
def test_rejects_wrong_subtrees(name: str) -> None:
    class Wrong(DVTS):
        def messenger(self) -> SubtreeMessenger:
            return WRONG_SUBTREES[name](self.options, self.expand)

    model = tree(1)
    assert disagreement(Wrong(model, 2, 3, max_plate_nesting=1), model, lambda draw: published_dvts(model, draw, 2, 3)) > 0.2
