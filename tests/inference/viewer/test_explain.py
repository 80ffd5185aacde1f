"""Explanations: on posteriors whose truth is known, on every algorithm's, and by doing what they say would change them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm import Importance, SelfConsistency, SuffixMH, reasoning
from ppl_llm.inference import SMC, BestOfN, DiscreteMarginal, Enumeration, Explanation, ParticlePosterior, Weights, barrier
from ppl_llm.inference.particles.history import ResamplingRecord, Site
from ppl_llm.inference.particles.weighted_particles import WeightedParticles
from ppl_llm.inference.posterior.search_posterior import SearchPosterior
from ppl_llm.inference.viewer import explain as explain_module
from tests.helpers.algorithms import LISTED
from tests.helpers.decision_mutants import WRONG_EXPLANATIONS
from tests.helpers.reasoning import LM, MAX_STEPS, MAX_TOKENS, PRM
from tests.inference.posterior.test_contract import CASES, EVERY, problem, problems
from tests.inference.posterior.test_contract import run as run_by_name
from tests.inference.viewer.models import HOSTILE, solutions, three_problems

WORDS = ["", "add 1", "double", "halve", "so 7", "so 8", "so 9"]
ANSWERS = ["7", "8", "9", None]


def said(name: str, value: Tensor) -> str:
    return WORDS[int(value)]


def answer(value: Tensor) -> str | None:
    return ANSWERS[int(value)]


def constructed() -> ParticlePosterior:
    """Four particles of three steps. After the first step particle 0 was copied to 1, and 3 died: 2 was copied to 3.

    7: add 1, double, so 7 (.3) and the same again (.2); 8: add 1, halve, so 8 (.4); none: double (.1).
    """
    sites = (
        Site("step_0", torch.tensor([1, 3, 2, 3]), None, 0),
        Site("accept_0", None, None, 0, torch.tensor([0.9, 0.05, 0.6, 0.2])),
        Site("step_1", torch.tensor([2, 3, 0, 2]), None, 1),
        Site("accept_1", None, None, 1, torch.tensor([0.8, 0.3, torch.nan, 0.8])),
        Site("step_2", torch.tensor([4, 5, 0, 4]), None, 1),
        Site("accept_2", None, None, 1, torch.tensor([0.7, 0.4, torch.nan, 0.7])),
    )
    record = ResamplingRecord(torch.tensor(2.5), torch.tensor([0, 0, 2, 0]), torch.tensor(True))
    return ParticlePosterior(
        WeightedParticles(
            Weights(torch.tensor([0.3, 0.4, 0.1, 0.2], dtype=torch.float64).log() - 1.0),
            sites=sites,
            records=(record,),
            value=torch.tensor([0, 1, 3, 0]),
            log_likelihood=torch.full((4,), -1.0, dtype=torch.float64),
        )
    )


def explained(posterior: Any = None) -> Any:
    return (posterior or constructed()).explain(describe=said, answer=answer)


def test_what_competes_and_where_it_parts() -> None:
    found = explained()
    assert found.kind == "posterior" and [(c.answer, c.particles) for c in found.competitors] == [("7", 2), ("8", 1)]
    assert [c.probability for c in found.competitors] == pytest.approx([0.5, 0.4], abs=1e-12)
    assert found.no_answer == pytest.approx(0.1) and found.num_particles == 4 and found.distinct == 3
    assert found.competitors[0].steps == ("add 1", "double", "so 7") and found.competitors[1].scores == pytest.approx((0.9, 0.3, 0.4))
    parting = found.parting
    assert (parting.step, parting.shared, parting.first, parting.second, parting.common) == (2, ("add 1",), "double", "halve", 1)
    assert found.entropy == pytest.approx(-sum(p * math.log(p) for p in (0.5, 0.4, 0.1)))
    assert found.ess == pytest.approx(1 / (0.09 + 0.16 + 0.01 + 0.04))


def test_a_pair_with_a_common_ancestor_stands_for_those_with_the_same_text() -> None:
    """The heaviest solution of 7 was written by another particle; a lighter one with the same beginning descends from that of 8."""
    posterior = constructed()
    sites = list(posterior.particles.sites)
    sites[0] = sites[0]._replace(value=torch.tensor([1, 1, 2, 3]))
    record = posterior.particles.records[0]._replace(ancestors=torch.tensor([1, 0, 2, 0]))
    parting = explained(ParticlePosterior(posterior.particles._replace(sites=tuple(sites), records=(record,)))).parting
    assert (parting.step, parting.shared, parting.common) == (2, ("add 1",), 1)


def test_what_was_disliked() -> None:
    """Of each beginning once, the least score first; of what died out by its own name."""
    found = explained()
    assert [(d.step, d.text, d.answer, d.dropped) for d in found.disliked] == [
        (2, "halve", "8", False),
        (3, "so 8", "8", False),
        (1, "double", None, False),
    ]
    assert [d.score for d in found.disliked] == pytest.approx([0.3, 0.4, 0.6])
    assert (found.dropped.step, found.dropped.text, found.dropped.dropped) == (1, "halve", True)
    assert found.dropped.score == pytest.approx(0.05)


def test_a_step_that_waits_for_the_answer_is_not_disliked() -> None:
    """A reward of whole answers gives the steps before the end the score 1."""
    sites = [
        site if site.score is None or site.name == "accept_2" else site._replace(score=torch.ones(4))
        for site in constructed().particles.sites
    ]
    found = explained(ParticlePosterior(constructed().particles._replace(sites=tuple(sites))))
    assert [(d.step, d.text) for d in found.disliked] == [(3, "so 8"), (3, "so 7")] and found.dropped is None
    assert "(1.000" not in str(found)


def test_how_sure_it_is() -> None:
    """Particles 0, 1 and 3 descend from one, 2 from another: sums of w (f - mean) over each, squared."""
    found = explained()
    assert found.ancestors == 2
    groups = 0.3 * 0.5 + 0.2 * 0.5 - 0.4 * 0.5, -0.1 * 0.5  # f: whether the answer is 7, of mean .5
    assert found.error == pytest.approx(math.hypot(*groups), abs=1e-12)
    lead = 0.5 * 0.9 - 0.4 * 1.1, -0.1 * 0.1  # f: 1 for 7, -1 for 8, of mean .1
    assert found.lead_error == pytest.approx(math.hypot(*lead), abs=1e-12)
    assert found.log_evidence == pytest.approx(-1.0 - math.log(4)) and found.part_log_evidences == []


def test_what_would_change_it() -> None:
    found = explained()
    assert found.more_particles == 1  # (.4 + .25) against .5
    assert found.reward_margin == pytest.approx(math.log(0.5 / 0.4))
    assert found.unknown == []


def test_it_says_so_in_words() -> None:
    assert explained().lines == [
        "7 leads with posterior probability 0.500; 8 has 0.400; 0.100 lies on solutions without an answer.",
        "Solutions of 7 and 8 part at step 2 at the latest. Until then two of them share the first step of one particle, which was "
        "resampled, “add 1”. Then 7 has “double” where 8 has “halve”.",
        "The reward disliked most step 2 “halve” (0.300, of 8); step 3 “so 8” (0.400, of 8); step 1 “double” (0.600, of no answer); and of "
        "what was dropped step 1 “halve” (0.050).",
        "How sure: effective sample size 3.3 of 4, 3 different solutions from 2 independent beginnings; entropy 0.94 nats, as of 2.6 "
        "equally probable answers. The standard error of the leader's probability is 0.071; its lead of 0.100 is 7.1 standard errors, so "
        "more particles are not expected to turn it. Log evidence -2.386.",
        "What would change it: 1 more particle of average weight with 8; or rewards of all solutions of 7 lower by a factor of more than "
        "1.25 (0.22 nats, 0.07 for each of 3 steps).",
    ]
    assert str(explained()) == "\n".join(explained().lines)
    assert json.loads(json.dumps(explained().as_dict()))["parting"]["step"] == 2


weighted = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3]), st.integers(0, 12)), min_size=1, max_size=9).filter(
    lambda each: any(w for a, w in each if a < 3)
)


def of_weights(pairs: list[tuple[int, int]]) -> ParticlePosterior:
    weights = torch.tensor([float(w) for _, w in pairs], dtype=torch.float64)
    values = torch.tensor([a for a, _ in pairs])
    likelihood = torch.ones(len(pairs), dtype=torch.float64)
    sites = (Site("step_0", values, None, 0),)
    return ParticlePosterior(WeightedParticles(Weights(weights.log()), sites=sites, value=values, log_likelihood=likelihood))


def turning_points(pairs: list[tuple[int, int]]) -> str:
    """What is wrong with the particles and the factor that an explanation names, by adding them; empty where nothing is."""
    found = of_weights(pairs).explain(answer=answer)
    (first, second) = [*(c.answer for c in found.competitors), "new"][:2]
    total, n = sum(w for _, w in pairs), len(pairs)

    def leads(k: int) -> bool:
        mass: dict[Any, float] = {}
        for a, w in pairs:
            mass[ANSWERS[a]] = mass.get(ANSWERS[a], 0.0) + w
        return mass.get(second, 0.0) * n + k * total > mass[first] * n  # in units of total / n, in whole numbers

    if not leads(found.more_particles) or leads(found.more_particles - 1):
        return f"{found.more_particles} more particles"
    if found.reward_margin is not None:
        shift = math.exp(-found.reward_margin)
        one, other = (sum(w for a, w in pairs if ANSWERS[a] == each) for each in (first, second))
        if abs(one * shift - other) > 1e-9 * total:
            return f"margin {found.reward_margin}"
    return ""


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pairs=weighted)
def test_what_would_change_it_does_and_nothing_less(pairs: list[tuple[int, int]]) -> None:
    assert turning_points(pairs) == ""


def test_a_reward_that_differs_by_the_margin_turns_the_exact_posterior() -> None:
    """On all solutions of a program: the leader leads with factors lower by a little less than the margin, and by more it does not."""

    def program(penalised: str | None = None, nats: float = 0.0) -> Any:
        def model() -> Any:
            ctx = reasoning(LM, PRM, stop=";", max_steps=MAX_STEPS, max_tokens=MAX_TOKENS)("a")
            last = torch.tensor([text[:1] == penalised for text in ctx.text]) if ctx.batch_shape else torch.tensor(False)
            pyro.factor("penalty", torch.where(last, -nats, 0.0))
            return ctx

        return model

    def initial(ctx: Any) -> str:
        return str(ctx.text[:1])

    found = Enumeration(program()).run().explain(answer=initial)
    assert found.kind == "exact" and found.error is None and found.more_particles is None
    leader, rival = (c.answer for c in found.competitors[:2])
    for change, expected in ((-1e-6, leader), (1e-6, rival)):
        marginal: DiscreteMarginal = Enumeration(program(leader, found.reward_margin + change)).run().marginal(initial)
        assert marginal.mode == expected


def test_equal_answers_are_pooled() -> None:
    found = constructed().explain(describe=said, answer=answer, equivalent=lambda a, b: {a, b} == {"7", "8"})
    assert [c.answer for c in found.competitors] == ["7"] and found.parting is None and found.reward_margin is None
    assert found.lines[0] == "7 leads with posterior probability 0.900; 0.100 lies on solutions without an answer."


# The standard error


def hidden_markov() -> Tensor:
    z = torch.zeros(())
    for t in range(4):
        z = pyro.sample(f"z_{t}", dist.Bernoulli(torch.where(z > 0, 0.8, 0.3)))
        pyro.sample(f"y_{t}", dist.Bernoulli(torch.where(z > 0, 0.8, 0.35)), obs=torch.tensor(float(t != 2)))
        z = barrier(z)
    return z


def calibration(algorithm: Callable[[], Any], runs: int = 300) -> float:
    """Mean squared standard error over the variance of the probability of one answer, over independent runs."""
    pyro.set_rng_seed(0)
    chances, squares = [], []
    for _ in range(runs):
        found = algorithm().run().explain(answer=lambda z: bool(z > 0))
        leading = {c.answer: c.probability for c in found.competitors}
        chances.append(leading.get(True, 0.0))
        squares.append((found.error or 0.0) ** 2)
    return float(torch.tensor(squares).mean() / torch.tensor(chances).var())


ALGORITHMS: dict[str, Callable[[], Any]] = {
    "importance": lambda: Importance(hidden_markov, 60),
    "filter": lambda: SMC(hidden_markov, 60, resampler="multinomial", ess_threshold=1.0),
    "islands": lambda: SMC(hidden_markov, 20, islands=3, resampler="multinomial", ess_threshold=1.0),
    "votes": lambda: SelfConsistency(hidden_markov, 60),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_standard_error_is_that_of_many_runs(name: str) -> None:
    """The ratio of 300 runs has a standard error of .08 (a variance of 300 draws: sqrt(2 / 299)); four of them, and few particles' bias."""
    assert 0.6 < calibration(ALGORITHMS[name]) < 1.4


def test_rejects_errors_of_particles_that_share_ancestors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all particles were independent, a filter that resamples at each of four steps is too sure of itself."""
    monkeypatch.setattr(explain_module, "_by_ancestor", WRONG_EXPLANATIONS["independent"])
    assert calibration(ALGORITHMS["filter"]) < 0.6


@pytest.mark.parametrize("name", ["ties forgotten", "margin of shares"])
def test_rejects_wrong_turning_points(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for function, wrong in WRONG_EXPLANATIONS[name].items():
        monkeypatch.setattr(explain_module, function, wrong)
    assert turning_points([(0, 3), (0, 3), (1, 3)]) != ""


def test_batch_means_of_a_chain_and_too_few_of_them() -> None:
    pyro.set_rng_seed(0)
    chain = SuffixMH(hidden_markov).run(25)
    found = chain.explain(answer=lambda z: bool(z > 0))
    leader = found.competitors[0].answer
    series = torch.stack([(i.weights * ((i.value > 0) == leader)).sum() for i in chain.iterations])
    means = series.view(5, 5).mean(1)
    assert found.error == pytest.approx(float(means.std() / 5**0.5), abs=1e-12) and found.chain
    assert series.mean().item() == pytest.approx(found.competitors[0].probability)
    few = SuffixMH(hidden_markov).run(4).explain(answer=lambda z: bool(z > 0))
    assert few.error is None and "a standard error: 4 iterations are too few for one, 16 would do" in few.unknown
    assert "different iteration" in str(few) and "It cannot say " in str(few)


def test_a_single_ancestor_cannot_tell() -> None:
    posterior = constructed()
    record = posterior.particles.records[0]._replace(ancestors=torch.zeros(4, dtype=torch.long))
    found = explained(ParticlePosterior(posterior.particles._replace(records=(record,))))
    assert found.error is None and found.ancestors == 1
    assert found.unknown == [
        "a standard error: all particles with a weight descend from one of the first step; run more particles or islands"
    ]


# Searches


def search(scores: list[float], **options: Any) -> SearchPosterior:
    particles, log_weights = constructed().particles, torch.tensor(scores, dtype=torch.float64)
    return SearchPosterior(particles._replace(weights=Weights(log_weights)), scores=log_weights, method="a search", **options)


def test_where_the_best_score_decides() -> None:
    """All weight on particle 1, which has 8; the best of 7 scores -2, and 8 has -1.5."""
    scores = torch.tensor([-2.0, -1.5, -1.0, -2.5], dtype=torch.float64)
    weights = Weights(torch.tensor([-torch.inf, 0.0, -torch.inf, -torch.inf], dtype=torch.float64))
    found = explained(SearchPosterior(constructed().particles._replace(weights=weights), scores=scores, method="best-of-N"))
    assert found.kind == "scores" and [c.answer for c in found.competitors] == ["8", "7"]
    assert found.reward_margin == pytest.approx(0.5) and found.more_particles is None and found.error is None
    assert found.lines[0] == "The candidate with the best score answers 8; the best with another answer has 7."
    assert "a score of 7 that is higher by more than 0.500" in str(found) and "posterior probability 0" not in str(found)


@pytest.mark.parametrize(
    ("log_weights", "additive", "first"),
    [
        ([-torch.inf, 0.0, -torch.inf, -torch.inf], False, "All solutions with a weight answer 8."),  # a rule that counts answers as well
        ([-2.0, -torch.inf, -torch.inf, -torch.inf], True, "All solutions with a weight answer 7."),  # 8 has a better score
        ([-2.0, -torch.inf, -torch.inf, -2.0], True, "All solutions with a weight answer 7."),  # two votes
        ([-torch.inf, -torch.inf, 0.0, -torch.inf], True, "There is no answer: no solution with a weight gives an answer."),
    ],
)
def test_where_more_than_the_best_score_decides(log_weights: list[float], additive: bool, first: str) -> None:
    """The leader is the answer of the weights, whatever scores better: as of best-of-majority, and of votes that all agree."""
    scores = torch.tensor([-2.0, -1.5, -1.0, -2.5], dtype=torch.float64)
    weights = Weights(torch.tensor(log_weights, dtype=torch.float64))
    posterior = SearchPosterior(constructed().particles._replace(weights=weights), scores=scores, method="a vote")
    posterior.additive = additive
    found = explained(posterior)
    assert found.kind == "votes" and found.lines[0] == first and "score of" not in str(found)


def test_a_tie_has_no_leader() -> None:
    """Particles 0 and 3 have 7, 1 has 8, 2 no answer."""
    log_weights = [math.log(each) for each in (0.25, 0.5, 0.125, 0.25)]
    assert explained(search(log_weights)).lines[0].startswith("A tie: ")
    assert " leads with " in explained(search([0.3, 0.4, 0.1, 0.2])).lines[0]


def test_votes_are_no_probabilities() -> None:
    found = explained(search([0.3, 0.4, 0.1, 0.2]))
    assert found.kind == "votes" and found.log_evidence is None and found.error is None and found.reward_margin is None
    assert "share of the votes" in found.lines[0]
    assert "the weights of a search are votes, and there is no evidence" in found.lines[-1]
    assert "more vote of average weight with" in str(found) or "more votes of average weight with" in str(found)
    assert "average" not in str(explained(search([0.0, 0.0, 0.0, 0.0])))


def test_without_a_reward_there_is_nothing_to_dislike() -> None:
    pyro.set_rng_seed(0)
    model = reasoning(LM, None, stop=";", max_steps=MAX_STEPS, max_tokens=MAX_TOKENS)
    found = SMC(model, 12).run("a").explain(answer=lambda ctx: ctx.text[:1])
    assert found.disliked == [] and found.reward_margin is None and found.dropped is None
    assert "which steps the reward disliked: no reward was asked" in found.unknown


# Every algorithm, plates, and what has no answer


@pytest.mark.parametrize(("name", "plates"), CASES)
def test_every_result_explains_itself(name: str, plates: bool) -> None:
    """The same answers as ``answers()``, the same words twice, and no claim that its family cannot make."""
    posterior = run_by_name(name, problems if plates else problem, int(plates))

    def first(ctx: Any) -> str:
        return str(ctx.text[:1])

    found = posterior.explain(answer=first)
    again = posterior.explain(answer=first)
    expected = posterior.marginal(first)
    pairs = list(zip(found, again, expected, strict=True)) if plates else [(found, again, expected)]
    for one, other, marginal in pairs:
        assert isinstance(one, Explanation) and str(one) == str(other) and json.dumps(one.as_dict()) == json.dumps(other.as_dict())
        if one.kind != "scores":
            assert [c.answer for c in one.competitors] == list(marginal.probs)
            assert [c.probability for c in one.competitors] == pytest.approx(list(marginal.probs.values()))
        assert (one.kind in ("votes", "scores")) == (not posterior.estimates_posterior)
        assert (one.log_evidence is None) == ("no_evidence" in posterior.diagnostics())
        assert one.parting is None or one.parting.step == len(one.parting.shared) + 1
        assert not math.isnan(one.entropy) and "nan" not in str(one)


@pytest.mark.parametrize("name", ["SMC", "BestOfN"])
def test_a_problem_without_a_weight(name: str) -> None:
    def dead() -> Tensor:
        with pyro.plate("problems", 2, dim=-1):
            x = pyro.sample("x", dist.Bernoulli(torch.full((2,), 0.5)))
            pyro.factor("wall", torch.where(torch.arange(2) == 1, -torch.inf, x))
            return barrier(x)

    pyro.set_rng_seed(0)
    algorithm: Any = SMC if name == "SMC" else BestOfN
    alive, lost = algorithm(dead, 4, max_plate_nesting=1).run().explain(answer=float)
    assert alive.competitors and lost.competitors == [] if name == "SMC" else alive.competitors
    if name == "SMC":
        assert lost.lines == ["There is no answer: every particle has weight zero."]
    nothing = constructed().explain(describe=said, answer=lambda value: None)
    assert nothing.lines == ["There is no answer: no solution with a weight gives an answer."]


def test_texts_of_a_model_cannot_drive_a_terminal() -> None:
    found = solutions().explain()
    assert any(HOSTILE[:9] in step for c in found.competitors for step in c.steps) or HOSTILE[:9] not in str(found)
    wild = constructed().explain(describe=lambda name, value: f"\x1b[2J{'x' * 300}\u202e{int(value)}", answer=answer)
    assert "\x1b" not in str(wild) and "\u202e" not in str(wild) and max(map(len, wild.lines)) < 700
    assert len(three_problems().explain()) == 3


def test_a_model_without_answers_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        TypeError, match=r"explain\(\) needs a model that returns its context, this one returned Tensor; give answer=function"
    ):
        constructed().explain()


def test_lists_of_posteriors_explain_each() -> None:
    assert set(LISTED) <= set(EVERY)
