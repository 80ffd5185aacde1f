"""Predicate: the common properties, the local distribution, and programs; the weights of its draws are in test_rejection."""

from __future__ import annotations

from functools import partial

import pyro
import pytest
import torch

from ppl_llm import PIMH, SMC, Context, LLMStep, ParticleGibbs, SuffixMH, TabularLM, TemperedSMC, barrier
from ppl_llm.constraints import Choices, Constraint, Predicate, TokenSet
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
    guide = RARE
    gibbs, suffix = (partial(each, proposals=guide) for each in (partial(ParticleGibbs, num_particles=4), SuffixMH))
    for make in (gibbs, suffix, partial(TemperedSMC, num_particles=4, kernel=suffix)):
        with pytest.raises(ValueError, match="are estimates, which belong to a draw and not to a value: they are for SMC, PIMH and PMMH"):
            make(program)
    with pytest.raises(NotImplementedError, match=r"estimated weights, which belong to a draw .* not with ParticleGibbs"):
        ParticleGibbs(program, 4, proposals=lambda site: guide(site)).run(3)


def test_chains_that_keep_whole_filters_take_estimated_weights() -> None:
    """PIMH keeps the weights of the filter that it accepted, and never asks for the density of a trajectory again."""
    pyro.set_rng_seed(0)
    found = PIMH(program, 4, proposals=RARE).run(5)
    assert found.weights.isfinite().all() and not found.dead


def test_texts_of_a_transformers_model() -> None:
    lm = language_model()
    torch.manual_seed(0)

    def solve() -> Context:
        ctx = lm.start("What is 7 * 6?")
        for t in range(2):
            ctx = barrier(ctx.extend(pyro.sample(f"step_{t}", LLMStep(ctx, stop=(), max_tokens=5)), stop=()))
        return ctx

    posterior = SMC(solve, 6, proposals=Predicate(lambda text: "e" not in text and "\n" not in text)).run()
    assert all("e" not in text and "\n" not in text for text in posterior.value.text) and float(posterior.log_evidence) < 0


def test_what_is_no_function_is_named() -> None:
    with pytest.raises(ValueError, match="allows must be a function, got 'abc'"):
        Predicate("abc")  # type: ignore[arg-type]
