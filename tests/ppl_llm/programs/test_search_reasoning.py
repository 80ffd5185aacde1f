"""Searches on reasoning programs: contexts, ready models, votes, and what they cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm import (
    DVTS,
    PRESETS,
    BeamSearch,
    BestOfN,
    Enumeration,
    Importance,
    LLMStep,
    SelfConsistency,
    TabularLM,
    TabularReward,
    majority,
    reasoning,
)
from ppl_llm.inference import SearchPosterior
from ppl_llm.lm.base import StepSample
from tests.helpers.reasoning import LM, PRM, SYMBOLS

Step = tuple[int, ...]


class RecordingLM(TabularLM):
    """Notes the steps that it draws."""

    def sample_step(self, *args: Any) -> StepSample:
        drawn = super().sample_step(*args)
        self.__dict__.setdefault("drawn", []).append(drawn.tokens)
        return drawn


class ForcedLM(TabularLM):
    """Draws given steps, one for each particle."""

    steps: Tensor

    def sample_step(self, context: Any, particles: Any, options: Any) -> StepSample:
        return StepSample(self.steps, torch.zeros(particles))


def program(lm: TabularLM, preset: str = "twisted", max_steps: int = 4, **kwargs: Any) -> Any:
    return reasoning(lm, PRM, preset, stop=";", max_tokens=2, max_steps=max_steps, **kwargs)


def score(steps: list[Step], preset: str) -> float:
    """Plain Python: the table of rewards, and min or product of the probabilities."""
    tokens: list[int] = []
    logs = []
    for step in steps:
        tokens += step
        z = -0.8 + sum(float(PRM.log_odds[v]) * 0.7**age for age, v in enumerate(reversed(tokens)))
        logs.append(-math.log1p(math.exp(-z)))
    return min(logs) if preset == "twisted" else sum(logs)


def finished(steps: list[Step]) -> bool:
    return steps[-1][-1] == SYMBOLS.index("$")


def beams(draw: Any, preset: str, width: int, expand: int, max_steps: int) -> list[list[Step]]:
    particles: list[list[Step]] = [[] for _ in range(width * expand)]
    completed: list[list[Step]] = []
    for t in range(max_steps):
        particles = [[*particle, draw(t, i)] for i, particle in enumerate(particles)]
        completed += [particle for particle in particles if finished(particle)]
        active = [particle for particle in particles if not finished(particle)]
        if not active:
            break
        best = sorted(range(len(active)), key=lambda i: -score(active[i], preset))[:width]
        kept = [active[i] for i in sorted(best)]
        particles = [kept[i % len(kept)] for i in range(width * expand)]
    return (completed + active)[: width * expand]


@pytest.mark.parametrize("preset", ["twisted", "exact"])
def test_beam_search_follows_the_reward_model(preset: str) -> None:
    """20 problems with draws of their own: the texts of the published search; the cumulative weight is the aggregated score of a prefix."""
    pyro.set_rng_seed(0)
    lm = RecordingLM(LM.logits.float(), SYMBOLS, eos="$")
    posterior = BeamSearch(program(lm, preset), 2, 3, max_plate_nesting=1).run(["a"] * 20)
    drawn = lm.__dict__["drawn"][:4]

    def step(t: int, i: int, problem: int) -> Step:
        return tuple(v for v in drawn[t][i, problem].tolist() if v >= 0)

    assert posterior.scores is not None
    for problem in range(20):
        expected = beams(lambda t, i, p=problem: step(t, i, p), preset, 2, 3, 4)
        assert [lm.decode([v for s in particle for v in s]) for particle in expected] == [row[problem] for row in posterior.value.text]
        assert posterior.scores[:, problem].tolist() == pytest.approx([score(particle, preset) for particle in expected], abs=1e-5)
        assert posterior.lengths[:, problem].tolist() == [len(particle) for particle in expected]
        assert posterior.value.done[:, problem].tolist() == [finished(particle) for particle in expected]
    assert posterior.cost["tokens_sampled"] == sum(int((tokens >= 0).sum()) for tokens in drawn)  # the replay draws nothing


def test_the_replay_asks_neither_model() -> None:
    class Counting(TabularReward):
        calls = 0

        def step_log_odds(self, context: Any) -> Tensor:
            self.calls += 1
            return super().step_log_odds(context)

    prm = Counting(PRM.log_odds, PRM.bias, PRM.discount)
    pyro.set_rng_seed(1)
    model = reasoning(LM, prm, "twisted", stop=";", max_tokens=2, max_steps=4, early_exit=False)
    for search in (BeamSearch(model, 2, 2), DVTS(model, 2, 2)):
        prm.calls = 0
        assert search.run("a").num_particles == 4
        assert prm.calls == 4


def test_one_expansion_over_all_steps_is_exhaustive() -> None:
    """Every possible step as the expansion of one beam: the best is the maximum over the enumeration, with its likelihood."""
    every = LLMStep(LM.start("a"), stop=";", max_tokens=3).enumerate_support()
    lm = ForcedLM(LM.logits, SYMBOLS, eos="$")
    lm.steps = every
    model = reasoning(lm, PRM, "exact", stop=";", max_tokens=3, max_steps=1)
    posterior = BeamSearch(model, 1, len(every), sort_completed=True).run("a")
    exact = Enumeration(reasoning(LM, PRM, "exact", stop=";", max_tokens=3, max_steps=1)).run("a")
    assert posterior.scores is not None and exact.num_particles == len(every)
    likelihood = PRM.step_log_odds(exact.value)[:, -1].double().sigmoid().log()
    by_step = {tuple(step): float(value) for step, value in zip(exact.sites["step_0"].tolist(), likelihood, strict=True)}
    assert dict(zip(map(tuple, posterior.sites["step_0"].tolist()), posterior.scores.tolist(), strict=True)) == pytest.approx(
        by_step, abs=1e-5
    )
    ended = {step: value for step, value in by_step.items() if 3 in step}
    assert tuple(posterior.sites["step_0"][0].tolist()) == max(ended, key=lambda step: ended[step])


class Refusing(TabularReward):
    """A reward model that must not be asked."""

    def step_log_odds(self, context: Any) -> Tensor:
        raise AssertionError("the reward model was asked")


_LOGITS = torch.tensor([[0.5, 1.0, 0.0, 0.3], [0.2, 0.1, 0.9, 0.5], [0.0, 0.4, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0]])
BOXES = TabularLM(_LOGITS, ["\\boxed{1}", "\\boxed{2}", ";", "$"], eos="$")


class BoxedLM(TabularLM):
    """Problems are symbols of more than one letter."""

    def start(self, problem: Any) -> Any:
        names = {"one": "a", "two": "b"}
        letters = TabularLM(self.logits, SYMBOLS, eos="$")
        root = letters.start(names[problem] if isinstance(problem, str) else [names[p] for p in problem])
        return replace(root, lm=self)


def boxed(preset: str, prm: Any = None) -> Any:
    lm = BoxedLM(BOXES.logits, BOXES.symbols, eos="$")
    return reasoning(lm, prm or TabularReward(torch.tensor([1.0, 0.3, -0.2, 0.1]), 0.1, 0.8), preset, stop=";", max_tokens=2, max_steps=3)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("problem", ["one", ["one", "two", "two"]])
def test_choose_works_with_every_search(preset: str, problem: Any) -> None:
    model = boxed(preset)
    nesting = 0 if isinstance(problem, str) else 1
    for seed, search in enumerate((BeamSearch(model, 2, 3, max_plate_nesting=nesting), DVTS(model, 2, 3, max_plate_nesting=nesting))):
        pyro.set_rng_seed(seed)
        posterior = search.run(problem)
        chosen = model.choose(posterior)
        assert {chosen} <= {None, "1", "2"} if nesting == 0 else len(chosen) == 3
        assert posterior.answers() is not None
    best = BestOfN(model, 6, max_plate_nesting=nesting).run(problem)
    particles = best.weights.argmax(0)
    answers = best.value.answers()
    expected = answers[int(particles)] if nesting == 0 else [answers[int(n)][p] for p, n in enumerate(particles)]
    assert model.choose(best) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_self_consistency_never_asks_the_reward_model(preset: str) -> None:
    model = boxed(preset, Refusing(torch.zeros(4)))
    pyro.set_rng_seed(2)
    posterior = SelfConsistency(model, 9, max_plate_nesting=1).run(["one", "two", "one"])
    answers = posterior.value.answers()
    assert model.choose(posterior) == [majority([row[p] for row in answers]) for p in range(3)]
    assert posterior.weights.shape == (9, 3) and "prm_calls" not in posterior.cost
    with pytest.raises(AssertionError, match="the reward model was asked"):
        Importance(model, 9).run("one")


def test_particles_without_weight_never_win_the_argmax() -> None:
    """as_paper chooses by the last score: an unfinished sibling of a stopped subtree is no candidate."""
    model = boxed("as_paper")
    for seed in range(20):
        pyro.set_rng_seed(seed)
        posterior = DVTS(model, 1, 3).run("one")
        answers, scores = posterior.value.answers(), model.prefix_scores(posterior.value).tolist()
        voting = [(s, -n, a) for n, (a, s, w) in enumerate(zip(answers, scores, posterior.weights.tolist(), strict=True)) if w > 0 and a]
        assert model.choose(posterior) == (max(voting)[2] if voting else None)


def test_importance_stays_weighted_best_of_n() -> None:
    pyro.set_rng_seed(3)
    model = boxed("exact")
    weighted = Importance(model, 6).run("one")
    pyro.set_rng_seed(3)
    best = BestOfN(model, 6).run("one")
    assert best.value.text == weighted.value.text
    torch.testing.assert_close(best.scores, weighted.log_weights)
    assert not isinstance(weighted, SearchPosterior)
    assert math.isfinite(float(weighted.log_evidence))
