"""Confidence of a four-symbol table by hand, windows against plain Python, the cut against enumeration, and wrong versions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm import PAD, SMC, Confidence, Context, Enumeration, Importance, TabularLM, reasoning
from ppl_llm.inference.cost import CostMeter
from ppl_llm.lm.token_figures import TokenFigure
from ppl_llm.reward import confidence, confidence_windows
from ppl_llm.reward.confidence_windows import group_means, reduced

SYMBOLS = ["a", "b", ";", "$"]
P = [
    [0.4, 0.3, 0.2, 0.1],
    [0.1, 0.7, 0.1, 0.1],
    [0.25, 0.25, 0.25, 0.25],
    [0.25, 0.25, 0.25, 0.25],
]
LM = TabularLM(torch.tensor(P, dtype=torch.float64).log(), SYMBOLS, eos="$")
REPLICAS = 2000
LIMIT = 4.9
"""Of a z-value: one right program in a million would be rejected under another seed."""


def figure(kind: str, last: int, token: int, k: int = 2) -> float:
    """Of one token, by hand."""
    p = P[last]
    if kind == "log-prob":
        return math.log(p[token])
    if kind == "entropy":
        return sum(q * math.log(q) for q in p)
    if kind == "top-k":
        return -sum(math.log(q) for q in sorted(p)[-k:]) / k
    if kind == "kl":
        return -sum(math.log(4 * q) for q in p) / 4
    first, second = sorted(p)[:-3:-1]
    return first - second


def figures(kind: str, tokens: list[int], start: int = 0) -> list[float]:
    return [figure(kind, last, token) for last, token in zip([start, *tokens], tokens, strict=False)]


def windows(values: list[float], n: int) -> list[float]:
    return [sum(values[i : i + n]) / n for i in range(len(values) - n + 1)] if len(values) > n else [sum(values) / len(values)]


def over(values: list[float], how: str, n: int) -> float:
    """Of all tokens of a solution."""
    if how == "mean":
        return sum(values) / len(values)
    if how == "tail":
        return sum(values[-n:]) / len(values[-n:])
    means = sorted(windows(values, n))
    least = means[: max(1, len(means) // 10)]
    return means[0] if how == "least" else sum(least) / len(least)


def written(*steps: list[int]) -> Context:
    """Two sequences: these steps, and one that has ended."""
    context = LM.start("a").expand((2,))
    for n, step in enumerate(steps):
        other = [3] if n == 0 else []
        rows = [[*row, *[PAD] * (4 - len(row))] for row in (step, other)]
        context = context.extend(torch.tensor(rows), stop=";")
    return context


@pytest.mark.parametrize("kind", confidence.MEASURES)
def test_a_four_symbol_table_by_hand(kind: str) -> None:
    """After a: (0.4, 0.3, 0.2, 0.1); after b: (0.1, 0.7, 0.1, 0.1)."""
    context = written([1, 1, 2], [0, 0, 2])
    reward = Confidence(kind, k=2)
    means = [[sum(v) / len(v) for v in (figures(kind, [1, 1, 2]), figures(kind, [0, 0, 2], 2))], [figure(kind, 0, 3)] * 2]
    scores = {"log-prob": math.exp, "entropy": math.exp, "margin": lambda c: c}.get(kind, lambda c: c / (1 + c))
    expected = torch.logit(torch.tensor([[scores(c) for c in row] for row in means], dtype=torch.float64)).float()
    torch.testing.assert_close(reward.step_log_odds(context), expected, atol=2e-6, rtol=1e-6)
    whole = [over(figures(kind, [1, 1, 2, 0, 0, 2]), "mean", 0), figure(kind, 0, 3)]
    if kind in ("log-prob", "entropy"):
        whole = list(map(math.exp, whole))
    assert reward.of(context).tolist() == pytest.approx(whole, rel=1e-12)


def test_figures_of_one_distribution_in_numbers() -> None:
    """p = (0.4, 0.3, 0.2, 0.1)."""
    logits, token = torch.tensor(P[0], dtype=torch.float64).log()[None], torch.tensor([2])

    def value(measure: str, k: int = 0) -> float:
        return float(TokenFigure(measure, k=k)(logits + 3.0, token))

    assert value("margin") == pytest.approx(0.1, abs=1e-12)
    assert value("top_k", 2) == pytest.approx(-(math.log(0.4) + math.log(0.3)) / 2, abs=1e-12)
    assert value("top_k", 20) == pytest.approx(-sum(map(math.log, P[0])) / 4, abs=1e-12)
    assert value("kl") == pytest.approx(-sum(map(math.log, P[0])) / 4 - math.log(4), abs=1e-12)
    assert value("log_prob") == pytest.approx(math.log(0.2), abs=1e-12)
    assert value("entropy") == pytest.approx(-1.2798542258336676, abs=1e-12)


@pytest.mark.parametrize("how", ["mean", "least", "bottom", "tail"])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_windows_of_a_solution_by_hand(how: str, n: int) -> None:
    """Of all tokens so far, at each step."""
    steps = [[1, 1, 2], [0, 0, 2], [1, 2]]
    reward = Confidence("top-k", k=2, over=how, window=None if how == "mean" else n)
    z, tokens = reward.step_log_odds(written(*steps)), []
    for t, step in enumerate(steps):
        tokens += step
        c = over(figures("top-k", tokens), how, n)
        assert float(z[0, t]) == pytest.approx(math.log(c), abs=2e-6)
    assert z[1].tolist() == [z[1, 0].item()] * 3 and reward.of_prefixes
    assert float(reward.of(written(*steps))[0]) == pytest.approx(over(figures("top-k", tokens), how, n), rel=1e-12)


@given(st.lists(st.lists(st.floats(0, 9), min_size=0, max_size=30), min_size=1, max_size=4), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_windows_of_any_texts(rows: list[list[float]], n: int) -> None:
    width = max(1, max(map(len, rows)))
    values = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64)
    lengths = torch.tensor(list(map(len, rows)))
    for how in ("mean", "least", "bottom", "tail"):
        found = reduced(values, lengths, how, n)
        for row, value in zip(rows, found.tolist(), strict=True):
            if row:
                assert value == pytest.approx(over(row, how, n), abs=1e-9)


def test_an_infinite_figure_makes_its_windows_infinite_and_no_other() -> None:
    means, number = group_means(torch.tensor([[1.0, math.inf, 3.0, 4.0]], dtype=torch.float64), torch.tensor([4]), 2)
    assert means.tolist() == [[math.inf, math.inf, 3.5]] and number.tolist() == [3]


def test_the_margin_of_the_answers_tokens() -> None:
    """The answer bb is written with the two b behind the delimiter."""
    reward = Confidence("margin", over="answer")
    context = replace(LM.start("a"), answer_forms=("text",))
    open_ = context.extend(torch.tensor([0, 2, PAD]), stop=";")
    assert float(reward.step_log_odds(open_)[0]) == math.inf and float(reward.concluded_log_odds(open_)[0]) == -math.inf
    assert float(reward.of(open_)) == pytest.approx((0.1 + 0.1) / 2)  # of a; so far
    ended = open_.extend(torch.tensor([1, 1, 3]), stop=";")
    z = reward.step_log_odds(ended)
    c = (0.1 + 0.1 + 0.0 + 0.6) / 4  # of a;bb, without the end of the text
    assert z.tolist() == pytest.approx([math.inf, math.log(c / (1 - c))], abs=1e-6)
    last = replace(ended, answer_forms=("boxed",))
    assert float(Confidence("margin", over="answer").of(last)) == 0.0  # no answer
    assert float(Confidence("margin", over="answer").step_log_odds(last)[1]) == -math.inf


def test_only_the_answers_tokens_count() -> None:
    class Tagged(TabularLM):
        def decode(self, ids: list[int]) -> str:
            return "".join({0: "So. ", 1: "The answer is ", 2: "7", 3: ""}[i] for i in ids)

    lm = Tagged(LM.logits, SYMBOLS, eos="$")
    context = lm.start("a").extend(torch.tensor([0, 1, 2, 3]), stop="?")
    assert context.answers() == "7"
    assert float(Confidence("margin", over="answer").of(context)) == pytest.approx(0.6)  # p_1 - p_2 after b


def test_what_sampling_had_costs_no_pass() -> None:
    torch.manual_seed(0)
    reward = Confidence("kl", window=2, over="bottom")
    context = LM.start("a").expand((6,))
    reward.prepare(context)
    for _ in range(3):
        context = context.extend(context.lm.sample_step(context, torch.Size((6,)), _options()).tokens, ";")  # type: ignore[attr-defined]
        with CostMeter() as meter, pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(LM), "token_values", lambda *_: pytest.fail("a pass"))
            reward.step_log_odds(context)
        assert "lm_forwards" not in meter.totals
        context = context.reorder(torch.randint(0, 6, (6,)))
    again = Confidence("kl", window=2, over="bottom")
    torch.testing.assert_close(again.step_log_odds(replace(context, cache_entries={})), reward.step_log_odds(context))


def _options() -> Any:
    from ppl_llm.lm.base import StepOptions

    return StepOptions(";", 3)


# The cut: a zero factor at a step

MODEL: dict[str, Any] = {"stop": ";", "max_tokens": 2, "max_steps": 3}
THRESHOLD = 1.15


def program(reward: Any) -> Any:
    return reasoning(LM, reward, **MODEL)


def cut(n: int = 2, least: float = THRESHOLD) -> dict[str, float]:
    """p(text) of those texts no beginning of which has a window below the threshold, in plain Python; an unfinished text that is
    shorter than a window has none."""
    found: dict[str, float] = {}

    def grow(tokens: list[int], step: list[int], left: int, mass: float) -> None:
        ended = bool(step) and (step[-1] in (2, 3) or len(step) == 2)
        if ended:
            full = len(tokens) >= n or step[-1] == 3
            if full and over(figures("top-k", tokens), "least", n) < least:
                return
            if step[-1] == 3 or left == 1:
                text = "".join(SYMBOLS[v] for v in tokens if v != 3)
                found[text] = found.get(text, 0.0) + mass
                return
            step, left = [], left - 1
        for v in range(4):
            grow([*tokens, v], [*step, v], left, mass * P[tokens[-1] if tokens else 0][v])

    grow([], [], 3, 1.0)
    return found


def difference(reward: Any) -> float:
    """Largest difference of the evidence or of the probability of a text to plain Python's."""
    torch.set_default_dtype(torch.float64)
    try:
        found = Enumeration(program(reward)).run("a")
    finally:
        torch.set_default_dtype(torch.float32)
    table = cut()
    total = sum(table.values())
    marginal = found.marginal(lambda context: context.text)
    off = [abs(marginal.prob(text) - table.get(text, 0.0) / total) for text in set(marginal.probs) | set(table)]
    return max(*off, abs(float(found.log_evidence.exp()) - total))


REWARD: dict[str, Any] = {"k": 2, "window": 2, "threshold": THRESHOLD}


def test_the_cut_is_a_zero_factor() -> None:
    assert 0.05 < sum(cut().values()) < 0.95 and difference(Confidence("top-k", **REWARD)) < 1e-10


class LooksAtTheLastWindow(Confidence):
    """Forgets the windows before."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__(kind, **{**options, "over": "tail"})


class MarginInPlaceOfTheTop(Confidence):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__("margin", **options)


class WithoutAFactor(Confidence):
    """Halves the weight, where it should cut."""

    def _log_odds(self, c: Any) -> Any:
        return super()._log_odds(c).clamp(min=0.0)


@pytest.mark.parametrize("mutant", [LooksAtTheLastWindow, MarginInPlaceOfTheTop, WithoutAFactor])
def test_wrong_cuts_are_rejected(mutant: type[Confidence]) -> None:
    """A right one is off by 1e-10 at most."""
    assert difference(mutant("top-k", **REWARD)) > 1e-3


def test_rejects_windows_of_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    right = confidence_windows.group_means
    monkeypatch.setattr(confidence_windows, "group_means", lambda values, lengths, window: right(values, lengths, window + 1))
    assert difference(Confidence("top-k", **REWARD)) > 1e-3


def test_rejects_places_that_are_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = confidence._grown
    monkeypatch.setattr(confidence, "_grown", lambda values, place, new, real: right(values, place + 1, new, real))
    assert difference(Confidence("top-k", **REWARD)) > 1e-3


@pytest.mark.parametrize(("algorithm", "options"), [(SMC, {"ess_threshold": 1.0}), (SMC, {"resampler": "ssp"}), (Importance, {})])
def test_filters_with_a_cut_are_unbiased(algorithm: Any, options: dict[str, Any]) -> None:
    table = cut()
    evidence = sum(table.values())
    pyro.set_rng_seed(4)
    posterior = algorithm(program(Confidence("top-k", **REWARD)), 4, max_plate_nesting=1, **options).run(["a"] * REPLICAS)
    mass = posterior.log_evidence.exp()
    assert abs(float((mass.mean() - evidence) / mass.std() * REPLICAS**0.5)) < LIMIT
    given = posterior.value.text
    for text, p in table.items():
        if p > 0.01:
            share = torch.tensor([[row[r] == text for r in range(REPLICAS)] for row in given])
            estimate = mass * (posterior.weights.nan_to_num(0.0) * share).sum(0)
            assert abs(float((estimate.mean() - p) / estimate.std() * REPLICAS**0.5)) < LIMIT, text


@pytest.mark.parametrize("kind", confidence.MEASURES)
def test_a_threshold_is_on_the_scale_of_the_confidence(kind: str) -> None:
    """A solution at its own confidence is kept, and cut right above it."""
    context = written([1, 1, 2], [0, 0, 2])
    reward = Confidence(kind, over="mean", k=2)
    own = reward.of(context)
    assert reward.cutting(own).step_log_odds(context)[:, -1].tolist() == [math.inf] * 2
    assert reward.cutting(own + 1e-9).step_log_odds(context)[:, -1].tolist() == [-math.inf] * 2


def test_names_on_the_command_line() -> None:
    assert str(Confidence.parse("top-k")) == "top-k" and str(Confidence.parse("margin:answer")) == "margin:answer"
    assert str(Confidence.parse("kl:64")) == "kl:64:least" and str(Confidence.parse("kl:8:bottom")) == "kl:8:bottom"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "top_k"}, "unknown kind 'top_k'; did you mean 'top-k'"),
        ({"over": "lest"}, "unknown over 'lest'; did you mean 'least'"),
        ({"over": "tail"}, "over='tail' needs a window, such as 64"),
        ({"over": "mean", "window": 8}, "over='mean' has no windows, and window is 8"),
        ({"window": 0}, "window must be None or an integer of at least 1, got 0"),
        ({"k": 0}, "k must be an integer of at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Confidence(**options)


@pytest.mark.parametrize("text", ["top-k:tail:8", "top-k:8:tail:1", "top-k:x:tail"])
def test_names_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match="confidence must be KIND, KIND:WINDOW or KIND:WINDOW:OVER"):
        Confidence.parse(text)


def test_thresholds_that_are_none() -> None:
    with pytest.raises(ValueError, match="threshold must be a confidence, got nan"):
        Confidence("kl", threshold=math.nan)
    three = Confidence("margin", window=1, threshold=torch.tensor([0.1, 0.2, 0.3]))
    table = TabularLM(torch.zeros(2, 2, dtype=torch.float64), ["a", "$"], eos="$")
    model = reasoning(table, three, stop="\x00", max_tokens=1, max_steps=1)
    with pytest.raises(ValueError, match=r"threshold must be a number, or one for each problem of the plate, got \(3,\) of them"):
        SMC(model, 4).run("a")


@pytest.mark.parametrize("text", ["kl:\u00b2", "top-k:\u0663", "kl:", "kl:64:", "kl:answer:64", "kl:8:16", "kl:64:tail:x"])
def test_what_is_no_confidence_is_one_clear_line(text: str) -> None:
    with pytest.raises(ValueError, match="confidence must be KIND, KIND:WINDOW or KIND:WINDOW:OVER, such as top-k:64:tail, got"):
        Confidence.parse(text)
