"""StepProposal: weights p / q of every possible trajectory against plain arithmetic, for another model, temperature and prompt."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm import PAD, SMC, Context, Importance, LLMStep, StepProposal, TabularLM, reasoning
from ppl_llm.constraints import Choices
from ppl_llm.inference import Enumeration, ParallelTempering, ParticleGibbs, SuffixMH, TemperedSMC, barrier
from ppl_llm.lm.base import StepOptions, StepSample
from ppl_llm.programs.step_proposal import moved
from tests.helpers.population_mutants import WRONG_SUPPORTS
from tests.helpers.reasoning import LM, MAX_STEPS, MAX_TOKENS, PRM, SYMBOLS, TEMPERATURE, solve, trajectories

_generator = torch.Generator().manual_seed(11)
DRAFT = torch.randn(4, 4, 4, generator=_generator, dtype=torch.float64)
"""A model of order two: what it writes depends on the prompt for two tokens."""


class ListedLM(TabularLM):
    """Draws given steps, particle by particle, and tells their probability."""

    steps: Tensor
    drawn: int = 0

    def sample_step(self, context: Context, particles: torch.Size, options: StepOptions) -> StepSample:
        tokens = self.steps[self.drawn].expand(*particles, -1)
        self.drawn += 1
        return StepSample(tokens, self.step_log_prob(context, tokens, options))


def listed() -> Tensor:
    """``[MAX_STEPS, trajectories, MAX_TOKENS]``: the steps of every trajectory of tests/helpers/reasoning.py."""
    steps = torch.full((len(trajectories()), MAX_STEPS, MAX_TOKENS), PAD)
    for row, (tokens, *_) in zip(steps, trajectories(), strict=True):
        place = t = 0
        for v in tokens:
            row[t, place] = v
            place += 1
            if v in (2, 3) or place == MAX_TOKENS:
                t, place = t + 1, 0
    return steps.transpose(0, 1)


def proposal_mass(tokens: tuple[int, ...], logits: Tensor, temperature: float, prompt: str) -> float:
    """q(x) in plain Python."""
    order = logits.dim() - 1
    probs = (logits / temperature).softmax(-1)
    text = [SYMBOLS.index(symbol) for symbol in prompt]
    mass = 1.0
    for v in tokens:
        mass *= float(probs[(*text[-order:], v)])
        text.append(v)
    return mass


CASES: dict[str, tuple[Tensor, float, str | None]] = {
    "temperature": (LM.logits, 2.0, None),
    "language model": (DRAFT, TEMPERATURE, "ba"),
    "prompt": (LM.logits, TEMPERATURE, "bb"),
    "all": (DRAFT, 0.8, "bab"),
}


def proposal(name: str) -> StepProposal:
    logits, temperature, prompt = CASES[name]
    lm = ListedLM(logits, SYMBOLS, eos="$")
    lm.steps, lm.drawn = listed(), 0
    return StepProposal(lm, temperature=temperature, prompt=None if prompt is None else lambda _: prompt)


def weights_of_all(name: str, mutate: Any = lambda proposal: proposal) -> tuple[Tensor, Tensor, Tensor]:
    """q(x), the log-weight of the engine, and that of plain arithmetic, for every trajectory x."""
    logits, temperature, prompt = CASES[name]
    posterior = Importance(solve, len(trajectories()), proposals=mutate(proposal(name)), audit=True).run("a")
    assert posterior.audit is not None and posterior.audit.error == 0.0
    q = [proposal_mass(tokens, logits, temperature, prompt or "a") for tokens, *_ in trajectories()]
    likelihood = [-sum(math.log1p(math.exp(-s)) for s in z) for _, _, _, z, _ in trajectories()]
    prior = [math.log(p) for _, _, p, _, _ in trajectories()]
    expected = [lp - math.log(qx) + ll for lp, qx, ll in zip(prior, q, likelihood, strict=True)]
    return torch.tensor(q, dtype=torch.float64), posterior.log_weights, torch.tensor(expected, dtype=torch.float64)


def evidence() -> float:
    return sum(p * math.prod(1 / (1 + math.exp(-s)) for s in z) for _, _, p, z, _ in trajectories())


@pytest.mark.parametrize("name", CASES)
def test_weights_of_every_trajectory_are_exact(name: str) -> None:
    """Log-weights to the rounding of float32 log-probabilities; E_q[w] over all trajectories is the evidence to 1e-6."""
    q, found, expected = weights_of_all(name)
    assert float(q.sum()) == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-6)
    assert float((q * found.exp()).sum()) == pytest.approx(evidence(), rel=1e-6)


class Forgotten(StepProposal):
    """Proposed steps weighed as if the model had written them."""

    def __call__(self, site: Any) -> Any:
        fn = super().__call__(site)
        if fn is not None:
            fn.__class__ = _LikePrior
            fn.prior = site["fn"]
        return fn


class _LikePrior(LLMStep):
    prior: LLMStep

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = super().expand(batch_shape)
        new.__class__, new.prior = _LikePrior, self.prior  # type: ignore[attr-defined]
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        return self.prior.log_prob(value)


class OldPrompt(StepProposal):
    """Steps drawn after the new prompt, weighed after the old one."""

    def __call__(self, site: Any) -> Any:
        fn = super().__call__(site)
        if fn is not None:
            fn.__class__ = _LikePrior
            o = fn.options
            order = fn.context.lm.order
            if order == 1:
                fn.prior = LLMStep(site["fn"].context, o.stop, o.max_tokens, o.temperature)
        return fn


@pytest.mark.parametrize(("name", "wrong"), [(name, Forgotten) for name in CASES] + [("prompt", OldPrompt)])
def test_rejects_wrong_proposal_weights(name: str, wrong: type[StepProposal]) -> None:
    """E_q[w] is wrong by more than 3 %."""

    def mutate(right: StepProposal) -> StepProposal:
        right.__class__ = wrong
        return right

    q, found, _ = weights_of_all(name, mutate)
    assert abs(float((q * found.exp()).sum()) / evidence() - 1) > 0.03


def test_proposals_are_not_truncated() -> None:
    """A truncated q could not write what p can: with top_k = 1 it would have a single trajectory."""
    pyro.set_rng_seed(0)
    context = LM.start("a")
    prior = LLMStep(context, ";", 2, top_k=2, top_p=0.9)
    fn = StepProposal(temperature=1.5)({"fn": prior, "name": "step_0"})
    assert fn is not None and (fn.options.top_p, fn.options.top_k, fn.options.temperature) == (1.0, None, 1.5)
    truncated = reasoning(LM, PRM, stop=";", max_tokens=2, max_steps=2, top_k=2)
    posterior = Importance(truncated, 4000, proposals=StepProposal(temperature=1.5), audit=True).run("a")
    plain = Importance(truncated, 4000).run("a")
    assert float(posterior.log_evidence.exp()) == pytest.approx(float(plain.log_evidence.exp()), rel=0.15)
    assert float((posterior.log_weights == -torch.inf).float().mean()) > 0.1  # what p never writes has no weight


@pytest.mark.parametrize("name", CASES)
def test_filters_with_proposals_are_unbiased(name: str) -> None:
    """1500 filters of eight particles; false alarm 1e-6, standard error below 5 %."""
    pyro.set_rng_seed(1)
    logits, temperature, prompt = CASES[name]
    lm = TabularLM(logits, SYMBOLS, eos="$")
    guide = StepProposal(lm, temperature=temperature, prompt=None if prompt is None else lambda _: prompt)

    def replicas() -> Context:
        with pyro.plate("problems", 1500, dim=-1):
            return solve(["a"] * 1500)

    posterior = SMC(replicas, 8, ess_threshold=0.7, max_plate_nesting=1, proposals=guide).run()
    z_hat = posterior.log_evidence.exp()
    error = float(z_hat.std()) / math.sqrt(1500)
    assert abs(float(z_hat.mean()) - evidence()) < 4.9 * error
    assert error < 0.05 * evidence()


def test_audit_of_a_filter_with_proposals() -> None:
    pyro.set_rng_seed(2)
    guide = StepProposal(TabularLM(DRAFT, SYMBOLS, eos="$"), prompt=lambda problem: "b" + problem)
    posterior = SMC(solve, 60, ess_threshold=1.0, proposals=guide, audit=True).run("ba")
    assert posterior.audit is not None and posterior.audit.error == 0.0
    assert all(text.count("$") == 0 for text in posterior.value.text)


@settings(max_examples=25, deadline=None)
@given(
    problems=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    prefix=st.text("ab;", min_size=1, max_size=4),
    steps=st.lists(st.lists(st.sampled_from(["a;", "b;", "ab", ";", "$"]), min_size=3, max_size=3), max_size=3),
)
def test_contexts_after_another_prompt(problems: list[str], prefix: str, steps: list[list[str]]) -> None:
    """The same steps, ends and particles that are done, as if they had been written after the other prompt."""
    old, new = LM.start(problems), LM.start([prefix + problem for problem in problems])
    root = new
    for row in steps:
        texts = row[: len(problems)]
        tokens = torch.full((len(problems), 2), PAD)
        for particle, text in enumerate(texts):
            if not bool(old.done[particle]):
                tokens[particle, : len(text)] = torch.tensor([SYMBOLS.index(symbol) for symbol in text])
        old, new = old.extend(tokens, stop=";"), new.extend(tokens, stop=";")
    found = moved(old, root)
    for name in ("tokens", "lengths", "prompt_lengths", "ends", "reasons", "done", "problem_index"):
        assert torch.equal(getattr(found, name), getattr(new, name)), name
    assert found.text == old.text and found.steps == old.steps


def test_proposals_leave_other_sites_alone() -> None:
    import pyro.distributions as dist

    assert StepProposal(temperature=2.0)({"fn": dist.Normal(0.0, 1.0), "name": "x"}) is None


def test_errors() -> None:
    with pytest.raises(ValueError, match="StepProposal needs another lm, temperature or prompt"):
        StepProposal()
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0\.0"):
        StepProposal(temperature=0.0)
    other = TabularLM(torch.zeros(3, 3), ["a", "b", "$"], eos="$")
    with pytest.raises(ValueError, match=r"must have the same tokens as the model's: 3 tokens and end-of-text \[2\], here 4 and \[3\]"):
        Importance(solve, 4, proposals=StepProposal(other)).run("a")


# Supports --------------------------------------------------------------------------------------------------------------------------------


class Bounded(TabularLM):
    """With a context of so many tokens."""

    def __init__(self, max_length: int, logits: Tensor = LM.logits, symbols: Any = SYMBOLS) -> None:
        super().__init__(logits, symbols, eos="$")
        self.max_length = max_length


def bounded(max_length: int) -> Any:
    return reasoning(Bounded(max_length), PRM, stop=";", max_tokens=3, max_steps=3)


@pytest.mark.parametrize(
    ("guide", "room", "proposed"),
    [
        (StepProposal(Bounded(6)), 3, 2),
        (StepProposal(Bounded(1 << 30)), 1, 3),
        (StepProposal(prompt=lambda problem: "b" + problem), 3, 2),
    ],
    ids=["smaller context", "unlimited context", "longer prompt"],
)
def test_another_room_is_refused(guide: StepProposal, room: int, proposed: int) -> None:
    """Accepted, these gave an evidence of .40, .43 and .40 for .446; the model's context holds seven tokens."""
    pyro.set_rng_seed(3)
    message = rf"site 'step_\d': the model's context has room for {room} more tokens, the proposing model's for {proposed}, so"
    with pytest.raises(ValueError, match=message):
        SMC(bounded(7), 200, proposals=guide).run("a")


@pytest.mark.parametrize(
    "guide",
    [
        StepProposal(Bounded(7), temperature=1.5),
        StepProposal(Bounded(8), prompt=lambda problem: "b" + problem),
        StepProposal(temperature=2.0),
    ],
    ids=["same context", "longer prompt and context", "same model"],
)
def test_equal_rooms_are_exact(guide: StepProposal) -> None:
    """Evidence in a context that fills up, against enumeration (z-test over 200 filters)."""
    pyro.set_rng_seed(4)
    exact = float(Enumeration(bounded(7)).run("a").log_evidence.exp())

    def replicas() -> Context:
        return bounded(7)(["a"] * 200)  # type: ignore[no-any-return]

    z_hat = SMC(replicas, 30, max_plate_nesting=1, proposals=guide).run().log_evidence.exp()
    error = float(z_hat.std()) / math.sqrt(200)
    assert abs(float(z_hat.mean()) - exact) < 4.9 * error < 0.1 * exact


def test_tokens_of_other_text_are_refused() -> None:
    guide = StepProposal(Bounded(1 << 30, symbols=["a", ";", "b", "$"]))
    with pytest.raises(ValueError, match=r"site 'step_0': the proposing language model writes its tokens as other text"):
        SMC(solve, 4, proposals=guide).run("a")


@pytest.mark.parametrize("name", WRONG_SUPPORTS)
def test_rejects_proposals_of_another_support(name: str) -> None:
    """Without the check the evidence is wrong by more than 2 % (z > 8): steps that one model cuts and the other does not."""
    pyro.set_rng_seed(5)
    exact = float(Enumeration(bounded(7)).run("a").log_evidence.exp())

    def replicas() -> Context:
        return bounded(7)(["a"] * 300)  # type: ignore[no-any-return]

    try:
        z_hat = SMC(replicas, 60, max_plate_nesting=1, proposals=WRONG_SUPPORTS[name](Bounded(6))).run().log_evidence.exp()
    except ValueError:
        z_hat = torch.full((300,), exact)
    assert abs(float(z_hat.mean()) / exact - 1) > max(0.02, 8 * float(z_hat.std()) / math.sqrt(300) / exact)


def two_steps() -> Context:
    ctx = TabularLM(torch.zeros(3, 3), ["a", "b", "$"], eos="$").start("a")
    for t in range(2):
        ctx = barrier(ctx.extend(pyro.sample(f"step_{t}", LLMStep(ctx, stop="b", max_tokens=2)), stop="b"))
    return ctx


def test_chains_under_a_constraint_start_and_stay_in_its_language() -> None:
    language = ["ab", "b", "aab"]
    for seed in range(20):  # a start from the model itself is outside of the language more often than not
        pyro.set_rng_seed(seed)
        chain = SuffixMH(two_steps, proposals=StepProposal(constraint=Choices(language))).run(3)
        texts = [text for text, weight in zip(chain.value.text, chain.weights.tolist(), strict=True) if weight > 0]
        assert all(any(word.startswith(text) for word in language) for text in texts)


def test_ancestor_sampling_under_a_constraint_is_refused() -> None:
    """When the kernel is made, wherever that is; a proposal that does not tell is refused when it gives an infinite weight."""
    guide = StepProposal(constraint=Choices(["ab", "b", "aab"]))
    gibbs: Any = partial(ParticleGibbs, num_particles=3, ancestor_sampling=True, ess_threshold=1.0)
    for proposals in (guide, {"step_0": guide, "step_1": guide}):
        kernel = partial(gibbs, proposals=proposals)
        for make in (
            kernel,
            partial(TemperedSMC, num_particles=4, kernel=kernel),
            partial(ParallelTempering, betas=[0.5, 1], kernel=kernel),
        ):
            with pytest.raises(ValueError, match=r"StepProposal\(constraint=.*\) draws only a part .* Leave out ancestor_sampling"):
                make(two_steps)
    with pytest.raises(ValueError, match=r"site 'step_1' gave an infinite log-weight.*without ancestor sampling"):
        gibbs(two_steps, proposals=lambda site: guide(site)).run(100)
