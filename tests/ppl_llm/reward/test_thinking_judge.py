"""A judge that thinks: its verdicts by hand, evidence against a program with the verification as sites, and what it refuses."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_llm import (
    SMC,
    Context,
    Enumeration,
    FunctionReward,
    JudgeReward,
    LLMStep,
    ParticleGibbs,
    ProductReward,
    StepReward,
    SumReward,
    TabularLM,
    barrier,
    reasoning,
)
from ppl_llm.lm.base import StepOptions
from ppl_llm.reward.calibration import CalibratedReward, Calibration
from ppl_llm.reward.judge_reward import JudgeReward as Judge
from tests.helpers.tiny_models import language_model

SYMBOLS = ["a", "b", ";", "$"]
_generator = torch.Generator().manual_seed(7)
LM = TabularLM(torch.randn(4, 4, generator=_generator, dtype=torch.float64), SYMBOLS, eos="$")
JUDGE = TabularLM(1.5 * torch.randn(4, 4, generator=_generator, dtype=torch.float64), SYMBOLS, eos="$")
STEPS, THOUGHT = 2, 2
REPLICAS = 150
LIMIT = 4.9
"""Of a z-value: one right reward in a million would be rejected under another seed."""


def question(problem: str, answer: str) -> str:
    return problem + answer.replace(";", "b")


def judge(thoughts: int, **options: Any) -> JudgeReward:
    given = {"prompt": question, "yes": "b", "no": "a", "partial": True, "verdict": "", "thought_tokens": THOUGHT} | options
    return JudgeReward(JUDGE, thoughts=thoughts, **given)


def program(factor: Callable[[Context, int], None]) -> Callable[[str], Context]:
    def solve(problem: str) -> Context:
        context = LM.start(problem)
        for t in range(STEPS):
            context = context.extend(pyro.sample(f"step_{t}", LLMStep(context, ";", 1)), stop=";")
            factor(context, t)
            context = barrier(context)
        return context

    return solve


def estimated(reward: Any) -> Callable[[str], Context]:
    def factor(context: Context, t: int) -> None:
        pyro.sample(f"accept_{t}", StepReward(reward, context), obs=torch.tensor(1.0))

    return program(factor)


def verdict(start: str, agree: float | None = None) -> float:
    """``E[s]`` of a question in plain Python: the sum over all chains of thought of p(chain) p(yes | chain)."""
    probs = JUDGE.logits.softmax(-1)

    def yes(last: int) -> float:
        return float(probs[last, 1] / (probs[last, 1] + probs[last, 0]))

    first = SYMBOLS.index(start[-1])
    if agree is not None and max(yes(first), 1 - yes(first)) >= agree:
        return yes(first)

    def grow(last: int, left: int) -> float:
        # The chain's end of text is no part of its text: the verdict is asked behind the symbol before it.
        return sum(float(probs[last, v]) * (yes(last) if v == 3 else yes(v) if left == 1 else grow(v, left - 1)) for v in range(4))

    return grow(first, THOUGHT)


def exact(agree: float | None = None) -> float:
    """The evidence of p(x) prod_t E[s_t] by plain recursion."""
    probs = LM.logits.softmax(-1)

    def grow(text: str, last: int, left: int) -> float:
        total = 0.0
        for v in range(4):
            grown = text + ("" if v == 3 else SYMBOLS[v])
            # A step that says nothing new is not judged again.
            factor = float(probs[last, v]) * (1.0 if v == 3 and text else verdict(question("a", grown), agree))
            total += factor * (1.0 if v == 3 or left == 1 else grow(grown, v, left - 1))
        return total

    return grow("", 0, STEPS)


def test_the_evidence_equals_that_with_the_verification_as_sites():
    """The chain of thought as a latent site, its word as an observed one, enumerated together with the steps."""

    def explicit(context: Context, t: int) -> None:
        texts = context.text if context.batch_shape else [context.text]
        says = context.advanced & ((context.tokens.gather(-1, context.lengths[..., None] - 1)[..., 0] != 3) | (t == 0))
        asked = JUDGE.start([question("a", text) for text in texts])
        asked = asked if context.batch_shape else asked[0]
        thought = pyro.sample(f"thought_{t}", LLMStep(asked, "\x00", THOUGHT).mask(says))
        written = asked.extend(thought, stop="\x00")
        chains = written.text if written.batch_shape else [written.text]
        probs = JUDGE.logits.softmax(-1)
        last = torch.tensor([SYMBOLS.index((question("a", x) + c)[-1]) for x, c in zip(_spread(texts, chains), chains, strict=True)])
        yes = (probs[last, 1] / (probs[last, 0] + probs[last, 1])).reshape(written.batch_shape)
        pyro.sample(f"yes_{t}", dist.Bernoulli(yes).mask(says), obs=torch.tensor(1.0, dtype=yes.dtype))

    found = float(Enumeration(program(explicit)).run("a").log_evidence.exp())
    assert found == pytest.approx(exact(), rel=1e-8)


def _spread(texts: list[str], chains: list[str]) -> list[str]:
    return texts * (len(chains) // len(texts))


def z_value(reward: Callable[[], Any], wanted: float) -> float:
    """Of the mean evidence of independent filters, each with verdicts of its own."""
    pyro.set_rng_seed(3)
    values = []
    for _ in range(REPLICAS):
        values.append(SMC(estimated(reward()), 3, ess_threshold=1.0).run("a").log_evidence.exp())
    mass = torch.stack(values)
    return abs(float((mass.mean() - wanted) / mass.std() * len(mass) ** 0.5))


CLEAR = 0.66
"""A bound that the judge's word at once reaches behind "b", where it has .671, and not behind "a", where it has .652."""


@pytest.mark.parametrize(("thoughts", "agree"), [(1, None), (2, None), (2, CLEAR)])
def test_random_weight_filters_are_unbiased(thoughts: int, agree: float | None):
    assert z_value(lambda: judge(thoughts, agree=agree), exact(agree)) < LIMIT


class AtOnceOnly(Judge):
    """The word before any thought."""

    def _thought(self, answers: Any) -> torch.Tensor:
        return self._at_once(answers).double().sigmoid()


class MeanOfLogOdds(Judge):
    """The mean of the log-odds in place of that of the probabilities: a biased estimate."""

    def _words(self, prompts: Any, ids: Any) -> torch.Tensor:
        z = super()._words(prompts, ids)
        return z.view(self.thoughts, -1).mean(0).repeat(self.thoughts) if len(z) % self.thoughts == 0 and self.thoughts > 1 else z


class NewVerdictEachTime(Judge):
    """Verdicts are not kept."""

    def answer_log_odds(self, answers: Any) -> torch.Tensor:
        self.release_caches()
        return super().answer_log_odds(answers)


def wrong(kind: Any, thoughts: int) -> Any:
    return kind(JUDGE, prompt=question, yes="b", no="a", partial=True, verdict="", thought_tokens=THOUGHT, thoughts=thoughts)


def scores(reward: Any, start: str, draws: int = 4000) -> torch.Tensor:
    """Many verdicts on one question."""
    torch.manual_seed(0)
    found = []
    for _ in range(draws // 200):
        reward.release_caches()
        found.append(reward._judged([(start[0], start[1:])] * 200).sigmoid())
    return torch.cat(found)


def expected_score(reward: Any, start: str, agree: float | None = None) -> float:
    """z-value of the mean of many verdicts on one question against the plain sum."""
    values = scores(reward, start)
    return abs(float((values.mean() - verdict(start, agree)) / values.std().clamp(min=1e-12) * len(values) ** 0.5))


@pytest.mark.parametrize("thoughts", [1, 3])
def test_a_verdict_has_the_right_mean(thoughts: int):
    for start in ("aa", "ab"):
        assert expected_score(judge(thoughts), start) < LIMIT


@pytest.mark.parametrize("kind", [AtOnceOnly, MeanOfLogOdds])
def test_wrong_verdicts_are_rejected(kind: Any):
    assert max(expected_score(wrong(kind, 3), start) for start in ("aa", "ab")) > 2 * LIMIT


def test_the_judge_thinks_only_where_its_word_at_once_is_not_clear():
    """Also the judges that always think, and that never do."""
    fast = judge(2, agree=CLEAR)
    assert scores(fast, "ab", 200).tolist() == pytest.approx([verdict("ab", CLEAR)] * 200, abs=1e-6)
    assert expected_score(fast, "aa", CLEAR) < LIMIT
    assert expected_score(judge(2), "ab", CLEAR) > 2 * LIMIT
    assert abs(float(scores(wrong(AtOnceOnly, 2), "aa", 200).mean()) - verdict("aa", CLEAR)) > 0.01


def test_a_verdict_is_drawn_once():
    reward = judge(1)
    torch.manual_seed(0)
    context = LM.start("a").expand((40,)).extend(torch.zeros(40, 1, dtype=torch.long), stop=";")
    z = reward.step_log_odds(context)
    assert len(set(z[:, 0].tolist())) == 1  # one text, one verdict
    for _ in range(10):
        again = LM.start("a").extend(torch.zeros(1, dtype=torch.long), stop=";")
        assert torch.equal(reward.step_log_odds(again), z[0])
    seen = set()
    for _ in range(20):
        reward.release_caches()
        seen.add(float(reward.step_log_odds(LM.start("a").extend(torch.zeros(1, dtype=torch.long), stop=";"))[0]))
    assert len(seen) > 1


def test_audits_and_chains_see_one_reward():
    pyro.set_rng_seed(1)
    report = SMC(estimated(judge(2)), 6, ess_threshold=1.0, audit=True).run("a").audit
    assert report is not None
    with pytest.raises(Exception, match=r"audit|replay"):
        SMC(estimated(wrong(NewVerdictEachTime, 1)), 12, ess_threshold=1.0, audit=True).run("a")
    chain = ParticleGibbs(estimated(judge(1)), 3).run(3, "a")
    assert len(chain.iterations) == 3


def test_scores_parsed_from_the_text():
    """The share of the letter b, None for a chain without one."""
    reward = judge(4, score=lambda text: text.count("b") / len(text) if "b" in text else None)
    torch.manual_seed(0)
    asked = JUDGE.start(["ab"])
    texts = asked.extend(JUDGE.sample_step(asked, torch.Size((4, 1)), StepOptions("\x00", THOUGHT, 1.0)).tokens, stop="\x00").text
    stated = [text.count("b") / len(text) for (text,) in texts if "b" in text]
    torch.manual_seed(0)
    assert float(reward.answer_log_odds([("a", "b")]).sigmoid()) == pytest.approx(sum(stated) / len(stated), abs=1e-6)


def test_no_score_in_any_text(caplog: pytest.LogCaptureFixture):
    reward, plain = judge(2, score=lambda text: None), judge(0)
    with caplog.at_level(logging.WARNING):
        found = reward.answer_log_odds([("a", "b"), ("a", "a")])
    assert torch.allclose(found, plain.answer_log_odds([("a", "b"), ("a", "a")]).float(), atol=1e-6)
    assert sum("no chain of thought about an answer states a score" in record.message for record in caplog.records) == 1
    with pytest.raises(ValueError, match=r"score\(\) must give a probability in \[0, 1\] or None, got 7"):
        judge(1, score=lambda text: 7.0).answer_log_odds([("a", "b")])


def test_a_transformers_judge_thinks_and_concludes():
    lm = language_model(seed=5)
    reward = JudgeReward(lm, yes="7", no="9", thoughts=2, thought_tokens=6)
    torch.manual_seed(0)
    found = reward.answer_log_odds([("12 + 30", "42")])
    question = reward._default_prompt("12 + 30", "42")
    assert "step by step" in question[-1]["content"] and "Verdict:" in question[-1]["content"]
    torch.manual_seed(0)
    asked = lm.start([question])
    written = asked.extend(lm.sample_step(asked, torch.Size((2, 1)), reward._thinking).tokens, stop="Verdict:")
    each = []
    for (text,) in written.text:
        chat = [*question, {"role": "assistant", "content": text.rstrip() + "\n\nVerdict:"}]
        ids = torch.tensor(reward._after)
        yes, no = lm.step_log_prob(lm.start([chat]), ids[:, None, None], StepOptions(max_tokens=1))
        each.append(float((yes - no).double().sigmoid()))
    assert float(found.sigmoid()) == pytest.approx(sum(each) / 2, abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "as_paper"},
        {"preset": "its_hub"},
        {"preset": "twisted", "score": "log_odds"},
        {"preset": "twisted", "aggregation": "min"},
        {"preset": "twisted", "aggregation": "max"},
        {"preset": "twisted", "aggregation": "last", "score_temperature": 0.5},
    ],
)
def test_weights_that_no_estimate_allows_are_refused(options: dict[str, Any]):
    with pytest.raises(ValueError, match=r"scores of JudgeReward are estimates.*potential='likelihood'"):
        reasoning(LM, judge(2), **options)
    reasoning(LM, judge(0), **options)


def test_weights_that_estimates_allow():
    for options in ({}, {"preset": "twisted", "aggregation": "prod"}, {"preset": "twisted", "aggregation": "last"}):
        reasoning(LM, judge(2), **options)
    reasoning(LM, judge(2, partial=False), preset="twisted")  # a single score in each trajectory, so that the least is the last
    verifier = FunctionReward(lambda problem, text: 0.5)
    ProductReward([judge(2), verifier])
    with pytest.raises(ValueError, match="a power of one is biased: its weight must be 1"):
        ProductReward([judge(2), verifier], [2.0, 1.0])
    with pytest.raises(ValueError, match="a sum of log-odds is no function of their means: take ProductReward"):
        SumReward([judge(2), verifier])
    with pytest.raises(ValueError, match="a calibrated score is no function of their means"):
        CalibratedReward(judge(2), Calibration(2.0, 0.0))
    with pytest.raises(ValueError, match="scores of ProductReward are estimates"):
        reasoning(LM, ProductReward([judge(2), verifier]), preset="as_paper")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thoughts": -1}, "thoughts must be an integer of at least 0"),
        ({"thoughts": 1, "agree": 0.4}, r"agree must lie in \(0.5, 1\)"),
        ({"thoughts": 0, "agree": 0.8}, "agree is for a judge that thinks: give thoughts=K"),
        ({"thoughts": 0, "score": len}, "score is for a judge that thinks"),
        ({"thoughts": 1, "score": 3}, "score must be a function"),
        ({"thoughts": 1, "thought_tokens": 0}, "thought_tokens must be an integer of at least 1"),
        ({"thoughts": 1, "temperature": 0.0}, "temperature must be a finite number above 0"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        judge(**options)


def test_certain_verdicts_are_infinite_log_odds():
    reward = judge(2, score=lambda text: 1.0)
    assert float(reward.answer_log_odds([("a", "b")])) == math.inf
