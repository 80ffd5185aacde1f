"""``lookahead`` of beam search and DVTS, against the published definitions with the same draws, and what it costs."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm import BeamSearch as FromPackage
from ppl_llm.inference import DVTS, BeamSearch, barrier
from ppl_llm.inference.search.beam_search import BeamMessenger
from ppl_llm.inference.search.lookahead import GreedyMessenger, Lookahead
from tests.helpers.searches import InnerRuns, disagreement, published_beam_search, published_dvts, searched, tree

SHAPES = [(1, 4), (2, 2), (3, 2), (2, 3)]


def inner(seed: int, **kwargs: Any) -> InnerRuns:
    """A tree whose most probable symbol is no end."""
    made = tree(seed, **kwargs)
    return InnerRuns(torch.tensor([0.2, 0.2, 0.35, 0.25], dtype=torch.float64), made.factors, made.ends, made.forced, made.final_barrier)


@pytest.mark.parametrize("lookahead", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_beam_search_that_looks_ahead(shape: tuple[int, int], lookahead: int) -> None:
    """24 cases of 100 seeds each."""
    for final_barrier in (True, False):
        model = inner(0, final_barrier=final_barrier)
        search = BeamSearch(model, *shape, lookahead=lookahead, max_plate_nesting=1)
        assert disagreement(search, model, lambda draw, m=model: published_beam_search(m, draw, *shape, lookahead=lookahead)) == 0.0


@pytest.mark.parametrize("lookahead", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_dvts_that_looks_ahead(shape: tuple[int, int], lookahead: int) -> None:
    model = inner(1)
    search = DVTS(model, *shape, lookahead=lookahead, max_plate_nesting=1)
    assert disagreement(search, model, lambda draw: published_dvts(model, draw, *shape, lookahead=lookahead)) == 0.0


@pytest.mark.parametrize("shape", SHAPES)
def test_dvts_without_duplicates(shape: tuple[int, int]) -> None:
    for ends in (True, False):
        model = tree(1, ends=ends)
        search = DVTS(model, *shape, filter_duplicates=True, max_plate_nesting=1)
        assert disagreement(search, model, lambda draw, m=model: published_dvts(m, draw, *shape, filter_duplicates=True)) == 0.0


def test_duplicates_vote_without_the_filter() -> None:
    model = tree(1)
    assert (
        disagreement(DVTS(model, 2, 3, max_plate_nesting=1), model, lambda d: published_dvts(model, d, 2, 3, filter_duplicates=True)) > 0.2
    )


def test_a_look_is_no_score() -> None:
    """Scores and weights of the result are those of the prefixes themselves, and the draws are those of a search without a look."""
    model = inner(0)
    posterior, draws = searched(BeamSearch(model, 3, 2, lookahead=2, max_plate_nesting=1), model)
    _, without = searched(BeamSearch(model, 3, 2, max_plate_nesting=1), model)
    assert posterior.scores is not None and bool((draws[0] == without[0]).all())
    for problem in range(20):
        for n in range(posterior.num_particles):
            assert posterior.scores[n, problem] == model.score(posterior.particle((n, problem)).path())


def test_nothing_is_drawn_or_scored_again() -> None:
    """Of T steps a look from step t draws and scores the next k alone."""
    drawn: list[str] = []
    scored: list[str] = []

    class Step(dist.Bernoulli):
        label = ""

        def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
            drawn.append(self.label)
            return super().sample(sample_shape)

        @property
        def mode(self) -> Tensor:
            drawn.append(f"mode {self.label}")
            return torch.ones(self.batch_shape)

        def expand(self, batch_shape: Any, _instance: Any = None) -> Step:
            new = Step(self.probs.expand(batch_shape))
            new.label = self.label
            return new

    class Factor(dist.Delta):
        label = ""

        def log_prob(self, x: Tensor) -> Tensor:
            scored.append(self.label)
            return super().log_prob(x)

        def expand(self, batch_shape: Any, _instance: Any = None) -> Factor:
            new = Factor(self.v.expand(batch_shape), self.log_density.expand(batch_shape))
            new.label = self.label
            return new

    def model() -> Any:
        x = torch.zeros(())
        for t in range(4):
            step, factor = Step(torch.full_like(x, 0.5)), Factor(torch.zeros_like(x), -x)
            step.label, factor.label = f"x_{t}", f"y_{t}"
            x = pyro.sample(f"x_{t}", step)
            pyro.sample(f"y_{t}", factor, obs=torch.zeros_like(x))
            x = barrier(x)
        return x

    pyro.set_rng_seed(0)
    BeamSearch(model, 2, 2, lookahead=1).run()
    assert drawn == ["x_0", "mode x_1", "x_1", "mode x_2", "x_2", "mode x_3", "x_3"]
    assert scored == ["y_0", "y_1", "y_1", "y_2", "y_2", "y_3", "y_3"]


def test_a_distribution_without_a_mode_is_refused() -> None:
    class NoMode(dist.Bernoulli):
        @property
        def mode(self) -> Tensor:
            raise NotImplementedError

        def expand(self, batch_shape: Any, _instance: Any = None) -> NoMode:
            return NoMode(self.probs.expand(batch_shape))

    def model() -> Any:
        x = torch.zeros(())
        for t in range(3):
            x = barrier(pyro.sample(f"x_{t}", NoMode(torch.full_like(x, 0.5))))
        return x

    with pytest.raises(ValueError, match="site 'x_1' has a NoMode, which has no mode, and lookahead continues greedily"):
        BeamSearch(model, 2, 2, lookahead=1).run()


def test_subsampled_plates_are_the_same_in_every_look() -> None:
    seen: list[list[int]] = []

    def model() -> Any:
        with pyro.plate("data", 50, subsample_size=2, dim=-1) as index:
            seen.append(index.tolist())
        x = torch.zeros(())
        for t in range(3):
            x = pyro.sample(f"x_{t}", dist.Bernoulli(torch.full((1,), 0.5)))
            x = barrier(x)
        return x

    pyro.set_rng_seed(0)
    BeamSearch(model, 2, 2, lookahead=1, max_plate_nesting=1).run()
    assert len(seen) >= 4 and all(index == seen[0] for index in seen)


class Drawn(GreedyMessenger):
    """The next steps are drawn, not the most probable ones."""

    def propose(self, msg: Any) -> None:
        return None


class OneLess(Lookahead):
    """One step too few."""

    def __call__(self, *args: Any) -> Tensor:
        return OneLess.right(self.model, self.steps - 1, self.scope, self.args, self.kwargs)(*args)

    right = Lookahead


class Kept(BeamMessenger):
    """The scores of a look become those of the prefixes."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        done = self._done(state)
        ahead = torch.where(done, self.system.weights.log_weights, self._look_ahead(state, ess))
        look, self.look = self.look, None
        self.system.weights = type(self.system.weights)(ahead)
        state = super().resample(state, ess)
        self.look = look
        return state


@pytest.mark.parametrize("wrong", ["drawn", "one less", "kept"])
def test_rejects_wrong_looks(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least a tenth of the problems is solved differently."""
    if wrong == "drawn":
        monkeypatch.setattr("ppl_llm.inference.search.lookahead.GreedyMessenger", Drawn)
    if wrong == "one less":
        monkeypatch.setattr("ppl_llm.inference.search.tree_search.Lookahead", OneLess)

    class Search(BeamSearch):
        def messenger(self) -> BeamMessenger:
            return (Kept if wrong == "kept" else BeamMessenger)(self.options, self.beam_width)

    model = inner(0)
    search = Search(model, 2, 3, lookahead=2, max_plate_nesting=1)
    assert disagreement(search, model, lambda draw: published_beam_search(model, draw, 2, 3, lookahead=2)) > 0.1


def test_bad_arguments() -> None:
    assert FromPackage is BeamSearch
    for search in (BeamSearch, DVTS):
        with pytest.raises(ValueError, match="lookahead must be an integer of at least 0, got -1"):
            search(tree(0), 2, 2, lookahead=-1)
