"""DeepConf against plain Python: who votes and with what, the distribution of the winner, cuts, and wrong versions."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm import Confidence, DeepConf, Importance, TabularLM, multi_temperature, reasoning, revise
from ppl_llm.evaluation import Candidate, deepconf_vote
from ppl_llm.evaluation.votes import as_record, candidates, from_record
from ppl_llm.programs import deepconf as program
from ppl_llm.programs.deepconf import surest
from ppl_llm.programs.models import ReasoningModel

SYMBOLS = ["a", "b", ";", "$"]
LM = TabularLM(1.1 * torch.randn(4, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64), SYMBOLS, eos="$")
PROBS = LM.logits.softmax(-1).tolist()
REPLICAS = 2000
LIMIT = 4.9
"""Of a z-value: one right program in a million would be rejected under another seed."""


def model(max_tokens: int = 2) -> ReasoningModel:
    sure = Confidence("top-k", k=2, window=2)
    return reasoning(LM, None, stop=";", max_tokens=max_tokens, max_steps=2, answer_fallback="text", confidence=sure)


@cache
def sureness(text: str, ended: bool) -> float:
    """The least mean over two tokens, by hand."""
    tokens = [SYMBOLS.index(c) for c in text] + ([3] if ended else [])
    each = [-sum(math.log(p) for p in sorted(PROBS[last])[-2:]) / 2 for last in [0, *tokens][: len(tokens)]]
    means = [sum(each[i : i + 2]) / 2 for i in range(len(each) - 1)]
    return min(means) if means else each[0]


def solutions() -> dict[tuple[str, bool], float]:
    """p of each (text, whether it has ended) of two steps of one token."""
    found: dict[tuple[str, bool], float] = defaultdict(float)
    for v in range(4):
        if v == 3:
            found["", True] += PROBS[0][v]
            continue
        for w in range(4):
            found[SYMBOLS[v] + ("" if w == 3 else SYMBOLS[w]), w == 3] += PROBS[0][v] * PROBS[v][w]
    return dict(found)


def winner(pool: tuple[tuple[str, bool], ...], eta: float) -> str | None:
    """The vote of these solutions in plain Python; ties to the first."""
    sure = [sureness(*each) for each in pool]
    number = max(1, math.ceil(eta * len(pool) - 1e-9))
    least = sorted(sure, reverse=True)[number - 1]
    votes: dict[str, float] = {}
    for (text, _), c in zip(pool, sure, strict=True):
        if c >= least - 1e-12 and text.strip():
            votes[text.strip()] = votes.get(text.strip(), 0.0) + c
    return max(votes, key=lambda text: votes[text]) if votes else None


def deviation(eta: float, run: Callable[[float], Any]) -> float:
    """Largest z-value of the share of each winner of three solutions, over replicas in a plate of problems."""
    table: dict[Any, float] = defaultdict(float)
    known = solutions()
    for pool in itertools.product(known, repeat=3):
        table[winner(pool, eta)] += math.prod(known[each] for each in pool)
    assert sum(table.values()) == pytest.approx(1.0)
    pyro.set_rng_seed(5)
    posterior = run(eta)
    chosen = model().choose(posterior)
    worst = 0.0
    for answer, p in table.items():
        share = sum(given == answer for given in chosen) / REPLICAS
        worst = max(worst, abs(share - p) / math.sqrt(max(p * (1 - p), 1e-6) / REPLICAS))
    return worst


def offline(eta: float) -> Any:
    return DeepConf(model(1), 3, eta=eta, max_plate_nesting=1).run(["a"] * REPLICAS)


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
def test_the_distribution_of_the_winner(eta: float) -> None:
    """All triples of solutions enumerated."""
    assert deviation(eta, offline) < LIMIT


def unsure(confidence: Tensor, eta: float) -> Tensor:
    """The least sure."""
    return surest(-confidence, eta)


def everybody(confidence: Tensor, eta: float) -> Tensor:
    return torch.ones_like(confidence, dtype=torch.bool)


@pytest.mark.parametrize("mutant", [unsure, everybody])
def test_wrong_choices_are_rejected(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "surest", mutant)
    assert deviation(0.1, offline) > 2 * LIMIT


def test_rejects_votes_that_are_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_votes", lambda confidence, kept: torch.where(kept, 0.0, -torch.inf).double())
    assert deviation(1.0, offline) > 1.5 * LIMIT


def test_weights_are_confidences_by_hand() -> None:
    pyro.set_rng_seed(1)
    found = DeepConf(model(), 10, eta=0.3).run("a")
    sure = [sureness(text, done) for text, done in zip(found.value.text, _ended(found), strict=True)]
    least = sorted(sure, reverse=True)[2]
    expected = [c if c >= least - 1e-12 else 0.0 for c in sure]
    assert found.weights.tolist() == pytest.approx([w / sum(expected) for w in expected], rel=1e-9)
    with pytest.raises(ValueError, match="DeepConf gives no evidence"):
        _ = found.log_evidence


def _ended(found: Any) -> list[bool]:
    context = found.value
    return [int(context.tokens[n, int(context.lengths[n]) - 1]) == 3 for n in range(len(context))]


def test_online_cuts_where_a_window_falls_below() -> None:
    """The threshold is the least of the surest initial ones; what is cut has no vote, and is written no further."""
    pyro.set_rng_seed(2)
    algorithm = DeepConf(model(), 60, eta=0.5, initial=20)
    found = algorithm.run("a")
    texts, ended = found.value.text, _ended(found)
    sure = [sureness(text, done) for text, done in zip(texts, ended, strict=True)]
    threshold = sorted(sure[:20], reverse=True)[9]
    assert float(algorithm.threshold(torch.tensor(sure[:20], dtype=torch.float64))) == pytest.approx(threshold, rel=2e-5)
    kept = [weight > 0 for weight in found.weights.tolist()]
    assert kept[:20] == [c >= threshold - 1e-12 for c in sure[:20]]
    for n in range(20, 60):
        short = len(texts[n]) + ended[n] < 2
        assert kept[n] == (sure[n] >= threshold - 1e-12 or (short and not ended[n])), (texts[n], sure[n], threshold)
    lost = [n for n in range(20, 60) if not kept[n]]
    stopped = [n for n in lost if len(found.value.steps[n]) == 1 and not ended[n]]
    assert lost and stopped, "nothing was cut short"
    pyro.set_rng_seed(2)
    whole = DeepConf(model(), 60, eta=0.5).run("a")
    assert found.cost["tokens_sampled"] < whole.cost["tokens_sampled"]


def test_each_problem_has_its_own_threshold() -> None:
    pyro.set_rng_seed(3)
    found = DeepConf(model(), 40, eta=0.25, initial=8, max_plate_nesting=1).run(["a", "b", "ab"])
    assert found.weights.shape == (40, 3) and bool((found.weights > 0).any(0).all())
    first = Confidence("top-k", k=2, window=2).of(found.value)[:8]
    kept = found.weights[:8] > 0
    for p in range(3):
        assert int(kept[:, p].sum()) >= 2
        lost = first[~kept[:, p], p]
        assert not len(lost) or float(first[kept[:, p], p].min()) > float(lost.max())
    assert not bool(kept.all())


def test_candidates_have_their_confidence() -> None:
    """Of a posterior: without a pass, and by hand; and it survives the record."""
    pyro.set_rng_seed(4)
    whole = model()
    posterior = Importance(whole, 6, max_plate_nesting=1).run(["a", "b"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(LM), "token_values", lambda *_: pytest.fail("a pass"))
        pool = candidates(whole, posterior, 0)
    context = posterior.value.select_plate(1, 0)
    ended = [int(context.tokens[n, int(context.lengths[n]) - 1]) == 3 for n in range(6)]
    expected = [sureness(text, done) for text, done in zip(context.text, ended, strict=True)]
    assert [c.confidence for c in pool] == pytest.approx(expected, rel=1e-9)
    assert from_record(as_record(pool[0])).confidence == pytest.approx(pool[0].confidence)


def test_the_vote_of_candidates_by_hand() -> None:
    pool = [Candidate(a, confidence=c) for a, c in (("x", 1.0), ("y", 3.0), ("x", 2.5), (None, 9.0), ("y", 0.5), ("x", 1.5))]
    assert deepconf_vote(pool, 0.1) is None  # the surest has no answer
    assert (
        deepconf_vote(pool, 0.3) == "y"
        and deepconf_vote(pool, 0.5) == "y"
        and deepconf_vote(pool, 0.6) == "x"
        and deepconf_vote(pool, 1.0) == "x"
    )
    assert deepconf_vote([]) is None
    with pytest.raises(ValueError, match="deepconf_vote needs each candidate's confidence; record it"):
        deepconf_vote([Candidate("x")])
    with pytest.raises(ValueError, match=r"eta must lie in \(0, 1\], got 0"):
        deepconf_vote(pool, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.0}, r"eta must lie in \(0, 1\], got 0.0"),
        ({"initial": 4}, "initial must be less than num_particles = 4, got 4"),
        ({"initial": -1}, "initial must be an integer of at least 0, got -1"),
        ({"model": reasoning(LM, None, power=2.0, confidence=Confidence("margin"))}, "the model has the power 2.0"),
        ({"model": revise(model()), "initial": 2}, "DeepConf with initial solutions takes a model of reasoning.* a RevisionModel"),
        ({"model": multi_temperature(model()), "initial": 2}, "DeepConf with initial solutions takes .* a MultiTemperatureModel"),
        ({"model": reasoning(LM, None)}, "the model keeps no confidence: give reasoning"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepConf(**{"model": model(), "num_particles": 4, **options})


def test_batches_of_different_lengths_are_explained_step_by_step() -> None:
    """The initial solutions may all end before the others: the steps of those are shown to their ends."""
    sure = Confidence("margin", window=1, over="tail")
    long = reasoning(LM, None, stop="\x00", max_tokens=1, max_steps=4, answer_fallback="text", confidence=sure)
    lengths = set()
    for seed in range(12):
        pyro.set_rng_seed(seed)
        posterior = DeepConf(long, 6, eta=1.0, initial=2).run("a")
        lengths.add(tuple(part.value.num_steps for part in posterior.parts))
        for competitor in posterior.explain().competitors:
            assert "".join(competitor.steps).strip() == competitor.answer
    assert any(first < rest for first, rest in lengths)
