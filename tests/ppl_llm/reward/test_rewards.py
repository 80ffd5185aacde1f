"""Rewards other than process reward models: what all of them must obey, and each against plain arithmetic."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm import (
    SMC,
    BestOfN,
    Enumeration,
    Importance,
    LLMStep,
    StepReward,
    TabularLM,
    TabularReward,
    TransformersLM,
    barrier,
    extract_answer,
    reasoning,
)
from ppl_llm.answers.extraction import FORMS
from ppl_llm.context import PAD, Context
from ppl_llm.distributions.step_reward import POTENTIALS
from ppl_llm.inference import ParticlePosterior
from ppl_llm.inference.cost import CostMeter
from ppl_llm.reward.base import RewardModel, step_scores
from ppl_llm.reward.combined_reward import ProductReward, SumReward
from ppl_llm.reward.confidence import Confidence, split_step
from ppl_llm.reward.function_reward import FunctionReward
from ppl_llm.reward.judge_reward import JudgeReward
from ppl_llm.stop_reason import StopReason
from tests.helpers.tiny_models import causal_lm, language_model, plain_logits, tokenizer

DIFFERENCE = next(name for name in ("difference", "ratio") if name in POTENTIALS)
SYMBOLS = ["a", "b", ";", "$"]
STEPS, WIDTH = 3, 2
INF = math.inf


@cache
def tabular() -> TabularLM:
    return TabularLM(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)), SYMBOLS, eos="$")


def program(reward: RewardModel, potential: str = "likelihood", steps: int = STEPS) -> Callable[[str], Context]:
    def solve(problem: str) -> Context:
        context = tabular().start(problem)
        for t in range(steps):
            step = pyro.sample(f"step_{t}", LLMStep(context, ";", WIDTH))
            context = context.extend(step, stop=";")
            pyro.sample(f"accept_{t}", StepReward(reward, context, potential), obs=torch.tensor(1.0))
            context = barrier(context)
        return context

    return solve


class Free:
    """A reward that says nothing: log-odds inf, factor 1."""

    def step_log_odds(self, context: Context) -> Tensor:
        return torch.full((*context.batch_shape, context.num_steps), INF)


@cache
def prior(steps: int = STEPS) -> tuple[Context, Tensor]:
    """Every trajectory of the program and its probability."""
    posterior = Enumeration(program(Free(), steps=steps)).run("a")
    assert float(posterior.log_evidence) == pytest.approx(0.0, abs=1e-5)
    return posterior.value, posterior.weights


def texts() -> list[str]:
    return prior()[0].text


def evidence(model: Any) -> float:
    return float(Enumeration(model).run("a").log_evidence.exp())


def rewards() -> dict[str, RewardModel]:
    worth = TabularReward(torch.tensor([1.0, -0.5, 0.2, 0.7]), bias=-0.3, discount=0.8)
    verifier = FunctionReward(lambda problem, text: text.count("b") % 2 == 0)
    graded = FunctionReward(lambda problem, text: text.count("b") / 7 + 0.1, partial=True)
    return {
        "function": verifier,
        "function of prefixes": graded,
        "log-odds": FunctionReward(lambda problem, text: len(text) - 1.5, scale="log_odds", pending=0.0),
        "sum": SumReward([worth, graded], [0.5, 2.0]),
        "product": ProductReward([worth, verifier, graded], [1.0, 1.0, 0.5]),
        "judge": JudgeReward(tabular(), prompt=lambda problem, answer: answer.strip(";") or "b", yes="a", no="b", partial=True),
        "confidence": Confidence(),
        "entropy": Confidence("entropy"),
        "self-certainty": Confidence("kl"),
        "windows": Confidence("top-k", k=2, window=2),
    }


@pytest.mark.parametrize("name", list(rewards()))
def test_properties_of_reward_models(name: str):
    """Shape, dtype, repeated scores of finished sequences, and no dependence on what was cached, on other sequences or on the way there."""
    reward, fresh, lm = rewards()[name], rewards()[name], tabular()
    assert isinstance(reward, RewardModel)
    torch.manual_seed(1)
    context = lm.start(["a", "b"])
    assert reward.step_log_odds(context).shape == (2, 0)
    for t in range(4):
        step = LLMStep(context, ";", WIDTH).expand((5, 2)).sample()
        context = context.extend(step, stop=";")
        if t != 1:  # two new steps at once at the next barrier
            z = reward.step_log_odds(context)
            assert z.shape == (5, 2, t + 1) and z.dtype == torch.float32
            assert torch.equal(z, reward.step_log_odds(context))
            torch.testing.assert_close(z, fresh.step_log_odds(replace(context, cache_entries={})), atol=1e-6, rtol=1e-6)
            alone = torch.stack([torch.stack([fresh.step_log_odds(context[i][j]) for j in range(2)]) for i in range(5)])
            torch.testing.assert_close(z, alone, atol=1e-6, rtol=1e-6)
            if t:
                repeated = z[..., -1] == z[..., -2]
                assert bool((repeated | context.advanced).all())
        context = context.reorder(torch.randint(0, 5, (5, 2)))
    assert bool(context.done.any())


@pytest.mark.parametrize("name", list(rewards()))
def test_smc_agrees_with_enumeration(name: str):
    """Length and first letter of the text under SMC; without the reward they are further off than SMC with 6000 particles is."""

    def distribution(posterior: ParticlePosterior) -> dict[Any, float]:
        return dict(posterior.marginal(lambda sequence: (len(sequence.text), sequence.text[:1], bool(sequence.done))).probs)

    def distance(p: dict[Any, float], q: dict[Any, float]) -> float:
        return sum(abs(p.get(x, 0.0) - q.get(x, 0.0)) for x in p | q) / 2

    exact = Enumeration(program(rewards()[name])).run("a")
    pyro.set_rng_seed(2)
    posterior = SMC(program(rewards()[name]), num_particles=6000, ess_threshold=0.7).run("a")
    assert float(posterior.log_evidence) == pytest.approx(float(exact.log_evidence), abs=0.06)
    assert distance(distribution(posterior), distribution(exact)) < 0.04
    assert distance(distribution(Enumeration(program(Free())).run("a")), distribution(exact)) > 0.04


# -------------------------------------------------------------------------------------------------------------- functions of texts


def test_a_verifier_waits_for_the_answer():
    """Evidence is the probability of an accepted answer; unfinished ones count as pending says."""
    context, p = prior()
    good = torch.tensor([text.count("b") % 2 == 0 for text in texts()])
    done = context.done
    accepted, unfinished = float(p[good & done].sum()), float(p[~done].sum())
    assert 0.05 < unfinished < 0.9 and 0.05 < accepted < 0.9

    def verifier(pending: float = INF) -> FunctionReward:
        return FunctionReward(lambda problem, text: text.count("b") % 2 == 0, pending=pending)

    assert evidence(program(verifier())) == pytest.approx(accepted + unfinished, rel=1e-5)
    assert evidence(program(verifier(), DIFFERENCE)) == pytest.approx(accepted + unfinished, rel=1e-5)
    share = 1 / (1 + math.exp(1.5))
    assert evidence(program(verifier(-1.5), DIFFERENCE)) == pytest.approx(accepted + share * unfinished, rel=1e-5)
    # Counting an unfinished step as even odds would weigh answers by their length.
    assert abs(evidence(program(verifier(0.0))) - accepted - unfinished) > 0.1


def test_odds_of_finished_answers():
    context, p = prior()
    z = torch.tensor([len(text) - 1.5 for text in texts()])
    reward = FunctionReward(lambda problem, text: len(text) - 1.5, scale="log_odds", pending=0.0)
    wanted = float((p * torch.where(context.done, z.exp(), 1.0)).sum())
    assert evidence(program(reward, "odds")) == pytest.approx(wanted, rel=1e-5)


def test_a_function_is_asked_once_for_each_finished_answer():
    asked: list[tuple[str, str]] = []

    def fn(problem: str, text: str) -> bool:
        asked.append((problem, text))
        return True

    reward, lm = FunctionReward(fn), tabular()
    context = lm.start("a").expand((4,))
    for rows in ([[0, 2], [0, 2], [1, 3], [1, 3]], [[0, 3], [0, 3], [PAD, PAD], [PAD, PAD]]):
        context = context.extend(torch.tensor(rows), stop=";")
        with CostMeter() as meter:
            reward.step_log_odds(context)
            reward.step_log_odds(context.reorder(torch.tensor([3, 2, 1, 0])))
        assert meter.totals["prm_calls"] == 2
    assert asked == [("a", "b"), ("a", "a;a")]


def test_probabilities_become_log_odds_without_loss():
    def score(value: Any, **options: Any) -> float:
        context = tabular().start("a").extend(torch.tensor([0, 3]), stop=";")
        return float(FunctionReward(lambda problem, text: value, **options).step_log_odds(context))

    assert score(True) == score(1) == INF and score(False) == score(0.0) == -INF
    assert score(0.75) == pytest.approx(math.log(3)) and score(1e-30) == pytest.approx(math.log(1e-30))
    assert score(-4.5, scale="log_odds") == -4.5
    assert score(torch.tensor(0.5)) == 0.0
    for value, options in (
        (1.5, {}),
        (-0.1, {}),
        (None, {}),
        ("0.5", {}),
        (math.nan, {}),
        (math.nan, {"scale": "log_odds"}),
        (True, {"scale": "log_odds"}),
    ):
        with pytest.raises(ValueError, match=r"the reward function .* must return"):
            score(value, **options)
    with pytest.raises(ValueError, match="unknown scale 'logodds'; did you mean 'log_odds'"):
        FunctionReward(lambda problem, text: 1.0, scale="logodds")
    with pytest.raises(ValueError, match="pending must be log-odds"):
        FunctionReward(lambda problem, text: 1.0, pending=math.nan)


def test_a_pattern_finishes_an_answer():
    reward = FunctionReward(lambda problem, text: "bb" in text, pending=-7.0)
    context = tabular().start("a").expand((2,)).extend(torch.tensor([[1, 1], [1, 0]]), stop=";", finish="bb")
    assert reward.step_log_odds(context).tolist() == [[INF], [-7.0]]


# ------------------------------------------------------------------------------------------------------------- sums and products


def given(*z: float) -> RewardModel:
    class Given:
        def step_log_odds(self, context: Context) -> Tensor:
            return torch.tensor([z])

    return Given()


ANY = tabular().start("a").expand((1,))


def test_sum_and_product_by_arithmetic():
    z, y = [-3.0, 0.4, 5.0, 30.0, 0.0], [1.0, -0.4, 40.0, 31.0, -80.0]
    assert SumReward([given(*z), given(*y)], [2.0, 0.5]).step_log_odds(ANY)[0].tolist() == pytest.approx(
        [2 * a + b / 2 for a, b in zip(z, y, strict=True)]
    )
    product = ProductReward([given(*z), given(*y)], [2.0, 0.5]).step_log_odds(ANY)[0].tolist()

    def miss(value: float) -> float:
        return 1 / (1 + math.exp(value)) if value < 30 else math.exp(-value)

    for mine, a, b in zip(product, z, y, strict=True):
        log_r = 2 * -math.log1p(math.exp(-a)) + 0.5 * -math.log1p(math.exp(-b))
        wanted = log_r - math.log(-math.expm1(log_r)) if log_r < -1e-12 else -math.log(2 * miss(a) + miss(b) / 2)
        assert mine == pytest.approx(wanted, rel=1e-5)


def test_certain_parts():
    assert ProductReward([given(INF, INF, -INF, INF), given(1.5, INF, INF, -INF)]).step_log_odds(ANY).tolist() == [
        [pytest.approx(1.5), INF, -INF, -INF]
    ]
    assert SumReward([given(INF, -INF, 0.0), given(1.5, 2.0, -2.0)]).step_log_odds(ANY).tolist() == [[INF, -INF, -2.0]]
    with pytest.raises(ValueError, match=r"step 1 of sequence \(0,\) contradict each other"):
        SumReward([given(0.0, INF), given(0.0, -INF)]).step_log_odds(ANY)
    assert SumReward([given(INF)], [0.0]).step_log_odds(ANY.extend(torch.tensor([[0, 2]]), ";")).tolist() == [[0.0]]


def test_factors_multiply():
    """Under ``likelihood`` the product's evidence is that of the program with all factors; under ``odds`` the sum's is."""
    worth = TabularReward(torch.tensor([1.0, -0.5, 0.2, 0.7]), bias=-0.3)
    other = FunctionReward(lambda problem, text: text.count("b") - 0.7, scale="log_odds", partial=True)

    def both(potential: str) -> Callable[[str], Context]:
        def solve(problem: str) -> Context:
            context = tabular().start(problem)
            for t in range(STEPS):
                context = context.extend(pyro.sample(f"step_{t}", LLMStep(context, ";", WIDTH)), stop=";")
                for name, reward in (("worth", worth), ("other", other)):
                    pyro.sample(f"{name}_{t}", StepReward(reward, context, potential), obs=torch.tensor(1.0))
            return context

        return solve

    assert evidence(program(ProductReward([worth, other]))) == pytest.approx(evidence(both("likelihood")), rel=1e-5)
    assert evidence(program(SumReward([worth, other]), "odds")) == pytest.approx(evidence(both("odds")), rel=1e-5)
    assert evidence(program(SumReward([worth, other]))) != pytest.approx(evidence(both("likelihood")), rel=1e-2)


def test_combinations_that_make_no_sense():
    with pytest.raises(ValueError, match="SumReward needs at least one reward"):
        SumReward([])
    with pytest.raises(ValueError, match="needs 1 finite weights, none negative"):
        ProductReward([given(0.0)], [-1.0])
    with pytest.raises(ValueError, match="needs 2 finite weights"):
        ProductReward([given(0.0), given(0.0)], [1.0])
    with pytest.raises(ValueError, match="rewards must be a list, each a reward model"):
        SumReward([lambda problem, text: 1.0])  # type: ignore[list-item]


# ---------------------------------------------------------------------------------------------------------------------- judges


def test_a_tabular_judge():
    judge = JudgeReward(tabular(), prompt=lambda problem, answer: problem + answer, yes="b", no="a", pending=-2.0)
    context = tabular().start("a").expand((3,)).extend(torch.tensor([[0, 3], [1, 3], [1, 2]]), stop=";")
    logits = tabular().logits
    wanted = [[float(logits[0, 1] - logits[0, 0])], [float(logits[1, 1] - logits[1, 0])], [-2.0]]
    torch.testing.assert_close(judge.step_log_odds(context), torch.tensor(wanted))


def test_a_transformers_judge_reads_two_logits():
    lm, other = language_model(), language_model(seed=5)
    judge = JudgeReward(other, yes="7", no="9", partial=True)
    context = lm.start("What is 12 + 30?").expand((3,))
    for texts_ in (["10 + 30 = 40.\n\n", "Then 2\n\n", "10 + 30 = 40.\n\n"], ["So 42.\n\n", "So 42.\n\n", "So 42.\n\n"]):
        ids = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts_]
        context = context.extend(torch.tensor([row + [PAD] * (24 - len(row)) for row in ids]))
    z = judge.step_log_odds(context)
    yes, no = (other.tokenizer.convert_tokens_to_ids(word) for word in "79")
    for sequence in range(3):
        for step in range(2):
            answer = "".join(context.steps[sequence][: step + 1])
            asked = other.start(judge._default_prompt("What is 12 + 30?", answer))
            logits = plain_logits(other.model, asked.tokens.tolist())[-1]
            assert float(z[sequence, step]) == pytest.approx(float(logits[yes] - logits[no]), abs=1e-4)
    assert "solution so far" in judge._default_prompt("", "")[0]["content"]
    assert "final answer" in JudgeReward(other, yes="7", no="9")._default_prompt("", "")[0]["content"]


def test_words_that_a_judge_cannot_say():
    with pytest.raises(ValueError, match=r"'Yes', a word of the judge, is \d tokens"):
        JudgeReward(language_model())
    with pytest.raises(ValueError, match="must be different tokens"):
        JudgeReward(language_model(), yes="7", no="7")
    with pytest.raises(ValueError, match="0 tokens of the judge say 'Yes'"):
        JudgeReward(tabular())
    with pytest.raises(ValueError, match="vocabulary has 4 tokens, none has the id 4"):
        JudgeReward(tabular(), yes=0, no=4)


def told(judge: JudgeReward, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that the judge's model is given while it scores an answer, and criticises it where it thinks; with special tokens."""
    lm, seen = judge.lm, list[str]()
    assert isinstance(lm, TransformersLM)
    start = lm.start

    def noted(problem: Any) -> Context:
        context = start(problem)
        rows = context.tokens.reshape(-1, context.tokens.shape[-1])
        seen.extend(lm.tokenizer.decode([i for i in row if i != PAD]) for row in rows.tolist())
        return context

    with monkeypatch.context() as patch:
        patch.setattr(lm, "start", noted)
        judge.answer_log_odds([("1 + 1?", "It is 2.")])
        if judge.thoughts:
            judge.critiques([("1 + 1?", "It is 2.")])
    return seen


@pytest.mark.parametrize("chats", [True, False])
@pytest.mark.parametrize("options", [{}, {"thoughts": 2, "k_meta": 1, "thought_tokens": 4}], ids=["word", "thoughts"])
def test_a_judge_has_a_system_prompt_of_its_own(chats: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches every question, of the word, the chains, the verdicts and the meta judgements; that of the model for problems none."""
    tokens = copy.copy(tokenizer())
    tokens.chat_template = tokens.chat_template if chats else None
    lm = TransformersLM(causal_lm(max_position_embeddings=1024), tokens, system_prompt="Solve it.")
    begin = "<|im_start|>system\nGrade it.<|im_end|>\n<|im_start|>user\n" if chats else "Grade it.\n\n"
    own, none = (told(JudgeReward(lm, yes=15, no=17, system_prompt=p, **options), monkeypatch) for p in ("Grade it.", None))
    assert len(own) >= (3 if options else 1) and all(each.startswith(begin) and each.count("Grade it.") == 1 for each in own), own
    assert len(none) == len(own) and not any("Solve it." in each or "Grade it." in each for each in none), none
    assert not any("Solve it." in each for each in own)
    started = lm.tokenizer.decode(lm.start("1 + 1?").tokens.tolist())
    assert "Solve it." in started, "the model's own problems have theirs"


def test_a_warning_of_a_judge_names_what_to_give_in_python_and_on_the_command_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        JudgeReward(language_model(), yes=15, no=17).answer_log_odds([("1 + 1?", "2")])
    (said,) = [record.getMessage() for record in caplog.records]
    assert "judge:DIR" in said and "--yes and --no" in said and "yes=..., no=..." in said and "JudgeReward" not in said


@pytest.mark.parametrize(("mass", "warned"), [(0.3, True), (0.49, True), (0.51, False), (0.99, False)])
def test_a_judge_that_does_not_answer_the_question_is_reported_once(mass: float, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Its words are two of four tokens, with this probability together."""
    probs = torch.tensor([0.75 * mass, 0.25 * mass, 0.5 * (1 - mass), 0.5 * (1 - mass)], dtype=torch.float64)
    lm = TabularLM(probs.log().expand(4, 4).clone(), ["a", "b", ";", "$"], eos="$")
    reward = JudgeReward(lm, prompt=lambda problem, answer: problem + answer, yes="a", no="b")
    with caplog.at_level(logging.WARNING):
        found = [reward.answer_log_odds([("a", "b")]), reward.answer_log_odds([("b", "a")])]
    assert torch.cat(found).tolist() == pytest.approx([math.log(3)] * 2)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == warned and all(f"says its two words with probability {mass:.2g} only" in each for each in said)


# -------------------------------------------------------------------------------------------------------------------- confidence


def test_confidence_of_a_table():
    lm = tabular()
    context = lm.start("a").expand((3,)).extend(torch.tensor([[0, 2], [1, 1], [3, PAD]]), stop=";")
    context = context.extend(torch.tensor([[1, 3], [2, PAD], [PAD, PAD]]), stop=";")
    logp = lm.logits.log_softmax(-1)

    def mean(first: int, *tokens: int) -> float:
        path = [first, *tokens]
        return sum(float(logp[a, b]) for a, b in zip(path, tokens, strict=False)) / len(tokens)

    c = torch.tensor([[mean(0, 0, 2), mean(2, 1, 3)], [mean(0, 1, 1), mean(1, 2)], [mean(0, 3), mean(0, 3)]])
    z = Confidence().step_log_odds(context)
    torch.testing.assert_close(torch.nn.functional.logsigmoid(z), c, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(z, torch.logit(c.double().exp()).float(), atol=1e-5, rtol=1e-5)
    entropy = torch.distributions.Categorical(logits=lm.logits).entropy()
    minus = -torch.stack([entropy[[0, 0]].mean(), entropy[[0, 1]].mean(), entropy[0]])
    z = Confidence("entropy").step_log_odds(context)
    torch.testing.assert_close(torch.nn.functional.logsigmoid(z[:, 0]), minus, atol=1e-5, rtol=1e-5)
    assert float(torch.nn.functional.logsigmoid(z)[1, 1]) == pytest.approx(-float(entropy[1]), abs=1e-5)
    with pytest.raises(ValueError, match="unknown kind 'entrop'; did you mean 'entropy'"):
        Confidence("entrop")
    tempered = Confidence(temperature=0.5).step_log_odds(context)
    assert float(torch.nn.functional.logsigmoid(tempered)[2, 0]) == pytest.approx(float((lm.logits * 2).log_softmax(-1)[0, 3]), abs=1e-5)


def test_confidence_of_a_transformer():
    lm, reward = language_model(), Confidence()
    torch.manual_seed(0)
    context = lm.start("What is 12 + 30?")
    for _ in range(3):
        context = context.extend(LLMStep(context, max_tokens=6, temperature=0.7).expand((4,)).sample())
    z = torch.nn.functional.logsigmoid(reward.step_log_odds(context))
    for i, sequence in enumerate(context):
        log_probs = plain_logits(lm.model, sequence.tokens[: int(sequence.lengths)].tolist()).log_softmax(-1)
        for t, (start, end) in enumerate(zip(sequence.step_starts.tolist(), sequence.ends.tolist(), strict=True)):
            if end > start:
                each = [float(log_probs[at - 1, int(sequence.tokens[at])]) for at in range(start, end)]
                assert float(z[i, t]) == pytest.approx(sum(each) / len(each), abs=1e-4)


def test_splitting_a_step_off():
    context = tabular().start("a").expand((2,)).extend(torch.tensor([[2, PAD], [0, 3]]), stop=";")
    whole = context.extend(torch.tensor([[0, 2], [PAD, PAD]]), stop=";")
    before, step = split_step(whole, 1)
    assert step.tolist() == [[0, 2], [PAD, PAD]]
    assert before.done.tolist() == [False, True] and before.lengths.tolist() == context.lengths.tolist()
    assert torch.equal(before.extend(step, stop=";").tokens, whole.tokens)
    first, step = split_step(whole, 0)
    assert first.num_steps == 0 and not bool(first.done.any()) and step.tolist() == [[2, PAD], [0, 3]]


# ------------------------------------------------------------------------------------------------------------------- a real filter


def test_smc_with_the_demo_model():
    """The whole loop with a real tokenizer: a verifier and the model's certainty steer the demo language model."""
    lm = TransformersLM.from_pretrained("demo")

    def solve(reward: RewardModel, potential: str = "likelihood") -> Callable[[str], Context]:
        def model(problem: str) -> Context:
            context = lm.start(problem)
            for t in range(12):
                step = pyro.sample(f"step_{t}", LLMStep(context, max_tokens=64))
                context = context.extend(step)
                pyro.sample(f"accept_{t}", StepReward(reward, context, potential), obs=torch.tensor(1.0))
                context = barrier(context)
            return context

        return model

    problem = (
        "Begin with 26. First: take away 5. Second: increase it by 3. Third: take away 2. Fourth: subtract 9. Fifth: multiply by 2. "
        "What number do you get?"
    )
    pyro.set_rng_seed(0)
    free = Importance(solve(Free()), num_particles=16).run(problem)
    found = [answer for answer, done in zip(free.value.answers(), free.value.done.tolist(), strict=True) if done and answer]
    wanted = found[-1]
    verifier = FunctionReward(lambda _, text: extract_answer(text) == wanted)
    pyro.set_rng_seed(0)
    posterior = SMC(solve(ProductReward([Confidence(), verifier])), num_particles=16, ess_threshold=0.5).run(problem)
    assert bool(torch.isfinite(posterior.log_evidence))
    kept = [sequence for sequence, weight in zip(posterior.value, posterior.weights.tolist(), strict=True) if weight > 0]
    assert kept and all(extract_answer(sequence.text) == wanted for sequence in kept if bool(sequence.done))
    assert any(bool(sequence.done) for sequence in kept)
    judge = JudgeReward(lm, prompt=lambda p, answer: f"{p} {answer}", yes="1", no="0")
    assert bool(torch.isfinite(SMC(solve(judge), num_particles=6).run(problem).log_evidence))


def test_an_answer_that_is_cut_off_ranks_below_every_finished_one() -> None:
    """Best-of-N, importance and SMC with a judge of whole answers: what ``max_steps`` cuts has no weight, whatever its text."""
    reward = FunctionReward(lambda problem, text: 0.7 if "a" in text else 0.2)
    model = reasoning(tabular(), reward, max_steps=2, max_tokens=WIDTH, stop=";")
    exact = Enumeration(model).run("a")
    done = exact.value.done
    assert not bool(done.all()) and float(exact.weights[~done].sum()) == 0.0
    pyro.set_rng_seed(0)
    best = BestOfN(model, 64).run("a")
    assert not bool(best.value.done.all()) and bool(best.value.done[best.weights > 0].all())
    for algorithm in (Importance(model, 4000), SMC(model, 4000)):
        pyro.set_rng_seed(1)
        found = algorithm.run("a")
        assert float(found.weights[~found.value.done].sum()) == 0.0
        assert found.log_evidence == pytest.approx(float(exact.log_evidence), abs=0.05)
    partial = FunctionReward(reward.fn, partial=True)
    judged = Enumeration(reasoning(tabular(), partial, max_steps=2, max_tokens=WIDTH, stop=";")).run("a")
    assert float(judged.weights[~judged.value.done].sum()) > 0.0


def test_a_combination_concludes_as_its_parts_do() -> None:
    verifier = FunctionReward(lambda problem, text: True)
    context, _ = prior()
    open_ = ~context.done
    assert bool(open_.any())
    for combined in (ProductReward([Free(), verifier]), SumReward([verifier])):
        scores = step_scores(combined, context, last_step=True)[..., -1]
        assert bool((scores[open_] == -INF).all()) and bool((scores[~open_] == INF).all())


def test_completions_are_bounded_and_the_bounded_program_is_exact() -> None:
    """Every solution of the program has as many tokens as the bound at most, and the filter has the distribution of the enumeration."""
    reward = FunctionReward(lambda problem, text: 0.8 if "b" in text else 0.3, partial=True)
    model = reasoning(tabular(), reward, max_steps=4, max_tokens=WIDTH, stop=";", max_tokens_completion=3)
    exact = Enumeration(model).run("a")
    context = exact.value
    written = context.lengths - context.prompt_lengths
    assert int(written.max()) == 3 and bool(context.done[written == 3].all())
    assert bool((context.reasons == StopReason.CONTEXT_FULL).any())
    pyro.set_rng_seed(0)
    assert SMC(model, 4000).run("a").log_evidence == pytest.approx(float(exact.log_evidence), abs=0.05)
    free = Enumeration(reasoning(tabular(), None, max_steps=4, max_tokens=WIDTH, stop=";", max_tokens_completion=3)).run("a")
    assert float(free.log_evidence) == pytest.approx(0.0, abs=1e-5) and "accept_0" not in free.sites


def test_the_last_number_is_an_answer_only_where_it_is_asked_for() -> None:
    assert extract_answer("17 + 25 equals 42.") is None
    forms = (*FORMS, "last-number")
    for text, number in [
        ("17 + 25 equals 42.", "42"),
        ("It costs $1,250.50 in all", "1,250.50"),
        ("so x is -3, as said", "-3"),
        ("\\boxed{7} is less than 9", "7"),
        ("no number", None),
        ("x2 and v1.2b", None),
    ]:
        assert extract_answer(text, forms) == number, text
