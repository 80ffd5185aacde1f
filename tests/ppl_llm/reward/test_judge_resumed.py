"""A judge that thinks in runs that are resumed, as in another process: one verdict for an answer, and no other judge in its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from ppl_llm import SMC, FunctionReward, JudgeReward, ProductReward, StatedScore, TabularLM, reasoning
from ppl_llm.context_cache import label_of
from ppl_llm.inference import AuditError
from ppl_llm.programs.feedback import Feedback
from ppl_llm.programs.models import ReasoningModel
from ppl_llm.programs.revision import revise
from ppl_llm.reward.verdicts import Verdicts
from tests.helpers.judged import LM, TALKS, ask

SEEDS = range(6)


def judge(**options: Any) -> JudgeReward:
    given = {"yes": "b", "no": "a", "thoughts": 2, "thought_tokens": 1, "verdict": "", **options}
    return JudgeReward(TALKS, prompt=ask, **given)


def product() -> ProductReward:
    return ProductReward([judge(partial=True), FunctionReward(lambda problem, text: 0.5, partial=True)])


def model(reward: Any, potential: str = "difference") -> ReasoningModel:
    return reasoning(LM, reward, stop="\x00", max_tokens=1, max_steps=4, potential=potential)


def resumed(path: Path, made: Callable[[], ReasoningModel], seed: int, other: Callable[[], ReasoningModel] | None = None) -> Any:
    """A run that stops after two steps, and is resumed with models that are made again, under another seed."""
    pyro.set_rng_seed(seed)
    run = SMC(made(), 6, ess_threshold=0.9, audit=True).iterate("a")
    next(run)
    next(run).save(path)
    pyro.set_rng_seed(100 + seed)
    return SMC((other or made)(), 6, ess_threshold=0.9, audit=True).resume(path, "a")


@pytest.mark.parametrize(
    "reward", [lambda: judge(partial=True), lambda: judge(each_step=True), product], ids=["beginnings", "single steps", "a product"]
)
def test_verdicts_go_with_the_run(tmp_path: Path, reward: Any) -> None:
    """The audit scores every solution from its beginning: also those judged before the run was stopped, which another draw would not."""
    for seed in SEEDS:
        assert resumed(tmp_path / "run", lambda: model(reward()), seed).audit.error < 1e-6


def test_weights_telescope_across_a_stop(tmp_path: Path) -> None:
    """Under ``difference`` a weight is the last score, which is one draw: scores of before the stop divide by themselves."""
    for seed in SEEDS:
        reward = judge(partial=True)
        pyro.set_rng_seed(seed)
        run = SMC(model(reward), 4, ess_threshold=0.0).iterate("a")
        next(run)
        next(run).save(tmp_path / "run")
        again = judge(partial=True)
        found = SMC(model(again), 4, ess_threshold=0.0).resume(tmp_path / "run", "a")
        last = torch.nn.functional.logsigmoid(again.step_log_odds(found.value)[..., -1].double())
        assert found.log_weights.tolist() == pytest.approx(last.tolist(), abs=1e-6)


def test_rejects_verdicts_that_are_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Verdicts, "adopt", lambda self, state: self)
    with pytest.raises(AuditError):
        for seed in SEEDS:
            resumed(tmp_path / "run", lambda: model(judge(partial=True)), seed)


def score(text: str) -> float:
    return 0.5


@pytest.mark.parametrize(
    "other",
    [
        {"thoughts": 3},
        {"agree": 0.9},
        {"score": score},
        {"temperature": 0.5},
        {"yes": "a", "no": "b"},
        {"thoughts": 0},
    ],
)
def test_another_judge_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"made by a run with other settings: model prm: .*JudgeReward"):
        resumed(tmp_path / "run", lambda: model(judge(partial=True)), 0, lambda: model(judge(partial=True, **other)))


def half(problem: str, text: str) -> float:
    return 0.5


def other_half(problem: str, text: str) -> float:
    return 0.5


def test_labels_tell_rewards_apart() -> None:
    rewards = [
        FunctionReward(half),
        FunctionReward(other_half),
        FunctionReward(half, partial=True),
        FunctionReward(half, partial="word"),
        FunctionReward(half, pending=0.0),
        judge(),
        judge(score=StatedScore(1, 10)),
        judge(score=StatedScore(1, 5)),
        ProductReward([FunctionReward(half), judge()]),
        ProductReward([FunctionReward(other_half), judge()]),
        ProductReward([FunctionReward(half), judge(thoughts=3)]),
    ]
    assert len(set(map(label_of, rewards))) == len(rewards)
    assert label_of(judge()) == label_of(judge()) and label_of(FunctionReward(half)) == label_of(FunctionReward(half))


def test_critiques_are_the_same_when_a_run_is_resumed_under_another_seed(tmp_path: Path) -> None:
    """A critique follows from the seed of the run: prompts of the turn that was begun are those that its caches are of."""

    def turns() -> ReasoningModel:
        told = Feedback(judge(), tell=lambda problem, draft, message: problem + message.replace("$", ""))
        return revise(model(judge(partial=True)), 2, told)

    for seed in SEEDS:
        pyro.set_rng_seed(seed)
        run = SMC(turns(), 4, audit=True).iterate("a")
        next(run)
        next(run).save(tmp_path / "run")
        prompts = [context.tokens[: int(context.prompt_lengths)].tolist() for context in list(run)[-1].value]
        pyro.set_rng_seed(100 + seed)
        again = SMC(turns(), 4, audit=True).resume(tmp_path / "run", "a")
        assert [context.tokens[: int(context.prompt_lengths)].tolist() for context in again.value] == prompts
        assert again.audit is not None and again.audit.error < 1e-6


def test_a_score_may_come_behind_what_would_announce_a_word() -> None:
    """With a score to read, a chain is not cut where a word would be asked for."""
    table = torch.full((4, 4), -torch.inf, dtype=torch.float64)
    table[0, 1] = table[1, 2] = table[2, 3] = table[3, 3] = 0.0  # writes v7$ after a
    lm = TabularLM(table, ["a", "v", "7", "$"], eos="$")
    read: list[str] = []

    def stated(text: str) -> float | None:
        read.append(text)
        return int(text[-1]) / 10 if text[-1:].isdigit() else None

    reads = JudgeReward(lm, prompt=lambda problem, text: "a", yes="7", no="v", thoughts=1, verdict="v", score=stated)
    assert reads.answer_log_odds([("p", "x")]).sigmoid().tolist() == pytest.approx([0.7]) and read == ["v7"]
    assert JudgeReward(lm, prompt=lambda problem, text: "a", yes="7", no="v", thoughts=1, verdict="v")._chains(["a"], 1) == [["v"]]


def test_a_critique_does_not_end_in_what_would_announce_a_word() -> None:
    table = torch.full((4, 4), -torch.inf, dtype=torch.float64)
    table[0, 1] = table[1, 2] = table[2, 3] = table[3, 3] = 0.0  # writes v7$ after a
    lm = TabularLM(table, ["a", "v", "7", "$"], eos="$")
    critic = JudgeReward(lm, prompt=lambda problem, text: "a", yes="7", no="v", thoughts=1, verdict="7")
    assert critic.critiques([("p", "x")]) == ["v"]


def test_half_a_character_is_judged_alike_whenever_it_is_asked_about() -> None:
    """A step that ends inside of a character is judged without it, also where scores are computed again for the finished solution."""
    table = torch.full((4, 4), -torch.inf, dtype=torch.float64)
    table[0, 1] = table[1, 2] = table[2, 3] = table[3, 3] = 0.0
    lm = TabularLM(table, ["a", "\ufffd", "b", "$"], eos="$")
    asked: list[str] = []

    def chance(problem: str, text: str) -> float:
        asked.append(text)
        return 0.25 if "\ufffd" in text else 0.75

    reward = FunctionReward(chance, partial=True)
    found = SMC(reasoning(lm, reward, stop="\x00", max_tokens=1, max_steps=3, potential="difference"), 1, audit=True).run("a")
    along = asked[:3]
    asked.clear()
    FunctionReward(chance, partial=True).step_log_odds(found.value)
    assert list(dict.fromkeys(along)) == list(dict.fromkeys(asked)) and along[0] == ""
    assert math.isfinite(float(found.log_evidence))
