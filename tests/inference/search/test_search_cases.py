"""Searches on cases that were worked out by hand or are another algorithm: exhaustive search, classical beam search."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ppl_llm.inference import (
    DVTS,
    BeamSearch,
)
from tests.helpers.searches import SYMBOLS, Path, candidates, results, scripted, searched, tree


def test_dvts_by_hand() -> None:
    """Two subtrees of three candidates. The first stops in step 2, the second continues to the end."""
    model = scripted(
        [[1, 2, 3, 0, 1, 1], [0, 1, 0, 3, 2, 0], [1, 1, 1, 2, 3, 0]],
        {(1,): -1.0, (2,): -0.5, (3,): -2.0, (0,): -3.0, (2, 0): -0.25, (2, 1): -0.75, (1, 3): -1.0, (1, 2): -4.0, (1, 0): -2.0,
         (1, 3, 2): -1.0, (1, 3, 3): -2.0, (1, 3, 0): -3.0},
    )  # fmt: skip
    posterior, _ = searched(DVTS(model, 2, 3, max_plate_nesting=1), model, problems=1)
    assert results(posterior) == [
        ("20", -0.75, True),
        ("20", -0.75, False),  # in place of 21, which had not finished
        ("20", -0.75, True),
        ("132", -3.0, True),  # -1 - 1 - 1: the end of the model cuts this subtree off
        ("133", -4.0, True),
        ("130", -5.0, True),
    ]
    assert posterior.ancestors[:, :, 0].tolist() == [[1, 1, 1, 4, 4, 4], [0, 0, 2, 3, 3, 3], [0, 1, 2, 3, 3, 3]]
    assert posterior.lengths[:, 0].tolist() == [2, 2, 2, 3, 3, 3]


def test_dvts_drops_a_finished_candidate_that_is_not_the_best() -> None:
    model = scripted([[0, 1], [2, 0]], {(0,): -1.0, (1,): -0.5, (1, 2): -2.0, (1, 0): -0.1})
    posterior, _ = searched(DVTS(model, 1, 2, max_plate_nesting=1), model, problems=1)
    assert [path for path, _, votes in results(posterior) if votes] == ["10"]


def test_beam_search_by_hand() -> None:
    """Width 2, two copies each: 0 finishes first; then the beam has 2 and 3, in the order of their particles."""
    model = scripted(
        [[0, 1, 2, 3], [1, 0, 2, 3], [0, 1, 2, 0]],
        {(0,): -5.0, (1,): -3.0, (2,): -2.0, (3,): -1.0, (2, 1): -1.0, (2, 2): -1.0, (3, 3): -4.0,
         (2, 1, 0): -0.5, (2, 2, 0): -0.25, (2, 1, 2): -0.125},
    )  # fmt: skip
    posterior, _ = searched(BeamSearch(model, 2, 2, max_plate_nesting=1), model, problems=1)
    # Step 2: particles 2, 3, 2, 3 draw 1, 0, 2, 3: 30 finishes; 21 (-3), 22 (-3), 33 (-5): the first two are kept.
    # Step 3: particles 21, 22, 21, 22 draw 0, 1, 2, 0.
    assert results(posterior) == [("0", -5.0, True), ("30", -1.0, True), ("210", -3.5, True), ("220", -3.25, True)]
    assert posterior.lengths[:, 0].tolist() == [1, 2, 3, 3]
    assert posterior.ancestors[:2, :, 0].tolist() == [[2, 3, 2, 3], [0, 2, 0, 2]]
    best, _ = searched(BeamSearch(model, 2, 2, sort_completed=True, max_plate_nesting=1), model, problems=1)
    assert [score for _, score, _ in results(best)] == [-1.0, -3.25, -3.5, -5.0]


def test_expansion_over_the_whole_tree_is_exhaustive_search() -> None:
    """All trajectories as the expansion of one beam: the first is the best of all, and every score is there."""
    paths = list(itertools.product(range(1, SYMBOLS), repeat=3))
    chosen = torch.tensor(paths)
    model = tree(3, 3, ends=False, forced=lambda t: chosen[:, t, None])
    everything = BeamSearch(model, len(paths), 1, max_plate_nesting=1)
    posterior, _ = searched(everything, model, problems=1)
    found = {f.path: f.score for f in candidates(posterior, 0)}
    assert found == {path: model.score(path) for path in paths}
    weights = torch.tensor([model.score(path) for path in paths], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(posterior.weights[:, 0], weights)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_distinct_continuations_make_it_classical_beam_search(width: int) -> None:
    """Every kept particle is continued by every symbol: at each level the best ``width`` of all children, as in machine translation."""
    length, branching = 4, 3
    for seed in range(8):

        def children(t: int) -> Tensor:
            """Particles i, i + width, i + 2 width are the copies of the i-th kept particle: each gets a symbol of its own."""
            return (1 + torch.arange(width * branching) // width)[:, None]

        model = tree(100 + seed, length, ends=False, forced=children)
        posterior, _ = searched(BeamSearch(model, width, branching, max_plate_nesting=1), model, problems=1)
        beam: list[Path] = [()] * width
        for _ in range(length):
            grown = [(*path, symbol) for symbol in range(1, 1 + branching) for path in beam]
            last = grown
            scores = [model.score(path) for path in grown]
            best = sorted(range(len(grown)), key=lambda i: (-scores[i], i))[:width]
            beam = [grown[i] for i in sorted(best)]
        assert [f.path for f in candidates(posterior, 0)] == last


def test_finished_candidates_outlive_a_dead_beam() -> None:
    """After step 1 every unfinished particle dies: the finished ones are the result, repeated."""
    model = scripted([[0, 1, 2, 0], [1, 1, 1, 1]], {(0,): -1.0, (1, 1): -math.inf, (2, 1): -math.inf})
    posterior, _ = searched(BeamSearch(model, 2, 2, max_plate_nesting=1), model, problems=1)
    assert results(posterior) == [("0", -1.0, True)] * 4


def test_a_dead_subtree_leaves_the_others_alone() -> None:
    model = scripted([[1, 2, 1, 3], [1, 1, 0, 2]], {(1,): -math.inf, (2,): -math.inf, (3,): -1.0, (3, 0): -0.5, (3, 2): -2.0})
    posterior, _ = searched(DVTS(model, 2, 2, max_plate_nesting=1), model, problems=1)
    assert posterior.weights[:, 0].tolist() == [0.0, 0.0, 1.0, 0.0]
    assert [path for path, _, votes in results(posterior) if votes][-1] == "30"
