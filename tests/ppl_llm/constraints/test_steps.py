"""Constrained steps: LLMStep(constraint=...) as a distribution, and what StepProposal makes of it in programs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from ppl_llm import PAD, SMC, Context, LLMStep, ParticleGibbs, StepProposal, TabularLM, TransformersLM, barrier
from ppl_llm.constraints import Automaton, Choices, Constraint, JsonSchema, PerStep, Regex, TokenSet
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding.device_loop import DeviceLoop
from ppl_llm.lm.structured_outputs import structured_fields
from tests.helpers.served_table import local as served_local
from tests.helpers.served_table import remote, serve
from tests.helpers.tape import tape
from tests.helpers.tiny_models import causal_lm, language_model, tokenizer

SYMBOLS = ["a", "b", ";", "$"]
LM = TabularLM(torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64), SYMBOLS, eos="$")
LANGUAGE = Automaton(
    torch.tensor([[1, 2, 0, -1], [3, 2, -1, -1], [3, 0, 1, -1], [-1, -1, -1, -1]]), torch.tensor([True, False, True, False])
)
"""Over several steps, with dead ends after two a."""


def chance(text: list[int], options: dict[str, Any], before: tuple[int, ...]) -> float:
    """Probability of a step after the prompt "a" and a text, in plain Python, without truncation."""
    probs = (LM.logits / options.get("temperature", 1.0)).softmax(-1)
    state, last = 0, 0
    for v in before:
        state, last = int(LANGUAGE.table[state, v]), v
    mass = 1.0
    ended = False
    for k in range(4):
        follow = [] if state < 0 else [v for v in range(3) if LANGUAGE.table[state, v] >= 0] + [3] * bool(LANGUAGE.accepting[state])
        total = sum(float(probs[last, v]) for v in follow)
        if k == len(text):
            return mass if ended or k == 3 or total == 0.0 else 0.0
        if ended or k == 3 or text[k] not in follow:
            return 0.0
        mass *= float(probs[last, text[k]]) / total
        ended = text[k] in (2, 3)
        state, last = int(LANGUAGE.table[state, text[k]]), text[k]
    raise AssertionError


@pytest.mark.parametrize("options", [{}, {"temperature": 1.7}])
@pytest.mark.parametrize("before", [(), (0, 1), (2, 1, 0), (0, 0)])
def test_every_step_has_the_probability_of_plain_arithmetic(before: tuple[int, ...], options: dict[str, Any]) -> None:
    """Those that stop short at a dead end among them, and after a beginning that is a dead end itself."""
    context = LM.start("a")
    if before:
        context = context.extend(torch.tensor(before), stop=())
    fn = LLMStep(context, stop=";", max_tokens=3, constraint=LANGUAGE, **options)
    found = {tuple(v for v in step if v != PAD): p for step, p in zip(fn.enumerate_support().tolist(), _probs(fn), strict=True)}
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-10)
    for length in range(4):
        for text in itertools.product(range(4), repeat=length):
            assert found.get(text, 0.0) == pytest.approx(chance(list(text), options, before), abs=1e-10), text
    assert any(len(text) < 3 and (not text or text[-1] < 2) for text in found), "some steps stop short"


def _probs(fn: LLMStep) -> list[float]:
    return list(fn.log_prob(fn.enumerate_support()).exp().tolist())


def test_truncation_comes_before_the_constraint() -> None:
    """What top_k leaves out is not written, even if that leaves nothing that may follow."""
    fn = LLMStep(LM.start("a"), stop=(), max_tokens=1, top_k=1, constraint=LANGUAGE)
    best = int(LM.logits[0].argmax())
    assert fn.enumerate_support().tolist() == ([[best]] if best < 3 else [[3]])
    banned = LLMStep(LM.start("a"), stop=(), max_tokens=1, top_k=1, constraint=TokenSet(banned=[best]))
    assert banned.sample().tolist() == [PAD] and banned.enumerate_support().tolist() == [[PAD]]


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    """10,000 draws: a cell of probability p is off by 5 standard deviations with probability below 1e-6."""
    torch.manual_seed(0)
    fn = LLMStep(LM.start("a"), stop=";", max_tokens=3, constraint=LANGUAGE)
    drawn = [tuple(step) for step in fn.expand(torch.Size([10_000])).sample().tolist()]
    for step, p in zip(fn.enumerate_support().tolist(), _probs(fn), strict=True):
        assert abs(drawn.count(tuple(step)) / 10_000 - p) < 5 * math.sqrt(p * (1 - p) / 10_000)


def test_global_and_local_differ_as_the_documentation_says() -> None:
    """The example of docs/model.md: the language of "aab" and "b"."""
    p = torch.tensor([[0.01, 0.98, 0.01], [0.5, 0.0, 0.5], [0.9, 0.1, 0.0]]).log()
    lm = TabularLM(p, ["a", "b", "$"], eos="$")
    context, language = lm.start("$"), Choices(["aab", "b"])
    options = {"stop": (), "max_tokens": 4}
    local = LLMStep(context, constraint=language, **options)
    texts = {lm.decode([v for v in step if v != PAD]): step for step in local.enumerate_support().tolist()}
    assert set(texts) == {"aab", "b"}
    q = {text: float(local.log_prob(torch.tensor(step)).exp()) for text, step in texts.items()}
    joint = {text: float(LLMStep(context, **options).log_prob(torch.tensor(step)).exp()) for text, step in texts.items()}
    assert q == pytest.approx({"aab": 0.9, "b": 0.1}, abs=1e-6)
    assert joint == pytest.approx({"aab": 0.9 * 0.01 * 0.98 * 0.5, "b": 0.1 * 0.5}, abs=1e-6)
    assert joint["aab"] / sum(joint.values()) == pytest.approx(0.081, abs=1e-3)


# a transformers model --------------------------------------------------------------------------------------------------------------------

LETTERS = sorted(i for text, i in tokenizer().get_vocab().items() if text.isalpha() and text.isascii())
GRAMMAR = Choices(["The answer is 42.\n\nHence 12 + 30.", "To add, multiply.\n\nThe tens: 10", "é 7 * 6\n\n= 42.\n\nDone."])


def stepwise(lm: Any, constraint: Constraint, steps: int = 3, problem: Any = "What is 12 + 30?") -> list[tuple[Context, Any]]:
    """Constrained steps with resampling in between: the contexts they start at and the samples."""
    torch.manual_seed(0)
    context, found = lm.start(problem), []
    options = StepOptions(stop="\n\n", max_tokens=24, temperature=1.4, constraint=constraint)
    for _ in range(steps):
        sample = lm.sample_constrained(context, torch.Size((7,)), options)
        found.append((context, sample))
        context = context.extend(sample.tokens, stop="\n\n").reorder(torch.randint(0, 7, (7,)))
    return found


@pytest.mark.parametrize("constraint", [GRAMMAR, TokenSet(allowed=LETTERS)], ids=["choices", "token set"])
def test_log_probabilities_and_masses_are_those_of_given_steps(constraint: Constraint) -> None:
    """Of the restricted model, and together of the model itself; particles change places in between."""
    lm = language_model()
    options = StepOptions(stop="\n\n", max_tokens=24, temperature=1.4)
    for context, (tokens, log_probs, log_masses) in stepwise(lm, constraint):
        restricted = lm.step_log_prob(context, tokens, StepOptions("\n\n", 24, 1.4, constraint=constraint))
        torch.testing.assert_close(log_probs, restricted, atol=1e-3, rtol=1e-4)
        alive = log_masses > -torch.inf
        both = (log_probs + log_masses).float()
        torch.testing.assert_close(both[alive], lm.step_log_prob(context, tokens, options)[alive].float(), atol=1e-3, rtol=1e-4)


def test_texts_are_the_choices_token_by_token() -> None:
    lm = language_model()
    context, sample = stepwise(lm, GRAMMAR, steps=4)[-1]
    texts = context.extend(sample.tokens, stop="\n\n").text
    assert all(any(choice.startswith(text) for choice in GRAMMAR.texts) for text in texts)
    assert any(text in GRAMMAR.texts for text in texts) and len(set(texts)) > 1


@pytest.mark.parametrize("capture", [None, tape], ids=["device loop", "replayed device loop"])
def test_models_with_a_device_loop_draw_the_same(capture: Any) -> None:
    lm = TransformersLM(causal_lm(), tokenizer(), device_loop=False)
    expected = [sample for _, sample in stepwise(lm, GRAMMAR)]
    looping = TransformersLM(causal_lm(), tokenizer(), device_loop=False)
    looping.use_device_loop(DeviceLoop(looping._engine, looping.eos_ids, capture))
    for (_, found), sample in zip(stepwise(looping, GRAMMAR), expected, strict=True):
        assert torch.equal(found.tokens, sample.tokens)
        torch.testing.assert_close(found.log_masses, sample.log_masses)


# programs ------------------------------------------------------------------------------------------------------------------------------


def program(problem: Any, lm: TabularLM = LM, steps: int = 3, **options: Any) -> Context:
    context = lm.start(problem)

    def solve(ctx: Context) -> Context:
        for t in range(steps):
            step = pyro.sample(f"step_{t}", LLMStep(ctx, stop=";", max_tokens=3, **options))
            ctx = ctx.extend(step, stop=";")
            pyro.factor(f"accept_{t}", torch.where(ctx.lengths % 2 == 0, 0.5, 0.0))
            ctx = barrier(ctx)
        return ctx

    if not context.batch_shape:
        return solve(context)
    with pyro.plate("problems", len(context), dim=-1):
        return solve(context)


def in_language(tokens: list[int], prompt: int = 1) -> bool:
    state = 0
    for v in tokens[prompt:]:
        if v == 3:
            return bool(LANGUAGE.accepting[state])
        if v != PAD:
            state = int(LANGUAGE.table[state, v])
        if state < 0:
            return False
    return True


def test_a_run_in_slices_is_a_run() -> None:
    smc = SMC(program, 16, ess_threshold=1.0, proposals=LANGUAGE, audit=True)
    pyro.set_rng_seed(1)
    whole = smc.run("a")
    pyro.set_rng_seed(1)
    *_, last = smc.iterate("a")
    assert torch.equal(last.log_weights, whole.log_weights) and torch.equal(last.value.tokens, whole.value.tokens)
    alive = whole.log_weights > -torch.inf
    assert all(in_language(tokens) for tokens in whole.value.tokens[alive].tolist())


@pytest.mark.parametrize("constraint", [LANGUAGE, Choices(["b;ab;a", "b;a", "ab;b;ba"])], ids=["automaton", "choices"])
def test_a_run_is_resumed_from_a_file(constraint: Constraint, tmp_path: Path) -> None:
    """Its states are made again from the texts; under another constraint it is refused."""

    def smc(proposals: Constraint = constraint) -> SMC:
        return SMC(program, 16, ess_threshold=1.0, proposals=proposals)

    pyro.set_rng_seed(1)
    whole = smc().run("a")
    pyro.set_rng_seed(1)
    next(iter(smc().iterate("a"))).save(tmp_path / "run")
    with pytest.raises(ValueError, match="proposals"):
        smc(TokenSet(banned=[1])).resume(tmp_path / "run", "a")
    last = smc().resume(tmp_path / "run", "a")
    assert torch.equal(last.log_weights, whole.log_weights) and torch.equal(last.value.tokens, whole.value.tokens)


def test_a_constraint_is_the_proposal_of_the_same_model_under_it() -> None:
    """Also of the steps of a model that has a constraint of its own, and of single sites."""
    for own in (None, TokenSet(banned=[2])):
        runs = []
        for proposals in (LANGUAGE, StepProposal(constraint=LANGUAGE), {f"step_{t}": LANGUAGE for t in range(3)}):
            pyro.set_rng_seed(3)
            runs.append(SMC(lambda problem, own=own: program(problem, constraint=own), 16, ess_threshold=0.7, proposals=proposals).run("a"))
        for other in runs[1:]:
            assert torch.equal(other.log_weights, runs[0].log_weights) and torch.equal(other.value.tokens, runs[0].value.tokens)


def test_a_constraint_leaves_other_sites_alone() -> None:
    def model() -> torch.Tensor:
        return pyro.sample("z", pyro.distributions.Bernoulli(0.5))

    assert SMC(model, 4, proposals=LANGUAGE).run().log_evidence == 0


def test_another_constraint_is_another_run() -> None:
    settings = [SMC(program, 4, proposals=constraint).settings["proposals"] for constraint in (LANGUAGE, GRAMMAR, TokenSet(banned=[1]))]
    assert len(set(settings)) == 3
    names = [
        StepProposal(constraint=constraint, temperature=temperature).__name__
        for constraint, temperature in [(LANGUAGE, None), (GRAMMAR, None), (TokenSet(banned=[1]), None), (GRAMMAR, 2.0)]
    ]
    assert len(set(names)) == 4


def test_plates_have_languages_of_their_own_prompts() -> None:
    pyro.set_rng_seed(0)
    posterior = SMC(program, 12, max_plate_nesting=1, proposals=StepProposal(constraint=LANGUAGE)).run(["a", "bab"])
    alive = posterior.log_weights > -torch.inf
    for i, prompt in enumerate((1, 3)):
        assert all(in_language(tokens, prompt) for tokens in posterior.value.tokens[:, i][alive[:, i]].tolist())


def test_particle_gibbs_stays_in_the_language() -> None:
    pyro.set_rng_seed(0)
    chain = ParticleGibbs(program, 6, proposals=StepProposal(constraint=LANGUAGE)).run(8, "a")
    for posterior in chain.parts:
        alive = posterior.log_weights > -torch.inf
        assert alive.any() and all(in_language(text) for text in posterior.value.tokens[alive].tolist())


@pytest.mark.parametrize(
    "given", [{"temperature": 2.0}, {"lm": TabularLM(torch.zeros(4, 4), SYMBOLS, eos="$")}, {"prompt": lambda text: "b"}]
)
def test_weights_of_other_proposals_under_a_constraint(given: dict[str, Any]) -> None:
    """log w = log p - log q with both taken of given steps."""
    pyro.set_rng_seed(2)
    proposal = StepProposal(constraint=LANGUAGE, **given)
    posterior = SMC(lambda problem: program(problem, steps=1), 40, ess_threshold=0.0, proposals=proposal).run("a")
    step = posterior.sites["step_0"]
    root = LM.start("a")
    p = LLMStep(root, stop=";", max_tokens=3).log_prob(step)
    q_context = proposal.context(root)
    q = LLMStep(q_context, stop=";", max_tokens=3, temperature=given.get("temperature", 1.0), constraint=LANGUAGE).log_prob(step)
    factor = torch.where(root.extend(step, stop=";").lengths % 2 == 0, 0.5, 0.0)
    torch.testing.assert_close(posterior.log_weights, (p - q + factor).double(), atol=1e-5, rtol=1e-5)


def test_a_model_with_a_constraint_of_its_own_keeps_it() -> None:
    """The weights are those of the model's own steps, which are restricted already."""
    pyro.set_rng_seed(2)
    own = TokenSet(banned=[2])
    for proposal in (StepProposal(constraint=LANGUAGE), StepProposal(temperature=2.0)):
        smc = SMC(lambda problem: program(problem, steps=1, constraint=own), 40, ess_threshold=0.0, proposals=proposal)
        posterior = smc.run("a")
        step, root = posterior.sites["step_0"], LM.start("a")
        assert not bool((step == 2).any())
        both = own if proposal.constraint is None else own & LANGUAGE
        p = LLMStep(root, stop=";", max_tokens=3, constraint=own).log_prob(step)
        q = LLMStep(root, stop=";", max_tokens=3, temperature=proposal.temperature or 1.0, constraint=both).log_prob(step)
        factor = torch.where(root.extend(step, stop=";").lengths % 2 == 0, 0.5, 0.0)
        torch.testing.assert_close(posterior.log_weights, (p - q + factor).double(), atol=1e-5, rtol=1e-5)


def test_a_choice_in_the_middle_of_a_program() -> None:
    lm, yes_or_no = language_model(), PerStep(Choices(["yes\n\n", "no\n\n"]))
    context = lm.start("Is 7 * 6 = 42?").expand((6,))
    for constraint in (None, yes_or_no):
        torch.manual_seed(1)
        step = LLMStep(context, max_tokens=8, constraint=constraint).sample()
        context = context.extend(step)
    assert {steps[-1] for steps in context.steps} <= {"yes\n\n", "no\n\n"}


# mistakes ------------------------------------------------------------------------------------------------------------------------------


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"constraint must be one of ppl_llm\.constraints .* got '"):
        LLMStep(LM.start("a"), constraint="[0-9]+")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got \{"):
        StepProposal(constraint={"type": "object"})  # type: ignore[arg-type]


# servers -------------------------------------------------------------------------------------------------------------------------------


def test_a_server_is_refused_where_it_was_not_said_to_know_constraints() -> None:
    lm = remote(serve())
    with pytest.raises(ValueError, match=r"a server does not tell which part of its mass .*structured_outputs='vllm'"):
        LLMStep(lm.start("a"), stop=";", max_tokens=3, constraint=LANGUAGE).sample()
    with pytest.raises(ValueError, match="structured_outputs must be one of vllm, sglang, got 'guided'"):
        remote(serve(), structured_outputs="guided")


@pytest.mark.parametrize("structured", [None, "vllm"])
def test_a_server_has_no_global_target(structured: str | None) -> None:
    lm = remote(serve(), structured_outputs=structured)
    with pytest.raises(TypeError, match="OpenAILM does not tell the mass"):
        SMC(lambda: program("a", lm), 4, proposals=StepProposal(constraint=Choices(["a"]))).run()


def test_a_server_renormalises_as_a_table_does() -> None:
    """Frequencies of 600 steps against the local distribution: five standard deviations, false alarm below 1e-5."""
    choices = Choices(["ab", "b", "a;b"])
    lm = remote(serve(), structured_outputs="vllm")
    pyro.set_rng_seed(0)
    fn = LLMStep(lm.start("a"), stop=(), max_tokens=4, constraint=choices).expand(torch.Size([600]))
    drawn = fn.sample().tolist()
    exact = LLMStep(served_local().start("a"), stop=(), max_tokens=4, constraint=choices)
    for step in exact.enumerate_support().tolist():
        p = float(exact.log_prob(torch.tensor(step)).exp())
        assert abs(drawn.count(step) / 600 - p) < 5 * math.sqrt(p * (1 - p) / 600) + 1e-9
    with pytest.raises(ValueError, match="have no log-probability here"):
        LLMStep(lm.start("a"), stop=(), max_tokens=4, constraint=choices).log_prob(torch.tensor(drawn[0]))


def test_programs_with_renormalised_steps_of_a_server() -> None:
    """Each step by itself; a filter weighs with the other factors."""
    lm = remote(serve(), structured_outputs="vllm")
    pyro.set_rng_seed(0)
    posterior = SMC(lambda: program("a", lm, steps=2, constraint=PerStep(Choices(["ab;", "b;"]))), 8, ess_threshold=1.0).run()
    assert {step for steps in posterior.value.steps for step in steps} <= {"ab;", "b;"}


@pytest.mark.parametrize(
    ("server", "constraint", "fields"),
    [
        ("vllm", Choices(["a", "b."]), {"structured_outputs": {"choice": ["a", "b."]}}),
        ("sglang", Choices(["a", "b."]), {"regex": r"(a)|(b\.)"}),
        ("vllm", "[0-9]+", {"structured_outputs": {"regex": "[0-9]+"}}),
        ("sglang", "[0-9]+", {"regex": "[0-9]+"}),
        ("vllm", {"type": "integer"}, {"structured_outputs": {"json": {"type": "integer"}}}),
        ("sglang", {"type": "integer"}, {"json_schema": '{"type": "integer"}'}),
    ],
)
def test_what_requests_say(server: str, constraint: Any, fields: dict[str, Any]) -> None:
    if not isinstance(constraint, Constraint):
        pytest.importorskip("llguidance", reason="the extra `constraints`")
        constraint = Regex(constraint) if isinstance(constraint, str) else JsonSchema(constraint)
    context = remote(serve()).start("a")
    for each in (constraint, PerStep(constraint)):
        assert structured_fields(server, each, context, torch.tensor([0])) == fields


def test_what_requests_cannot_say_is_refused() -> None:
    lm = remote(serve(), structured_outputs="vllm")
    for constraint in (LANGUAGE, TokenSet(banned=[0]), Choices(["a"]) & Choices(["a", "b"])):
        with pytest.raises(ValueError, match="requests have no words for"):
            LLMStep(lm.start("a"), stop=(), max_tokens=3, constraint=constraint).sample()
    begun = lm.start("a").extend(torch.tensor([1]), stop=())
    with pytest.raises(ValueError, match=r"this text has begun: .* PerStep"):
        LLMStep(begun, stop=(), max_tokens=3, constraint=Choices(["ba"])).sample()
