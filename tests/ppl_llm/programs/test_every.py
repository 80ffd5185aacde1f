"""Factors at every token, word, line or match: against plain Python, all randomness enumerated under a constraint, audits, resuming."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from ppl_llm import SMC, Context, Enumeration, FunctionReward, StopPattern, TabularLM, reasoning
from ppl_llm.constraints import Automaton
from ppl_llm.distributions import LLMStep, StepReward
from ppl_llm.inference import barrier
from ppl_llm.reward import answer_reward
from tests.helpers.constrained import EOS, STEPS, SYMBOLS, TOKENS, ListedSMC, Program, V, errors
from tests.helpers.constraint_mutants import WRONG_CUTS
from tests.helpers.tiny_models import language_model


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def log_factor(probability: float) -> float:
    """Rewards are log-odds in float32."""
    odds = math.log(probability) - math.log1p(-probability) if 0 < probability < 1 else math.copysign(math.inf, probability - 0.5)
    return float(torch.nn.functional.logsigmoid(torch.tensor(odds, dtype=torch.float32)))


def critic(problem: str, text: str) -> float:
    """Likes an even number of "a", and no "a\\n"."""
    return 0.0 if "a\n" in text else 0.9 if text.count("a") % 2 == 0 else 0.25


# against plain Python -------------------------------------------------------------------------------------------------------------------

LETTERS = ["a", "b", " ", "\n", "$"]
LM = TabularLM(torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64), LETTERS, eos="$")
WIDTH = 2
"""Longest step."""


def plain(pattern: str | None, steps: int, seen: Callable[[str, bool], str | None]) -> dict[str, float]:
    """p(x) times the factors of all texts of so many steps; every token is a step without a pattern.

    :param seen: what the critic is asked about, of the text so far and whether it has ended.
    """
    probs = LM.logits.softmax(-1).tolist()
    found: dict[str, float] = defaultdict(float)

    def grow(text: str, begin: int, left: int, log_mass: float) -> None:
        if left == 0:
            found[text] += math.exp(log_mass)
            return
        for v, symbol in enumerate(LETTERS):
            grown, mass = text + symbol, log_mass + math.log(probs[LETTERS.index(text[-1]) if text else 0][v])
            step = grown[begin:]
            ended = symbol == "$"
            if ended or pattern is None or len(step) == WIDTH or re.search(pattern, step):
                asked = seen(grown.removesuffix("$"), ended)
                mass += log_factor(critic("", asked)) if asked is not None else 0.0
                if mass > -math.inf:
                    grow(grown, len(grown), 0 if ended else left - 1, mass)
            else:
                grow(grown, begin, left, mass)

    grow("", 0, steps, 0.0)
    return found


def up_to(pattern: str) -> Callable[[str, bool], str | None]:
    def seen(text: str, ended: bool) -> str | None:
        ends = [match.end() for match in re.finditer(pattern, text)]
        return text if ended else text[: ends[-1]] if ends else None

    return seen


CASES: dict[str, tuple[str | None, Any, Callable[[str, bool], str | None]]] = {
    "token": (None, True, lambda text, ended: text),
    "word": (r"\s", "word", up_to(r"\s")),
    "line": (r"\n", "line", up_to(r"\n")),
    "a|b\n": ("a|b\n", True, lambda text, ended: text),
    "ab": ("ab", "ab", up_to("ab")),
}


def model(every: str, partial: Any, **options: Any) -> Any:
    return reasoning(LM, FunctionReward(critic, partial=partial), every=every, max_steps=3, max_tokens=WIDTH, **options)


def text_of(context: Context, row: int) -> str:
    """With the end of the text."""
    return "".join(LETTERS[v] for v in context.tokens[row, 1 : int(context.lengths[row])].tolist())


@pytest.mark.parametrize("every", CASES)
def test_the_target_is_that_of_plain_python(every: str) -> None:
    """Every text's probability and the evidence."""
    pattern, partial, seen = CASES[every]
    posterior = Enumeration(model(every, partial)).run("a")
    expected = plain(pattern, 3, seen)
    total = sum(expected.values())
    assert float(posterior.log_evidence.exp()) == pytest.approx(total, abs=1e-10)
    found: dict[str, float] = defaultdict(float)
    for row, weight in enumerate(posterior.weights.tolist()):
        found[text_of(posterior.value, row)] += weight * total
    assert max(abs(found[text] - expected.get(text, 0.0)) for text in {*found, *expected}) < 1e-10


def test_the_twisted_preset_steers_and_leaves_the_last_factor() -> None:
    """Factors at all positions, whose product is the last one: the target is p(x) times the critic of the text."""
    posterior = Enumeration(model("word", "word", preset="twisted", aggregation="last")).run("a")
    seen = up_to(r"\s")
    free = reasoning(LM, None, every="word", max_steps=3, max_tokens=WIDTH)
    prior = Enumeration(free).run("a")
    expected: dict[str, float] = defaultdict(float)
    for row, weight in enumerate(prior.weights.tolist()):
        text = text_of(prior.value, row)
        asked = seen(text.removesuffix("$"), text.endswith("$"))
        expected[text] += weight * math.exp(log_factor(critic("", asked)) if asked is not None else 0.0)
    total = sum(expected.values())
    assert float(posterior.log_evidence.exp()) == pytest.approx(total, abs=1e-7)
    found: dict[str, float] = defaultdict(float)
    for row, weight in enumerate(posterior.weights.tolist()):
        found[text_of(posterior.value, row)] += weight * total
    assert max(abs(found[text] - expected[text]) for text in {*found, *expected}) < 1e-7


# under a constraint, with all randomness enumerated ------------------------------------------------------------------------------------


class Steered(Program):
    """Steps end with "b", or after two tokens; the critic is asked there about the text up to the last "b"."""

    def __call__(self, columns: int) -> Context:
        reward, stop = FunctionReward(critic, partial="b"), StopPattern("b")
        ctx = self.lm.start("a").expand((1, columns))
        with pyro.plate("columns", columns, dim=-1):
            for t in range(STEPS):
                step = pyro.sample(f"step_{t}", LLMStep(ctx, stop=stop, max_tokens=TOKENS))
                ctx = ctx.extend(step, stop=stop)
                pyro.sample(f"accept_{t}", StepReward(reward, ctx), obs=torch.tensor(1.0))
                ctx = barrier(ctx)
        return ctx

    def texts(self) -> dict[tuple[int, ...], float]:
        probs, seen = self.probs().tolist(), up_to("b")
        found: dict[tuple[int, ...], float] = defaultdict(float)

        def grow(text: tuple[int, ...], begin: int, left: int, mass: float) -> None:
            if left == 0:
                found[text] += mass
                return
            for v in range(V):
                if self.follows(text, v):
                    grown, p = (*text, v), mass * probs[text[-1] if text else 0][v]
                    if v in (1, EOS) or len(grown) - begin == TOKENS:
                        asked = seen("".join(SYMBOLS[each] for each in grown if each != EOS), v == EOS)
                        p *= math.exp(log_factor(critic("", asked))) if asked is not None else 1.0
                        grow(grown, len(grown), 0 if v == EOS else left - 1, p)
                    else:
                        grow(grown, begin, left, p)

        grow((), 0, STEPS, 1.0)
        return found


def steered() -> Steered:
    logits = torch.tensor([[5.0, 3.0, 1.0], [2.0, 4.0, 1.0], [1.0, 1.0, 1.0]]).log()
    table = torch.tensor([[1, 2, -1], [3, 2, -1], [3, 0, -1], [4, 2, -1], [-1, -1, -1]])
    return Steered(logits, Automaton(table, torch.tensor([True, False, True, False, False])), torch.ones(V + 1))


@pytest.mark.parametrize("scheme", ["systematic", "multinomial"])
@pytest.mark.parametrize("threshold", [0.7, 1.0])
def test_a_critic_steers_under_a_constraint_with_all_randomness_enumerated(scheme: str, threshold: float) -> None:
    """E[Z-hat] and E[Z-hat W(x)] of two particles."""
    program = steered()
    assert len(program.texts()) > 5
    assert max(errors(program, *ListedSMC(program, 2, scheme, threshold).run())) < 1e-10


@pytest.mark.parametrize("wrong", WRONG_CUTS)
def test_rejects_critics_that_read_on(wrong: Any) -> None:
    """Errors found: 0.08 of Z without a constraint, 0.02 with one."""
    pattern, partial, seen = CASES["word"]
    program = steered()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_reward, "_up_to_last", wrong)
        free = float(Enumeration(model("word", partial)).run("a").log_evidence.exp())
        found = max(errors(program, *ListedSMC(program, 2, "systematic", 1.0).run()))
    assert abs(free / sum(plain(pattern, 3, seen).values()) - 1) > 0.05 and found > 0.01


# programs -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", ["token", "word", "[,.]"])
def test_runs_are_audited_and_resumed_in_slices(every: str) -> None:
    torch.set_default_dtype(torch.float32)
    reward = FunctionReward(lambda problem, text: 0.8 if "e" in text else 0.3, partial=True if every == "token" else every)
    program = reasoning(language_model(), reward, every=every, max_steps=6, max_tokens=8)
    smc = SMC(program, 8, ess_threshold=1.0, audit=True)
    pyro.set_rng_seed(1)
    whole = smc.run("What is 7 * 6?")
    assert bool(whole.resampled.any()) and whole.audit is not None
    pyro.set_rng_seed(1)
    *_, last = smc.iterate("What is 7 * 6?")
    assert torch.equal(last.log_weights, whole.log_weights) and torch.equal(last.value.tokens, whole.value.tokens)


def test_a_run_is_resumed_in_another_process_with_the_same_positions(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)

    def program(every: str) -> Any:
        return reasoning(language_model(), FunctionReward(likes_e, partial=every), every=every, max_steps=5, max_tokens=6)

    pyro.set_rng_seed(3)
    whole = SMC(program("word"), 6).run("What is 7 * 6?")
    pyro.set_rng_seed(3)
    first = next(iter(SMC(program("word"), 6).iterate("What is 7 * 6?")))
    first.save(tmp_path / "run")
    last = SMC(program("word"), 6).resume(tmp_path / "run", "What is 7 * 6?")
    assert torch.equal(last.value.tokens, whole.value.tokens) and torch.equal(last.log_weights, whole.log_weights)
    with pytest.raises(ValueError, match="every"):
        SMC(program("line"), 6).resume(tmp_path / "run", "What is 7 * 6?")


def likes_e(problem: str, text: str) -> float:
    return 0.8 if "e" in text else 0.3
