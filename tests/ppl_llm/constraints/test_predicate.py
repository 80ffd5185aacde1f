"""Predicate: the common properties, weights with every draw of the rejection enumerated, and programs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm import PAD, PIMH, SMC, Context, LLMStep, ParticleGibbs, StepProposal, SuffixMH, TabularLM, TemperedSMC, barrier
from ppl_llm.constraints import Choices, Constraint, Predicate, TokenSet
from ppl_llm.lm.decoding import constrained_sampler
from ppl_llm.lm.decoding.rejection import adaptive_rejection, inverse_cdf_draw
from tests.helpers.constraint_properties import TOKENS, ConstraintProperties
from tests.helpers.tiny_models import language_model


def no_b_and_short(text: str) -> bool:
    return "b" not in text and len(text) < 4


def ends_with_a(text: str) -> bool:
    return text.endswith("a")


def text_of(tokens: list[int]) -> str:
    return b"".join(TOKENS[v] for v in tokens).decode(errors="replace")


class TestPredicate(ConstraintProperties):
    def constraint(self) -> Constraint:
        return Predicate(no_b_and_short, ends_with_a)

    def member(self, tokens: list[int]) -> bool:
        prefixes = [tokens[:n] for n in range(1, len(tokens) + 1)]
        return (
            all(TOKENS[v] for v in tokens)
            and all(no_b_and_short(text_of(prefix).removesuffix("\N{REPLACEMENT CHARACTER}")) for prefix in prefixes)
            and text_of(tokens).endswith("a")
        )


class TestProductWithPredicate(ConstraintProperties):
    def constraint(self) -> Constraint:
        return Predicate(no_b_and_short) & TokenSet(banned=[3]) & Choices(["aa", "ab", "a1", " a"])

    def member(self, tokens: list[int]) -> bool:
        return set(tokens) <= {0, 13, 14, 9} and text_of(tokens) in ("aa", "a1", " a")


def test_predicates_see_complete_characters_and_are_asked_once_of_a_text() -> None:
    asked: list[str] = []
    predicate = Predicate(lambda text: asked.append(text) or True)  # type: ignore[func-returns-value]
    vocabulary = language_model().vocabulary
    ids = [vocabulary.token_bytes.index(bytes([byte])) for byte in "é🙂".encode()]
    for _ in range(2):
        predicate.states(vocabulary, torch.tensor([ids, ids]))
    assert asked == ["", "é", "é", "é", "é", "é🙂"]


# the draw -------------------------------------------------------------------------------------------------------------------------------


def outcomes(run: Callable[[Callable[[Tensor], int]], Any]) -> Iterator[tuple[float, Any]]:
    """Every outcome of a function of draws, with its probability: the draws made so far are made again, the last one differently."""
    script: list[int] = []
    made: list[tuple[list[int], int]] = []
    probabilities: list[float] = []

    def draw(masses: Tensor) -> int:
        possible = masses.nonzero()[:, 0].tolist()
        place = script[len(made)] if len(made) < len(script) else 0
        made.append((possible, place))
        probabilities.append(float(masses[possible[place]] / masses.sum()))
        return int(possible[place])

    while True:
        made.clear()
        probabilities.clear()
        result = run(draw)
        yield math.prod(probabilities), result
        while made and made[-1][1] + 1 == len(made[-1][0]):
            made.pop()
        if not made:
            return
        script[:] = [place for _, place in made]
        script[-1] += 1


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.data())
@settings(max_examples=40, deadline=None)
def test_weights_are_unbiased_for_each_token(odds: list[int], data: Any) -> None:
    allowed = [data.draw(st.booleans()) for _ in odds]
    masses = torch.tensor(odds, dtype=torch.float64)
    found, whole = torch.zeros(len(odds), dtype=torch.float64), 0.0
    for probability, (token, estimate) in outcomes(lambda draw: adaptive_rejection(masses.clone(), lambda v: allowed[v], draw)):
        found[token] += probability * estimate
        whole += probability
    expected = masses * torch.tensor(allowed) / max(float(masses.sum()), 1.0)
    assert whole == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def first_draw_only(masses: Tensor, accepts: Callable[[int], bool], draw: Callable[[Tensor], int]) -> tuple[int, float]:
    """Weighs with one over the number of draws until the first accepted one, as if nothing were removed."""
    draws = 0
    while float(masses.sum()) > 0:
        token, draws = draw(masses), draws + 1
        if accepts(token):
            return token, 1.0 / draws
        masses[token] = 0.0
    return 0, 0.0


def classical(masses: Tensor, accepts: Callable[[int], bool], draw: Callable[[Tensor], int]) -> tuple[int, float]:
    """One over the number of draws but one until the second accepted one, as if nothing were removed."""
    draws, first = 0, -1
    while float(masses.sum()) > 0:
        token, draws = draw(masses), draws + 1
        if accepts(token):
            if first >= 0:
                return first, 1.0 / (draws - 1)
            first = token
        else:
            masses[token] = 0.0
    return 0, 0.0


@pytest.mark.parametrize("wrong", [first_draw_only, classical])
def test_rejects_other_weights(wrong: Any) -> None:
    masses = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    mean = sum(p * estimate for p, (_, estimate) in outcomes(lambda draw: wrong(masses.clone(), lambda v: v > 0, draw)))
    assert abs(mean - 3 / 7) > 0.02


def test_draws_are_made_by_inverse_cdf() -> None:
    masses = torch.tensor([0.0, 2.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert [inverse_cdf_draw(u)(masses) for u in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0 - 2**-53, 1.0)] == [1, 1, 3, 3, 4, 4, 4]


# programs -------------------------------------------------------------------------------------------------------------------------------

SYMBOLS = ["a", "b", "$"]
LM = TabularLM(torch.tensor([[3.0, 2.0, 1.0], [1.0, 4.0, 2.0], [1.0, 1.0, 1.0]], dtype=torch.float64).log(), SYMBOLS, eos="$")
LOG_FACTOR = torch.tensor(0.7, dtype=torch.float64)
RARE = Predicate(lambda text: "bb" not in text and text != "aa", lambda text: len(text) % 2 == 1)
"""With a dead end: after "a" in the first step, "ab" in the second."""


def program() -> Context:
    ctx = LM.start("a")
    for t in range(2):
        step = pyro.sample(f"step_{t}", LLMStep(ctx, stop=(), max_tokens=1 + t))
        ctx = ctx.extend(step, stop=())
        pyro.factor(f"accept_{t}", torch.where(ctx.lengths % 2 == 0, LOG_FACTOR, 0.0))
        ctx = barrier(ctx)
    return ctx


def expected() -> dict[str, float]:
    """p(x) 1[x may stand] times the factors, in plain Python."""
    probs, factor = LM.logits.softmax(-1), math.exp(0.7)
    table: dict[str, float] = defaultdict(float)

    def grow(text: str, mass: float) -> None:
        last = SYMBOLS.index(text[-1]) if text else 0
        for v, symbol in enumerate(SYMBOLS):
            grown = text + symbol
            if (symbol == "$" and len(text) % 2 == 0) or "bb" in grown or grown == "aa":
                continue
            # The prompt is a symbol too; there are two factors, after one symbol and after three or the end.
            total = mass * float(probs[last, v]) * (factor if len(grown) in (1, 3) else 1.0)
            if symbol == "$" or len(grown) == 3:
                table[grown] += total
            else:
                grow(grown, total)

    grow("", 1.0)
    return table


def test_evidence_with_every_draw_enumerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """E[Z-hat] and E[Z-hat 1[x]] of a run with one particle."""
    monkeypatch.setattr("ppl_llm.inference.handlers.particle_messenger.ParticleMessenger.check_alive", lambda messenger: None)
    smc = SMC(program, 1, proposals=StepProposal(constraint=RARE))

    def run(draw: Callable[[Tensor], int]) -> tuple[str, float]:
        monkeypatch.setattr(constrained_sampler, "inverse_cdf_draw", lambda u: draw)
        posterior = smc.run()
        tokens = posterior.value.tokens[0, 1:].tolist()
        return "".join(SYMBOLS[v] for v in tokens if v != PAD), float(posterior.log_evidence.exp())

    found: dict[str, float] = defaultdict(float)
    whole = 0.0
    for probability, (text, evidence) in outcomes(run):
        whole += probability
        if evidence > 0:
            found[text] += probability * evidence
    assert whole == pytest.approx(1.0, abs=1e-10)
    assert dict(found) == pytest.approx(dict(expected()), abs=1e-10)


def test_the_local_distribution_is_exact() -> None:
    """Draws carry no log-probability; it is computed with every token asked."""
    torch.manual_seed(0)
    fn = LLMStep(LM.start("a"), stop=(), max_tokens=3, constraint=RARE)
    support = fn.enumerate_support()
    probs = fn.log_prob(support).exp()
    assert float(probs.sum()) == pytest.approx(1.0, abs=1e-10)
    drawn = fn.expand(torch.Size([4000])).sample().tolist()
    for step, p in zip(support.tolist(), probs.tolist(), strict=True):
        assert abs(drawn.count(step) / 4000 - p) < 5 * (p * (1 - p) / 4000) ** 0.5


def test_trajectories_that_are_kept_are_refused() -> None:
    """When the kernel is made; a proposal that does not tell is refused in the second iteration."""
    pyro.set_rng_seed(0)
    guide = StepProposal(constraint=RARE)
    gibbs, suffix = (partial(each, proposals=guide) for each in (partial(ParticleGibbs, num_particles=4), SuffixMH))
    for make in (gibbs, suffix, partial(TemperedSMC, num_particles=4, kernel=suffix)):
        with pytest.raises(ValueError, match="are estimates, which belong to a draw and not to a value: they are for SMC, PIMH and PMMH"):
            make(program)
    with pytest.raises(NotImplementedError, match=r"estimated weights, which belong to a draw .* not with ParticleGibbs"):
        ParticleGibbs(program, 4, proposals=lambda site: guide(site)).run(3)


def test_chains_that_keep_whole_filters_take_estimated_weights() -> None:
    """PIMH keeps the weights of the filter that it accepted, and never asks for the density of a trajectory again."""
    pyro.set_rng_seed(0)
    found = PIMH(program, 4, proposals=StepProposal(constraint=RARE)).run(5)
    assert found.weights.isfinite().all() and not found.dead


def test_texts_of_a_transformers_model() -> None:
    lm = language_model()
    torch.manual_seed(0)

    def solve() -> Context:
        ctx = lm.start("What is 7 * 6?")
        for t in range(2):
            ctx = barrier(ctx.extend(pyro.sample(f"step_{t}", LLMStep(ctx, stop=(), max_tokens=5)), stop=()))
        return ctx

    posterior = SMC(solve, 6, proposals=StepProposal(constraint=Predicate(lambda text: "e" not in text and "\n" not in text))).run()
    assert all("e" not in text and "\n" not in text for text in posterior.value.text) and float(posterior.log_evidence) < 0


def test_what_is_no_function_is_named() -> None:
    with pytest.raises(ValueError, match="allows must be a function, got 'abc'"):
        Predicate("abc")  # type: ignore[arg-type]
