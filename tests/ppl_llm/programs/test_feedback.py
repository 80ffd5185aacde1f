"""Turns with feedback: rounds as an enumerated Markov chain whose prompts hold the message, judges whose critiques are enumerated."""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import pytest
import torch

from ppl_llm import SMC, Context, Enumeration, Feedback, FunctionReward, JudgeReward, LLMStep, SuffixMH, barrier, reasoning, revise
from ppl_llm.methods import get_method
from ppl_llm.programs.feedback import ProblemCritics, tell_message
from ppl_llm.programs.revision import RevisionModel
from ppl_llm.programs.turns import restarted
from ppl_llm.tasks import CodeVerifier, Limits, Verdict
from tests.helpers import judged
from tests.helpers.judged import LM, TALKS, Scripted

STEPS = 2
REPLICAS = 1500
LIMIT = 4.9
"""Of a z-value: one right program in a million would be rejected under another seed."""


def says(problem: str, draft: str) -> str:
    """A message in the symbols of the table: its last one is what the next turn begins from."""
    return ("b" if draft.endswith("a") else "a") + ("b" if draft == "ab" else "a" if draft == "ba" else "")


def tell(problem: str, draft: str, message: str) -> str:
    return problem + draft + message


def worth(problem: str, text: str) -> float:
    return {0: 0.9, 1: 0.3, 2: 0.6}[text.count("a")]


MODEL = reasoning(LM, FunctionReward(worth, partial=True), stop="\x00", max_tokens=1, max_steps=STEPS)


def written(start: str) -> list[tuple[str, float, float]]:
    """(text, p(text), product of the scores) of one turn in plain Python."""
    probs, found = LM.logits.softmax(-1), []

    def grow(text: str, last: int, mass: float, factor: float) -> None:
        for v in range(3):
            p = mass * float(probs[last, v])
            grown = text + ("" if v == 2 else "ab"[v])
            g = factor * worth("", grown)
            if v == 2 or len(grown) == STEPS:
                found.append((grown, p, g))
            else:
                grow(grown, v, p, g)

    grow("", "ab".index(start[-1]), 1.0, 1.0)
    return found


def exact(rounds: int, message: Any = says) -> tuple[float, dict[str, float]]:
    """Evidence, and the distribution of the last text."""
    table: dict[str, float] = {}

    def walk(prompt: str, left: int, mass: float) -> None:
        for text, p, g in written(prompt):
            if left == 1:
                table[text] = table.get(text, 0.0) + mass * p * g
            else:
                walk(tell("a", text, message("a", text)), left - 1, mass * p)

    walk("a", rounds, 1.0)
    total = sum(table.values())
    return total, {text: mass / total for text, mass in table.items()}


def model(rounds: int = 2, kind: type[RevisionModel] = RevisionModel, critic: Any = says) -> RevisionModel:
    return kind(MODEL, rounds, Feedback(critic, tell=tell))


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_rounds_with_feedback_are_an_enumerated_markov_chain(rounds: int) -> None:
    evidence, table = exact(rounds)
    found = Enumeration(model(rounds)).run("a")
    assert abs(float(found.log_evidence.exp()) - evidence) < 1e-7  # log-odds are float32
    marginal = found.marginal(lambda context: context.text)
    assert set(marginal.probs) == {text for text, p in table.items() if p > 0}
    assert max(abs(marginal.prob(text) - p) for text, p in table.items()) < 1e-7


class Silent(RevisionModel):
    """The message is not told."""

    def next_round(self, ctx: Context, draft: Context) -> Context:
        return restarted(draft, ["a" + text for text in self._flat(draft.text)])

    @staticmethod
    def _flat(texts: Any) -> list[str]:
        return [texts] if isinstance(texts, str) else [each for text in texts for each in Silent._flat(text)]


class NeighboursMessage(RevisionModel):
    """The message about the draft of the particle beside."""

    def next_round(self, ctx: Context, draft: Context) -> Context:
        texts = Silent._flat(draft.text)
        return restarted(draft, [tell("a", text, says("a", other)) for text, other in zip(texts, [*texts[1:], texts[0]], strict=True)])


def deviation(program: Any) -> float:
    """Largest z-value of Z-hat and of Z-hat times the weight of each text, over replicas in one plate."""
    evidence, table = exact(2)
    pyro.set_rng_seed(11)
    posterior = SMC(program, 3, ess_threshold=1.0, max_plate_nesting=1).run(["a"] * REPLICAS)
    mass = posterior.log_evidence.exp()
    worst = abs(float((mass.mean() - evidence) / mass.std() * REPLICAS**0.5))
    for text, p in table.items():
        share = torch.tensor([[each == text for each in row] for row in posterior.value.text])
        estimate = mass * (posterior.weights * share).sum(0)
        worst = max(worst, abs(float((estimate.mean() - evidence * p) / estimate.std().clamp(min=1e-9) * REPLICAS**0.5)))
    return worst


def test_filters_are_unbiased() -> None:
    assert deviation(model()) < LIMIT


def test_wrong_turns_are_rejected() -> None:
    assert deviation(model(kind=Silent)) > 2 * LIMIT


def test_the_audit_finds_a_message_about_another_draft() -> None:
    pyro.set_rng_seed(0)
    assert SMC(model(3), 6, ess_threshold=1.0, audit=True).run("a").audit is not None
    with pytest.raises(Exception, match=r"audit|barrier"):
        SMC(model(3, NeighboursMessage), 6, ess_threshold=1.0, audit=True).run("a")


# A judge's critique

ONE = reasoning(LM, FunctionReward(worth), stop="\x00", max_tokens=1, max_steps=1)
"""One step each, cut off there: the reward is asked about none, so that its steps weigh the same."""
SCORED = reasoning(LM, FunctionReward(worth, partial=True), stop="\x00", max_tokens=1, max_steps=1)


def judge(thoughts: int, **options: Any) -> JudgeReward:
    own = {"prompt": judged.ask, "yes": "b", "no": "a", "verdict": "", "thought_tokens": 1, "thoughts": thoughts}
    kind = type("Judge", (Scripted, JudgeReward), {}) if options.pop("scripted", True) else JudgeReward
    made: JudgeReward = kind(TALKS, **(own | options))
    return made


def expected(thoughts: int, **options: Any) -> float:
    """E[Z] over all critiques that the judge may write about the two drafts."""
    total = 0.0
    for mass, script in judged.scripts(TALKS, [judged.ask("a", draft) for draft in "ab"], thoughts):
        critic: Any = judge(thoughts, **options)
        critic.script = script
        total += mass * float(Enumeration(RevisionModel(SCORED, 2, Feedback(critic, tell=tell))).run("a").log_evidence.exp())
    return total


def explicit(thoughts: int, k_meta: int | None) -> float:
    """The program with every critique a latent site."""

    def solve(problem: str) -> Context:
        context = LM.start(problem)
        draft = context.extend(pyro.sample("draft", LLMStep(context, "\x00", 1)), stop="\x00")
        texts = draft.text if draft.batch_shape else [draft.text]
        about = TALKS.start([judged.ask("a", text) for text in texts])
        about = about if draft.batch_shape else about[0]
        written = []
        for k in range(thoughts):
            text = about.extend(pyro.sample(f"critique_{k}", LLMStep(about, "\x00", 1)), stop="\x00").text
            written.append(text if isinstance(text, list) else [text])
        size = max(map(len, [texts, *written]))
        prompts = []
        for n in range(size):
            drawn = [each[n % len(each)] for each in written]
            own = texts[n % len(texts)]
            best = drawn[0] if k_meta is None else max(drawn, key=lambda c: judged.yes(judged.meta("a", own, c)))
            prompts.append(tell("a", own, best))
        again = LM.start(prompts)
        again = again if size > 1 else again[0]
        last = again.extend(pyro.sample("step", LLMStep(again, "\x00", 1)), stop="\x00")
        rows = last.text if last.batch_shape else [last.text]
        probability = torch.tensor([worth("", text) for text in rows], dtype=torch.float64).reshape(last.batch_shape)
        pyro.sample("accept", pyro.distributions.Bernoulli(probability), obs=torch.tensor(1.0, dtype=torch.float64))
        return barrier(last)

    return float(Enumeration(solve).run("a").log_evidence.exp())


@pytest.mark.parametrize(("thoughts", "options"), [(1, {}), (2, {"k_meta": 1, "meta_prompt": judged.meta})])
def test_critiques_are_latent_sites_on_average(thoughts: int, options: dict[str, Any]) -> None:
    wanted = explicit(thoughts, options.get("k_meta"))
    assert abs(expected(thoughts, **options) - wanted) < 1e-7
    if thoughts == 2:
        assert abs(wanted - explicit(1, None)) > 1e-4


def test_a_judges_critique_is_drawn_once_so_that_audits_and_chains_pass() -> None:
    program = RevisionModel(MODEL, 3, Feedback(judge(1, scripted=False), tell=tell))
    pyro.set_rng_seed(0)
    report = SMC(program, 6, ess_threshold=1.0, audit=True).run("a").audit
    assert report is not None and report.num_sites > 0
    assert len(SuffixMH(program).run(4, "a").iterations) == 4


# What critics are


def test_messages() -> None:
    assert Feedback(lambda p, d: True).message("p", "d") == "This solution is right."
    assert Feedback(lambda p, d: False).message("p", "d") == "This solution is wrong."
    assert Feedback(lambda p, d: 0.25).message("p", "d") == "This solution is right with probability 0.25."
    assert Feedback(lambda p, d: "No.")("p", "d") == tell_message("p", "d", "No.")
    assert tell_message("p", "d", "No.")[-1]["content"].startswith("No.\n\n")
    verifier = CodeVerifier(('"assert add(1, 2) == 3"',), Limits(isolation="limits"))
    told = Feedback(verifier)
    assert "add(1, 2) is -1" in told.message("p", "So:\n```python\ndef add(a, b):\n    return a - b\n```")
    assert told.message("p", "no code") == "The solution gives no complete answer."
    assert Feedback(says).__name__ == "Feedback(says)"


def test_each_draft_is_asked_about_once() -> None:
    asked: list[str] = []

    def critic(problem: str, draft: str) -> str:
        asked.append(draft)
        return "b"

    feedback = Feedback(critic, tell=tell)
    pyro.set_rng_seed(0)
    SMC(RevisionModel(MODEL, 2, feedback), 32).run("a")
    assert sorted(asked) == sorted(set(asked))
    feedback.release_caches()
    assert feedback("a", asked[0]) and len(asked) == len(set(asked)) + 1


@pytest.mark.parametrize(
    ("critic", "message"),
    [
        (lambda p, d: None, r"a critic must give a message, a bool or a probability in \[0, 1\], got None for the draft 'd'"),
        (lambda p, d: float("nan"), "got nan for the draft 'd'"),
        (lambda p, d: 7, "got 7 for the draft 'd'"),
    ],
)
def test_what_is_no_message(critic: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Feedback(critic).message("p", "d")


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="critic must be a function of the problem and the draft"):
        Feedback("tests")
    with pytest.raises(ValueError, match="writes no critique: give JudgeReward thoughts=1"):
        Feedback(judge(0)).message("a", "b")
    critics = ProblemCritics(("code",))
    with pytest.raises(ValueError, match="feedback from tests needs problems that have them, and 'p' has none"):
        critics("p", "d")


def test_critics_of_problems() -> None:
    class Always:
        def verdict(self, answer: str) -> Verdict:
            return Verdict(0.0, f"{answer.strip()} fails")

    critics = ProblemCritics(("code",))
    critics.know({"p": Always()})
    assert critics("p", "```\nx\n```") == "x fails" and "no complete answer" in critics("p", "x")


def test_methods_that_change_the_model_keep_its_turns() -> None:
    adapted = get_method("smc:preset=twisted").adapted(revise(MODEL, 3, Feedback(says, tell=tell)))
    assert isinstance(adapted, RevisionModel) and adapted.rounds == 3 and adapted.preset.name == "twisted"
    assert adapted.settings["prompt"] == "Feedback(says)" and adapted.settings["rounds"] == 3


def test_the_orders_of_drafts_and_messages() -> None:
    """Drafts of all particles and problems in one call, then each prompt by itself."""
    seen: list[list[tuple[str, str]]] = []

    class Watched(Feedback):
        def prepare(self, drafts: Any) -> None:
            seen.append(list(drafts))
            super().prepare(drafts)

    pyro.set_rng_seed(0)
    SMC(RevisionModel(MODEL, 2, Watched(says, tell=tell)), 2, max_plate_nesting=1).run(["a", "b"])
    first = seen[0]
    assert len(first) == 4 and [problem for problem, _ in first] == list(itertools.chain("ab", "ab"))
