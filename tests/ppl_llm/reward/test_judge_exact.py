"""Judges whose every draw is enumerated: E[Z] against the program with the verification as sites, to 1e-10, and wrong judges."""

from __future__ import annotations

import logging
import math
import zlib
from typing import Any

import pyro
import pytest
import torch

from ppl_llm import Context, JudgeReward, OpenAILM, StatedScore, TabularLM
from tests.helpers import judged
from tests.helpers.algorithms import ALGORITHMS, ALL
from tests.helpers.fake_server import FakeServer
from tests.helpers.judge_mutants import WRONG_JUDGES
from tests.helpers.judged import (
    JUDGE,
    LM,
    TALKS,
    expected_evidence,
    explicit_evidence,
    scored_by,
    stated,
)
from tests.helpers.served_table import byte_tokenizer, remote

LIMIT = 4.9
"""Of a z-value: one right engine in a million would be rejected under another seed."""


def answers(context: Context, t: int) -> list[tuple[str, str] | None]:
    """What a judge of beginnings is asked after a step; ``None`` where the step says nothing new."""
    texts = context.text if context.batch_shape else [context.text]
    last = context.tokens.gather(-1, context.lengths[..., None] - 1)[..., 0].reshape(-1).tolist()
    return [None if t and symbol == 2 else (judged.ask("a", text), text) for text, symbol in zip(texts, last, strict=True)]


def steps(context: Context, t: int) -> list[tuple[str, str] | None]:
    """The same of a critic of single steps."""
    found: list[tuple[str, str] | None] = []
    for each, text in zip(answers(context, t), context.text if context.batch_shape else [context.text], strict=True):
        found.append(None if each is None else (judged.ask("a", text[:t], text[t:]), text))
    return found


ONE = [judged.ask("a", text) for text in ("a", "b")]
TWO_STEPS = [*(judged.ask("a", "", first) for first in "ab"), *(judged.ask("a", f, s) for f in "ab" for s in "ab")]
TWO = [judged.ask("a", text) for text in ("a", "b", "aa", "ab", "ba", "bb")]

CASES: dict[str, tuple[TabularLM, int, list[str], Any, int, dict[str, Any]]] = {
    "one chain": (JUDGE, 1, ONE, answers, 1, {}),
    "two chains": (JUDGE, 1, ONE, answers, 2, {}),
    "the soundest of two": (JUDGE, 1, ONE, answers, 2, {"k_meta": 1}),
    "scores in the text": (JUDGE, 1, ONE, answers, 2, {"score": stated}),
    "the soundest of two scores in the text": (JUDGE, 1, ONE, answers, 2, {"score": stated, "k_meta": 1}),
    "two steps, one chain": (TALKS, 2, TWO, answers, 1, {}),
    "a critic of single steps": (TALKS, 2, TWO_STEPS, steps, 1, {"each_step": True}),
}


def deviation(case: str, kind: type[JudgeReward]) -> float:
    """Of E[Z] from the evidence of the program with sites."""
    lm, number, questions, asked, thoughts, options = CASES[case]
    own = {"partial": not options.get("each_step"), "verdict": "", "thought_tokens": 1} | options
    found = expected_evidence(kind, lm, number, questions, thoughts, **own)
    return abs(found - explicit_evidence(lm, number, thoughts, asked, **options))


@pytest.mark.parametrize("case", CASES)
def test_the_evidence_is_that_with_the_verification_as_sites(case: str) -> None:
    assert deviation(case, JudgeReward) < 1e-7  # log-odds are float32
    if case == "the soundest of two":
        assert (
            abs(explicit_evidence(JUDGE, 1, 2, answers) - explicit_evidence(JUDGE, 1, 2, answers, k_meta=1)) > 1e-3
        )  # not the same target


@pytest.mark.parametrize("name", WRONG_JUDGES)
def test_rejects_wrong_judges(name: str) -> None:
    kind, case = WRONG_JUDGES[name]
    assert deviation(case, kind) > 1e-3


TEXTS = ("a", "b", "aa", "ab", "ba", "bb")
FILTERS = [name for name, algorithm in ALGORITHMS.items() if algorithm.evidence and ALL not in algorithm.not_for]


def by_hand() -> tuple[float, dict[str, float]]:
    """Evidence of p(x) prod E[s] and the share of each text, in plain Python; a step that says nothing new has no factor."""
    mean = {text: sum(judged.chance(q, 2 if not c else "ab".index(c)) * judged.yes(q + c) for c in judged.CHAINS)
            for text in TEXTS for q in [judged.ask("a", text)]}  # fmt: skip
    mass = dict.fromkeys(TEXTS, 0.0)
    probs = LM.logits.softmax(-1)
    for first in range(2):
        begun = "ab"[first]
        begin = float(probs[0, first]) * mean[begun]
        mass[begun] = begin * float(probs[first, 2])
        for second in range(2):
            mass[begun + "ab"[second]] = begin * float(probs[first, second]) * mean[begun + "ab"[second]]
    total = sum(mass.values())
    return total, {text: part / total for text, part in mass.items()}


def test_by_hand_is_the_program_with_sites() -> None:
    assert by_hand()[0] == pytest.approx(explicit_evidence(JUDGE, 2, 1, answers), abs=1e-8)


def z_values(name: str, kind: type[JudgeReward] = JudgeReward) -> float:
    """Largest |z| of the evidence and of evidence times the share of each text over replicas, each with draws of its own: its problem is
    written in its own way, and reads the same to both models.
    """
    algorithm = ALGORITHMS[name]
    replicas = min(algorithm.replicas, 250)
    problems = ["".join("ab"[n >> bit & 1] for bit in range(8)) + "a" for n in range(replicas)]
    judge = kind(
        JUDGE, prompt=lambda _, text: judged.ask("a", text), yes="b", no="a", partial=True, verdict="", thoughts=1, thought_tokens=1
    )
    solve = scored_by(judge, 2)

    def model() -> Context:
        with pyro.plate("problems", replicas, dim=-1):
            return solve(problems)  # type: ignore[arg-type]

    pyro.set_rng_seed(zlib.crc32(name.encode()))
    posterior = algorithm.build(model, 1).run(**algorithm.run)
    total, share = by_hand()
    ratio = posterior.log_evidence.exp() / total
    rows = posterior.value.text
    worst = 0.0
    for text in (None, *TEXTS):
        if text is None:
            values, wanted = ratio, 1.0
        else:
            same = torch.tensor([[each == text for each in row] for row in rows])
            values, wanted = ratio * (posterior.weights * same).sum(0), share[text]
        error = max(abs(float(values.mean()) - wanted) - algorithm.bias, 0.0)
        worst = max(worst, error / max(float(values.std()) / replicas**0.5, 1e-9))
    return worst


@pytest.mark.parametrize("name", FILTERS)
def test_random_weights_under_every_algorithm_with_evidence(name: str) -> None:
    assert z_values(name) < LIMIT


class Doubtful(JudgeReward):
    """The square of each verdict: another mean."""

    def _thought(self, answers: Any) -> torch.Tensor:
        return super()._thought(answers) ** 2


def test_another_mean_is_rejected_under_every_algorithm() -> None:
    assert min(z_values(name, Doubtful) for name in ("Importance", "SMC", "TemperedSMC")) > 2 * LIMIT


# A judge on a server


def server() -> FakeServer:
    return FakeServer(lambda ids: JUDGE.logits[ids[-1]], byte_tokenizer(judged.SYMBOLS, "$"))


def served(lm: OpenAILM, **options: Any) -> JudgeReward:
    own = {"prompt": judged.ask, "yes": "b", "no": "a", "partial": True, "verdict": "", "thought_tokens": 1} | options
    return JudgeReward(lm, **own)


def test_a_served_judge_has_the_verdicts_of_a_local_one() -> None:
    """The word at once to rounding; the mean of sampled verdicts by a z-test; every text is asked about once."""
    host = server()
    lm = remote(host)
    asked = [("a", "a"), ("a", "b")]
    at_once = served(lm).answer_log_odds(asked)
    assert at_once.sigmoid().tolist() == pytest.approx([judged.yes(judged.ask(*each)) for each in asked], abs=1e-6)
    judge = served(lm, thoughts=300)
    torch.manual_seed(0)
    found = judge.answer_log_odds(asked).sigmoid()
    for each, mean in zip(asked, found.tolist(), strict=True):
        question = judged.ask(*each)
        chances = {c: judged.chance(question, 2 if not c else "ab".index(c)) for c in judged.CHAINS}
        wanted = sum(p * judged.yes(question + c) for c, p in chances.items())
        deviation = sum(p * (judged.yes(question + c) - wanted) ** 2 for c, p in chances.items()) ** 0.5
        assert abs(mean - wanted) < LIMIT * deviation / 300**0.5
    requests = len(host.calls)
    assert torch.equal(judge.answer_log_odds(asked).sigmoid(), found) and len(host.calls) == requests


def test_a_served_judge_chooses_the_soundest_chain() -> None:
    judge = served(remote(server()), thoughts=8, k_meta=1, meta_prompt=judged.meta, score=stated)
    torch.manual_seed(1)
    (found,) = judge.answer_log_odds([("a", "b")]).sigmoid().tolist()
    best = max(("a", "b"), key=lambda chain: judged.yes(judged.meta("a", "b", chain)))
    assert found == pytest.approx(stated(best), abs=1e-6)
    torch.manual_seed(1)
    assert judge.critiques([("a", "b")])[0] in judged.CHAINS and judge.critiques([("a", "b")]) == judge.critiques([("a", "b")])


# What is refused


def judge(**options: Any) -> JudgeReward:
    return JudgeReward(
        JUDGE, **({"prompt": judged.ask, "yes": "b", "no": "a", "thoughts": 2, "thought_tokens": 1, "verdict": ""} | options)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k_meta": 3}, "k_meta must be at most thoughts = 2, got 3"),
        ({"k_meta": 0}, "k_meta must be None or an integer of at least 1, got 0"),
        ({"thoughts": 0, "k_meta": 1}, "k_meta is for a judge that thinks: give thoughts=K as well"),
        ({"meta_prompt": judged.meta}, "meta_prompt is for a judge of whose chains the best count: give k_meta as well"),
        ({"each_step": True, "partial": "word"}, "each_step asks about every step, partial='word' about beginnings"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(**options)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda text: float("nan"), r"score\(\) must give a probability in \[0, 1\] or None, got nan of the judge's text"),
        (lambda text: int("x"), r"score\(\) failed with ValueError: invalid literal.* given the judge's text"),
    ],
)
def test_scores_that_fail_name_the_text(score: Any, message: str) -> None:
    good = judge(score=stated)
    with pytest.raises(ValueError, match=message):
        judge(score=score).answer_log_odds([("a", "b")])
    assert good.answer_log_odds([("a", "b")]).isfinite().all()


def test_no_critique_without_a_thought(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="writes no critique: give JudgeReward thoughts=1"):
        judge(thoughts=0).critiques([("a", "b")])
    with caplog.at_level(logging.WARNING):
        found = judge(score=lambda text: None, k_meta=1, meta_prompt=judged.meta).answer_log_odds([("a", "b")])
    assert float(found.sigmoid()) == pytest.approx(judged.yes(judged.ask("a", "b")), abs=1e-6)
    assert any("no chain of thought about an answer states a score" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (r"Good. \boxed{10}", 1.0),
        (r"\boxed{3} no, \boxed{7/10}", 6 / 9),
        ("Score: 1", 0.0),
        ("The score is 4, or rather: Score **5.5**/10", 0.5),
        (r"\boxed{11}", None),
        ("a score of the 1950s film: good", None),
        ("nothing", None),
        ("Score (1-10): 3", 2 / 9),  # the scale itself is no score
        ("Score from 1 to 10: 9", 8 / 9),
        ("Score: 1 - 10", None),
        ("Final score: 7.25.", 6.25 / 9),
        ("score 9, since it is right", 8 / 9),
        (r"\boxed{5/5}", None),  # of another scale
        ("score: 3 out of 5", None),
        (r"\boxed{7} out of 10", 6 / 9),
        (r"\boxed{10\%}", None),
        ("Score: 80%", None),
        (r"\boxed{1,5}", None),
        (r"\boxed{1e1}", None),
    ],
)
def test_stated_scores(text: str, score: float | None) -> None:
    assert StatedScore()(text) == (pytest.approx(score) if score is not None else None)


def test_a_stated_score_is_asked_for() -> None:
    reward = JudgeReward(JUDGE, yes="b", no="a", thoughts=1, score=StatedScore(0, 5))
    assert "from 0 (certainly wrong) to 5 (certainly right) in \\boxed{}" in reward._default_prompt("p", "x")
    with pytest.raises(ValueError, match="lowest must be below highest = 1, got 1"):
        StatedScore(1, 1)
    with pytest.raises(ValueError, match="lowest and highest must be finite, got 1 and inf"):
        StatedScore(1, math.inf)


def test_a_critic_of_steps_is_asked_about_each_step_apart() -> None:
    reward = JudgeReward(JUDGE, yes="b", no="a", each_step=True)
    assert "Steps so far:\n(none)\n\nNext step:\none" in reward._default_prompt("p", "", "one")
    seen: list[tuple[str, ...]] = []
    asked = judge(thoughts=0, each_step=True, prompt=lambda *parts: (seen.append(parts), judged.ask(*parts))[1])
    context = LM.start("a").expand((2,)).extend(torch.tensor([[0], [1]]), stop="\x00").extend(torch.tensor([[1], [2]]), stop="\x00")
    scored = asked.scored_steps(context)
    assert sorted(seen) == [("a", "", "a"), ("a", "", "b"), ("a", "a", "b")]
    assert scored.tolist() == [[True, True], [True, False]]  # an end of the text alone is no step
    z = asked.step_log_odds(context)
    assert z[1, 0] == z[1, 1] and z[0, 0] != z[0, 1]
