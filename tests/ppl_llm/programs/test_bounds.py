"""Solutions that a bound cuts before their ends: ``max_tokens_completion`` treats them as ``max_steps`` does, and no algorithm prefers
them to a finished one.

With steps of one token both bounds cut the same solutions, so that the two programs must have the same posterior, and the same searches.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm import (
    DVTS,
    REBASE,
    SMC,
    BeamSearch,
    BestOfN,
    Confidence,
    Context,
    Enumeration,
    FunctionReward,
    Importance,
    ProductReward,
    SelfConsistency,
    SpeculativeRejection,
    StopReason,
    SuffixMH,
    SumReward,
    TabularLM,
    TabularReward,
    Twist,
    reasoning,
)
from ppl_llm.inference import ParticlePosterior, SMCFailed
from ppl_llm.reward.base import RewardModel, step_scores
from tests.helpers.cut_mutants import CutAmongFinished, FullIsFinished, LastStepGoesOn

SYMBOLS = ["a", "b", ";", "$"]
CHAINS = 1000
BOUND = 3
"""Tokens of a solution; one without an end among them is cut."""


@cache
def tabular() -> TabularLM:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return TabularLM(logits, SYMBOLS, eos="$")


def longer_is_better(problem: str, text: str) -> float:
    """Log-odds that no float32 rounds, the greatest of texts that are cut."""
    return len(text) - 1.5 + 0.25 * text.count("b")


def liking(kind: type[FunctionReward] = FunctionReward, **options: Any) -> FunctionReward:
    return kind(longer_is_better, scale="log_odds", **options)


VALUE = TabularReward(torch.tensor([0.5, -1.0, 0.25, 0.75]), bias=0.25)
WHOLE: dict[str, tuple[RewardModel, dict[str, Any]]] = {
    "likelihood": (liking(), {}),
    "difference": (liking(), {"preset": "twisted"}),
    "max": (liking(), {"preset": "twisted", "potential": "max"}),
    "sum": (liking(), {"preset": "twisted", "potential": "sum"}),
    "twist": (Twist(VALUE, liking()), {"preset": "twisted", "aggregation": "last"}),
    "product": (ProductReward([liking(), liking(partial=False)], weights=[0.5, 0.5]), {}),
}
"""Rewards of whole answers whose target is p(x) s(x) over finished solutions."""
OTHERS: dict[str, tuple[RewardModel, dict[str, Any]]] = {
    "odds": (SumReward([liking(pending=0.0), VALUE]), {"potential": "odds", "aggregation": "last"}),
    "pending": (liking(pending=-0.5), {"preset": "twisted"}),
    "partial": (liking(partial=True), {}),
    "words": (liking(partial="b"), {"preset": "twisted"}),
    "steps": (VALUE, {}),
    "twist of a partial verifier": (Twist(VALUE, liking(partial=True)), {"preset": "twisted", "aggregation": "last"}),
    "confidence": (Confidence("log-prob", over="answer"), {"answer_fallback": "text"}),
}
BOUNDS: dict[str, dict[str, Any]] = {"tokens": {"max_steps": BOUND + 4, "max_tokens_completion": BOUND}, "steps": {"max_steps": BOUND}}


def bounded(bound: str, reward: RewardModel | None, **options: Any) -> Any:
    return reasoning(tabular(), reward, tokens_per_step=1, **BOUNDS[bound], **options)


def by_tokens(posterior: ParticlePosterior) -> dict[tuple[int, ...], float]:
    """The weight of each solution."""
    context, found = posterior.value, dict[tuple[int, ...], float]()
    for row, begin, end, weight in zip(
        context.tokens.tolist(), context.prompt_lengths.tolist(), context.lengths.tolist(), posterior.weights.tolist(), strict=True
    ):
        key = tuple(row[begin:end])
        found[key] = found.get(key, 0.0) + weight
    return found


def solutions() -> list[tuple[tuple[int, ...], float]]:
    """All token sequences of the bounded programs, and their log-probabilities, from the table alone."""
    end, first = SYMBOLS.index("$"), SYMBOLS.index("a")
    log_p = tabular().logits.log_softmax(-1).float().tolist()  # of one step
    found = []
    for length in range(1, BOUND + 1):
        for tokens in itertools.product(range(4), repeat=length):
            ended = tokens[-1] == end
            if end not in tokens[:-1] and (ended or length == BOUND):
                found.append((tokens, sum(log_p[a][b] for a, b in itertools.pairwise((first, *tokens)))))
    return found


def finished(posterior: ParticlePosterior) -> Tensor:
    """By the last tokens, whatever the context says."""
    context = posterior.value
    last = context.tokens.gather(-1, context.lengths[..., None] - 1)[..., 0]
    found: Tensor = last == SYMBOLS.index("$")
    return found


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("name", WHOLE)
def test_the_target_is_that_of_finished_solutions(name: str, bound: str) -> None:
    """Against sums over all token sequences: those that are cut have weight zero, the others p(x) s(x)."""
    reward, options = WHOLE[name]
    posterior = Enumeration(bounded(bound, reward, **options)).run("a")
    wanted = {}
    for tokens, log_p in solutions():
        text = "".join(SYMBOLS[i] for i in tokens if SYMBOLS[i] != "$")
        z = torch.tensor(longer_is_better("a", text), dtype=torch.float64 if options else torch.float32)
        if name == "product":  # in float64, and then a float32 of log-odds
            log_s = torch.nn.functional.logsigmoid(z.double())
            z = (log_s - torch.log(-torch.expm1(log_s))).float()
        score = math.exp(log_p + float(torch.nn.functional.logsigmoid(z)))
        wanted[tokens] = score if tokens[-1] == SYMBOLS.index("$") else 0.0
    assert any(weight == 0.0 for weight in wanted.values())
    evidence = math.fsum(wanted.values())
    assert float(posterior.log_evidence) == pytest.approx(math.log(evidence), abs=1e-10)
    found = by_tokens(posterior)
    assert all(found.get(tokens, 0.0) == pytest.approx(weight / evidence, abs=1e-10) for tokens, weight in wanted.items())
    assert torch.equal(posterior.value.finished, finished(posterior))


@pytest.mark.parametrize("name", [*WHOLE, *OTHERS])
def test_both_bounds_have_the_same_target(name: str) -> None:
    reward, options = (WHOLE | OTHERS)[name]
    of_tokens, of_steps = (Enumeration(bounded(bound, reward, **options)).run("a") for bound in BOUNDS)
    assert float(of_tokens.log_evidence) == pytest.approx(float(of_steps.log_evidence), abs=1e-10)
    assert by_tokens(of_tokens) == pytest.approx(by_tokens(of_steps), abs=1e-10)
    if name in OTHERS and name not in ("odds", "pending", "confidence"):  # judged as they stand
        assert float(of_tokens.weights[~of_tokens.value.finished].sum()) > 0.0
    else:
        assert float(of_tokens.weights[~of_tokens.value.finished].sum()) == 0.0


ALGORITHMS: dict[str, Any] = {
    "best-of-n": lambda model: BestOfN(model, 24),
    "majority": lambda model: SelfConsistency(model, 24),
    "importance": lambda model: Importance(model, 24),
    "beam search": lambda model: BeamSearch(model, 3, 4),
    "beam search, the best": lambda model: BeamSearch(model, 2, 3, sort_completed=True),
    "beam search, looking ahead": lambda model: BeamSearch(model, 2, 3, lookahead=1),
    "dvts": lambda model: DVTS(model, 4, 3),
    "rebase": lambda model: REBASE(model, 12),
    "speculative rejection": lambda model: SpeculativeRejection(model, 12),
}


def searched(name: str, bound: str, seed: int, reward: RewardModel, **options: Any) -> ParticlePosterior | None:
    """``None`` where no particle has a weight."""
    pyro.set_rng_seed(seed)
    try:
        found: ParticlePosterior = ALGORITHMS[name](bounded(bound, reward, **options)).run("a")
    except SMCFailed:
        return None
    return found


@pytest.mark.parametrize("reward", ["likelihood", "difference", "steps", "partial"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_both_bounds_give_the_same_candidates(name: str, reward: str) -> None:
    """With the same draws the weights of all solutions are the same, under rewards of whole answers and of steps."""
    given, options = (WHOLE | OTHERS)[reward]
    for seed in range(6):
        of_tokens, of_steps = (searched(name, bound, seed, given, **options) for bound in BOUNDS)
        if of_tokens is None or of_steps is None:
            assert of_tokens is of_steps
            continue
        assert by_tokens(of_tokens) == pytest.approx(by_tokens(of_steps), abs=1e-10), seed
        if reward in WHOLE and name != "majority":
            assert float(of_tokens.weights[~finished(of_tokens)].sum()) == 0.0


def beams(search: type[BeamSearch], seed: int, **options: Any) -> Tensor:
    """Which candidates have finished; steps end at a delimiter, so that those that are cut are so at several steps."""
    model = reasoning(tabular(), VALUE, max_steps=6, max_tokens=2, stop=";", max_tokens_completion=5)
    pyro.set_rng_seed(seed)
    return finished(search(model, 4, 3, **options).run("a"))


def in_order(flags: Tensor) -> bool:
    """Whether finished candidates come first, and then the others; where there are too few, all are repeated."""
    told = flags.tolist()
    number = told.index(False) if False in told else len(told)
    whole = range(max(1, number), len(told) + 1)
    return not any(told) or any(told == [i % length < number for i in range(len(told))] for length in whole)


@pytest.mark.parametrize("ordered", [False, True])
def test_beam_search_fills_up_with_what_is_cut_behind_the_finished_candidates(ordered: bool) -> None:
    found = [beams(BeamSearch, seed, sort_completed=ordered) for seed in range(30)]
    assert all(map(in_order, found))
    assert any(bool(each.any()) and not bool(each.all()) for each in found)


def test_rejects_a_beam_search_that_returns_what_is_cut_first() -> None:
    assert not all(in_order(beams(CutAmongFinished, seed)) for seed in range(30))


def test_a_beam_search_of_cut_solutions_alone_returns_them() -> None:
    """Under a reward of steps, as at ``max_steps``: they are the last resort."""
    endless = TabularLM(torch.tensor([[0.0, 0.0, 0.0, -math.inf]] * 4), SYMBOLS, eos="$")
    found = []
    for bound in BOUNDS.values():
        pyro.set_rng_seed(0)
        found.append(BeamSearch(reasoning(endless, VALUE, tokens_per_step=1, **bound), 2, 2).run("a"))
    assert not bool(found[0].value.finished.any()) and bool((found[0].weights > 0).any())
    assert by_tokens(found[0]) == pytest.approx(by_tokens(found[1]), abs=1e-10)


@pytest.mark.parametrize("bound", BOUNDS)
def test_estimators_agree_with_the_enumeration(bound: str) -> None:
    """The evidence of filters, and the last states of many chains; tolerances are four standard errors or more."""
    model = bounded(bound, liking(), preset="twisted")
    exact = Enumeration(model).run("a")
    wanted = by_tokens(exact)
    for algorithm in (Importance(model, 4000), SMC(model, 4000), SMC(model, 4000, ess_threshold=1.0)):
        pyro.set_rng_seed(1)
        found = algorithm.run("a")
        assert float(found.log_evidence) == pytest.approx(float(exact.log_evidence), abs=0.12)
        shares = by_tokens(found)
        assert all(abs(shares.get(tokens, 0.0) - weight) < 0.06 for tokens, weight in wanted.items())
        assert float(found.weights[~finished(found)].sum()) == 0.0
    pyro.set_rng_seed(2)
    last = SuffixMH(model, max_plate_nesting=1).run(25, ["a"] * CHAINS).iterations[-1]
    tokens = [tuple(t for t in row[1:] if t >= 0) for row in last.value.tokens.flatten(0, 1).tolist()]
    shares = dict.fromkeys(wanted, 0.0)
    for key, weight in zip(tokens, last.weights.flatten().tolist(), strict=True):
        shares[key] += weight / CHAINS
    assert all(abs(shares[key] - weight) < 4 * math.sqrt(weight * (1 - weight) / CHAINS) + 1e-9 for key, weight in wanted.items())


def choice(model: Any, seed: int, algorithm: Any = BestOfN) -> tuple[Any, bool]:
    """The solution of the answer that is chosen, and whether it has finished, where any has."""
    pyro.set_rng_seed(seed)
    posterior = algorithm(model, 16).run("a")
    context: Context = posterior.value
    answer = model.choose(posterior)
    n = model.choose_particle(context, posterior.weights.tolist(), answer)
    return answer, bool(finished(posterior)[n]) or not bool(finished(posterior).any())


@pytest.mark.parametrize("preset", ["exact", "twisted", "as_paper", "its_hub"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_no_choice_falls_on_what_is_cut(bound: str, preset: str) -> None:
    """Every text is an answer here, so that one that is cut would have a vote; the verifier likes long ones."""
    published = preset in ("as_paper", "its_hub")  # which are filters, with a factor of all steps but the last
    reward = liking(pending=0.0) if published else liking()
    for algorithm, seed in itertools.product([SMC] if published else [SMC, BestOfN, Importance], range(3)):
        answer, right = choice(bounded(bound, reward, preset=preset, answer_fallback="text"), seed, algorithm)
        assert right and answer is not None and len(answer) < BOUND


def test_rejects_a_full_completion_as_finished() -> None:
    assert lets_cut_solutions_win(FullIsFinished, "tokens")


def test_rejects_a_last_step_that_goes_on() -> None:
    assert lets_cut_solutions_win(LastStepGoesOn, "steps")


def lets_cut_solutions_win(wrong: type[FunctionReward], bound: str) -> bool:
    """Whether a verifier that likes long texts gives weight to solutions that are cut, adds to the evidence by them, and chooses them."""
    right, model = (bounded(bound, liking(kind), answer_fallback="text") for kind in (FunctionReward, wrong))
    posterior = Enumeration(model).run("a")
    weighed = float(posterior.weights[~finished(posterior)].sum()) > 0.3
    adds = float(posterior.log_evidence) > float(Enumeration(right).run("a").log_evidence) + 0.3
    return weighed and adds and not any(choice(model, seed)[1] for seed in range(3))


def test_a_text_that_ends_at_the_bound_is_finished() -> None:
    """By the end of the text, by a pattern, or by a final stop; a delimiter is none."""
    context = Enumeration(reasoning(tabular(), None, max_steps=4, max_tokens=3, stop=";", max_tokens_completion=3)).run("a").value
    written = context.lengths - context.prompt_lengths
    last = context.tokens.gather(-1, context.lengths[..., None] - 1)[..., 0]
    assert bool(context.done[written == 3].all())
    assert torch.equal(context.finished, last == SYMBOLS.index("$")) and bool((context.finished & (written == 3)).any())
    for options in ({"finish": "b"}, {"final_stop": ("b",)}):
        model = reasoning(tabular(), None, max_steps=4, max_tokens=3, stop=";", max_tokens_completion=3, **options)  # type: ignore[arg-type]
        context = Enumeration(model).run("a").value
        written = context.lengths - context.prompt_lengths
        matched = context.reasons[..., -1] == StopReason.PATTERN
        assert bool((matched & (written == 3)).any()) and bool(context.finished[matched].all())


def test_scores_of_what_is_cut() -> None:
    """-inf from the step that is cut on, without a question to the judge; with ``partial`` what it is worth as it stands."""
    context = Enumeration(bounded("tokens", None)).run("a").value
    asked: list[str] = []

    def judge(problem: str, text: str) -> float:
        asked.append(text)
        return 0.5

    reward = FunctionReward(judge)
    scores, cut = reward.step_log_odds(context), ~context.finished
    assert bool((scores[cut][:, -1] == -math.inf).all()) and bool((scores[cut][:, :-1] == math.inf).all())
    assert bool((scores[~cut][:, -1] == 0.0).all()) and max(map(len, asked)) < BOUND
    assert torch.equal(step_scores(reward, context, last_step=True), scores)
    assert not bool(reward.judged_steps(context)[cut].any())
    partial = FunctionReward(judge, partial=True)
    assert bool((partial.step_log_odds(context) == 0.0).all())
