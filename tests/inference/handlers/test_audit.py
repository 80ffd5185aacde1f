"""The audit: every right model passes, resampled or not; wrong ones are caught as the table of docs/model.md says."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppl_llm import Confidence, Context, FunctionReward, LLMStep, ProductReward, SMCFailed, StepReward, TabularLM
from ppl_llm import reasoning as ready
from ppl_llm.inference import SMC, AuditError, AuditReport, barrier
from ppl_llm.inference.handlers.audit_messenger import Audited, AuditMessenger
from ppl_llm.lm.transformers_lm import TransformersLM
from tests.helpers import reasoning
from tests.helpers.buggy_models import BUGGY, START, STEPS, TRANSITION, latent, nothing, observe
from tests.helpers.models import MODELS
from tests.helpers.population_mutants import WRONG_ACCUSERS, WRONG_AUDITS
from tests.helpers.tiny_models import causal_lm, tokenizer

N = 8
THRESHOLDS = {"resampled": 1.0, "never resampled": 0.0}


def audited(program: Any, threshold: float, seed: int = 0, nesting: int = 0, **kwargs: Any) -> AuditReport:
    pyro.set_rng_seed(seed)
    report = SMC(program, N, ess_threshold=threshold, audit=True, max_plate_nesting=nesting, resample_finished=True, **kwargs).run().audit
    assert report is not None
    return report


@pytest.mark.parametrize("how", THRESHOLDS)
@pytest.mark.parametrize("name", MODELS)
def test_right_models_pass(name: str, how: str) -> None:
    model = MODELS[name]()
    for seed in range(3):
        report = audited(model.program, THRESHOLDS[how], seed, model.nesting)
        assert report.error == 0.0 and report.num_sites > 1 and report.num_leaves > 0
        assert (report.num_resampled > 0) == (how == "resampled") and report.num_permuted >= 3


@pytest.mark.parametrize("islands", [1, 2])
@pytest.mark.parametrize("how", THRESHOLDS)
def test_problems_and_islands_pass(how: str, islands: int) -> None:
    report = audited(lambda: plated(["a", "b", "ba"]), THRESHOLDS[how], nesting=1, islands=islands)
    assert report.error == 0.0 and report.num_leaves == 5 and report.num_permuted == reasoning.MAX_STEPS


def test_a_plate_within_a_population_passes() -> None:
    """Its elements move together: what they share does so, too."""

    def model() -> tuple[Tensor, Tensor]:
        (z,) = barrier((pyro.sample("z", dist.Bernoulli(0.5)),))
        with pyro.plate("elements", 2):
            e = pyro.sample("e", dist.Bernoulli(0.2 + 0.6 * z))
        pyro.factor("f", z * e.sum(-1, keepdim=True))
        return z, e

    pyro.set_rng_seed(0)
    for threshold in (0.0, 1.0):
        report = SMC(model, 8, ess_threshold=threshold, max_plate_nesting=1, audit=True).run().audit
        assert report is not None and report.num_sites == 3


def plated(problems: list[str]) -> Context:
    with pyro.plate("problems", len(problems), dim=-1):
        return reasoning.solve(problems)


RETURNED: dict[str, Any] = {
    "the last state": lambda z, path: z,
    "transposed": lambda z, path: torch.stack(path),
    "particles in the middle": lambda z, path: torch.stack(path)[..., None],
    "an array": lambda z, path: {"array": torch.stack(path).numpy(), "strings": np.array([str(int(each)) for each in z])},
    "a set": lambda z, path: {tuple(row) for row in torch.stack(path, -1).tolist()},
    "a dataclass": lambda z, path: Kept(z, path),
    "an object": lambda z, path: SimpleNamespace(z=z, path=path, again=SimpleNamespace(texts=[str(each) for each in z.tolist()])),
    "a closure": lambda z, path: lambda: (z, path),
    "a dictionary by value": lambda z, path: {int(value): (z == value).nonzero().flatten() for value in range(3)},
    "the number of the best": lambda z, path: int(z.argmax()),
    "a sum over particles": lambda z, path: float(z.sum()),
}


@dataclass
class Kept:
    z: Tensor
    path: list[Tensor]


def returning(what: str) -> Any:
    """A right model that returns its state in some form."""
    z, path = nothing(), []
    for t in range(STEPS):
        z = latent(t, z)
        observe(t, z)
        z, path = barrier((z, [*path, z]))
    return RETURNED[what](z, path)


@pytest.mark.parametrize("how", THRESHOLDS)
@pytest.mark.parametrize("what", RETURNED)
def test_right_models_may_return_anything(what: str, how: str) -> None:
    for seed in range(3):
        report = audited(lambda: returning(what), THRESHOLDS[how], seed)
        assert report.error == 0.0 and report.num_leaves > 0


@pytest.mark.parametrize("how", THRESHOLDS)
def test_one_text_for_each_problem_passes(how: str) -> None:
    """As many problems as particles, and a text, a tensor without particles and the best particle of each."""

    def model() -> Any:
        with pyro.plate("problems", N, dim=-1):
            x = pyro.sample("x", dist.Categorical(START.expand(N, 3)))
            pyro.factor("f", -0.7 * x)
            x = barrier(x)
            y = pyro.sample("y", dist.Categorical(TRANSITION[x]))
            x, y = barrier((x, y))
        names = [f"problem {p}: {x[:, p].tolist()} {y[:, p].tolist()}" for p in range(N)]
        return {"names": names, "best": y.argmax(0), "transposed": x.T, "both": torch.stack([x, y])}

    report = audited(model, THRESHOLDS[how], nesting=1)
    assert report.error == 0.0 and report.num_leaves == N + 3


@pytest.mark.parametrize("name", WRONG_ACCUSERS)
def test_rejects_false_accusations(name: str) -> None:
    """A right model whose result has the particles last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppl_llm.inference.handlers.audit_messenger.AuditMessenger", WRONG_ACCUSERS[name])
        audited(lambda: returning("the last state"), 0.0)
        accused = False
        try:
            audited(lambda: returning("transposed"), 0.0)
        except AuditError:
            accused = True
    assert accused


@pytest.mark.parametrize("barriers", range(1, 6))
@pytest.mark.parametrize("n", range(2, 6))
def test_particles_are_away_from_their_places_before_the_last_barrier(n: int, barriers: int) -> None:
    """They change places at each barrier, and with more than two stand in their own only after the last."""
    swept = Audited({}, {}, None, torch.Size([3]), [False] * barriers, barriers)
    offsets = AuditMessenger(swept, n).offsets()
    assert (offsets[-1] == 0).all() and (offsets.diff(dim=0) % n != 0).all() and ((offsets >= 0) & (offsets < n)).all()
    assert n == 2 or (offsets[:-1] != 0).all()


def every_kind_of_state() -> Any:
    """All that a barrier takes and a model may return: constants, shared tensors and lists beside what each particle has."""
    z, path, running = nothing(), [], {"sum": torch.zeros(()), "names": ("a", "b"), "step": 0}
    data = torch.arange(5)
    for t in range(STEPS):
        z = latent(t, z)
        observe(t, z)
        pyro.deterministic(f"twice_{t}", 2 * z)
        running = {**running, "sum": running["sum"] + z, "step": t}
        z, path, running = barrier((z, [*path, z], running))
        z = z.clone()
    return {"z": z, "path": path, "running": running, "data": data, "texts": [str(int(each)) for each in z], "none": None, "fn": nothing}


@pytest.mark.parametrize("how", THRESHOLDS)
def test_every_kind_of_state_passes(how: str) -> None:
    report = audited(every_kind_of_state, THRESHOLDS[how])
    assert report.error == 0.0 and report.num_sites == 2 * STEPS
    assert report.num_leaves >= 9 and report.num_permuted == STEPS


def test_a_single_particle_has_nothing_to_permute() -> None:
    pyro.set_rng_seed(0)
    report = SMC(every_kind_of_state, 1, audit=True).run().audit
    assert report is not None and report.error == 0.0 and report.num_permuted == 0


def test_a_replayed_value_passes() -> None:
    """What ``poutine.replay`` gives is one value for all particles, and returned as such."""
    known = poutine.Trace()
    known.add_node("w", name="w", type="sample", is_observed=False, infer={}, value=torch.tensor(1.0))

    def program() -> dict[str, Tensor]:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        return {"w": pyro.sample("w", dist.Bernoulli(torch.full_like(z, 0.5))), "z": barrier(z)}

    assert audited(poutine.replay(program, trace=known), 1.0).error == 0.0


@pytest.mark.parametrize("how", THRESHOLDS)
@pytest.mark.parametrize("name", BUGGY)
def test_the_table_of_wrong_models(name: str, how: str) -> None:
    """Three seeds each: what is caught is caught every time, and what is not never."""
    model = BUGGY[name]
    caught = model.resampled if how == "resampled" else model.never_resampled
    for seed in range(3):
        if not caught:
            assert audited(model.make(), THRESHOLDS[how], seed).error == 0.0
        elif "refuses" in model.how:
            words = "random numbers were drawn outside of" if "generators" in model.how else "as many as there are particles: are they one"
            with pytest.raises(ValueError, match=words):
                audited(model.make(), THRESHOLDS[how], seed)
        else:
            with pytest.raises(AuditError, match="does not thread through barrier"):
                audited(model.make(), THRESHOLDS[how], seed)


LET_PASS = {"log-probabilities only": 20, "unpermuted": 15, "begins in place": 1, "tensors and lists only": 8}
"""Models and runs, at least."""


@pytest.mark.parametrize("name", WRONG_AUDITS)
def test_rejects_weaker_audits(name: str) -> None:
    """Each lets models pass that the audit catches."""
    passed: set[str] = set()
    for model in BUGGY:
        for how, threshold in THRESHOLDS.items():
            caught = BUGGY[model].resampled if how == "resampled" else BUGGY[model].never_resampled
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("ppl_llm.inference.handlers.audit_messenger.AuditMessenger", WRONG_AUDITS[name])
                try:
                    audited(BUGGY[model].make(), threshold)
                except (AuditError, ValueError):
                    continue
            if caught:
                passed.add(f"{model}, {how}")
    assert len(passed) >= LET_PASS[name], passed


def test_docs_say_what_is_caught() -> None:
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in Path("docs/model.md").read_text().splitlines()
        if line.startswith("|") and line.count("|") == 5
    }
    words = {True: "yes", False: "no"}
    for model in BUGGY.values():
        assert rows.get(model.mistake) == [words[model.resampled], words[model.never_resampled], model.how], model.mistake


# What the audit must not change, and its tolerances --------------------------------------------------------------------------------------


def test_the_audit_does_not_touch_the_posterior() -> None:
    """A model that writes into its own tensors writes into copies."""

    def writes() -> Tensor:
        total = torch.zeros(())
        z = nothing()
        for t in range(STEPS):
            z = pyro.sample(f"z_{t}", dist.Categorical(START if t == 0 else TRANSITION[z]))
            observe(t, z)
            total, z = barrier((total + z, z))
            total = total.clone()
            total += 1
        return total

    pyro.set_rng_seed(0)
    plain = SMC(writes, N, ess_threshold=1.0).run()
    pyro.set_rng_seed(0)
    found = SMC(writes, N, ess_threshold=1.0, audit=True).run()
    assert torch.equal(found.value, plain.value) and all(torch.equal(found.sites[name], plain.sites[name]) for name in plain.sites)


class Rounded(dist.Normal):
    """A log-probability that differs from evaluation to evaluation as a network's in a small number format."""

    noise, told = 0.3, 0.5

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + self.noise * (torch.rand(value.shape) - 0.5)

    def rounding(self, value: Tensor) -> float:
        return self.told


def test_distributions_tell_their_rounding() -> None:
    def program() -> Tensor:
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", Rounded(z, torch.ones(())).mask(True), obs=torch.tensor(0.0))
        return barrier(z)

    report = audited(program, 1.0)
    assert report.error == 0.0 and 0.05 < report.rounding < 0.3
    Rounded.told = 0.001
    try:
        with pytest.raises(AuditError, match="site 'y'"):
            audited(program, 1.0)
    finally:
        Rounded.told = 0.5


def test_other_barriers_and_leaves() -> None:
    """A replay that ends earlier, or returns something else."""
    runs: list[int] = []

    def shorter() -> Any:
        runs.append(1)
        z = latent(0, nothing())
        observe(0, z)
        for _ in range(3 - len(runs)):
            z = barrier(z)
        return z

    with pytest.raises(AuditError, match="the sweep passed 2 barriers, the replay of its lineages 1"):
        audited(shorter, 0.0)

    def more() -> Any:
        runs.append(1)
        z = latent(0, nothing())
        observe(0, z)
        return [barrier(z)] * len(runs)

    runs.clear()
    with pytest.raises(AuditError, match=r"value: the sweep gave \[tensor.*, the replay of its lineages gives \[tensor.*, tensor"):
        audited(more, 0.0)


def test_steps_and_rewards_tell_their_rounding() -> None:
    """From the number format of their networks and the length of the step."""
    ctx = reasoning.LM.start("a").expand((2,))
    step = torch.tensor([[0, 2], [2, -1]])
    fn = LLMStep(ctx, stop=";", max_tokens=2)
    assert fn.rounding(step) < 1e-4
    half = torch.nn.Linear(2, 2, dtype=torch.bfloat16)
    half.dtype = torch.bfloat16  # type: ignore[assignment]
    reasoning.LM.model = half  # type: ignore[attr-defined]
    try:
        assert fn.rounding(step) == pytest.approx(2 * 16 * 2.0**-7)
        assert StepReward(reasoning.PRM, ctx).rounding(torch.tensor(1.0)) < 1e-4
        sure = ProductReward([Confidence(), reasoning.PRM])  # scores that are figures of the language model
        assert StepReward(sure, ctx).rounding(torch.tensor(1.0)) == pytest.approx(2 * 16 * 2.0**-7)
    finally:
        del reasoning.LM.model  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_networks_of_every_number_format_pass(dtype: torch.dtype) -> None:
    """A healthy model in bfloat16: two evaluations of a step differ by more than float32 explains, and are told from stale state."""
    lm = TransformersLM(causal_lm().to(dtype), tokenizer(), max_length=64)

    def program(threads: bool = True) -> Context:
        ctx = lm.start("12 + 30")
        for t in range(3):
            step = pyro.sample(f"step_{t}", LLMStep(ctx, max_tokens=6))
            ctx = ctx.extend(step)
            pyro.factor(f"long_{t}", -0.5 * (ctx.lengths - ctx.step_starts[..., -1]).float())
            passed = barrier(ctx)
            ctx = passed if threads else ctx
        return ctx

    for threshold in (0.0, 1.0):
        report = audited(program, threshold)
        assert report.error == 0.0
        with pytest.raises(AuditError, match="does not thread through barrier"):
            audited(lambda: program(False), threshold)


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("ess_threshold", [0.0, 1.0])
def test_lists_of_particles_and_plates(ess_threshold: float, stale: bool) -> None:
    """``x.tolist()`` of a model with a plate: a list for each particle, one value for each problem in it."""

    def model() -> Any:
        with pyro.plate("problems", 3, dim=-1):
            x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.zeros(3))
            before, x = x, barrier(x)
            x = x + pyro.sample("z", dist.Normal(x, 1.0))
            after = barrier(x)
        return {"x": (x if stale else after).tolist(), "before": [len(before), 1]}

    smc = SMC(model, 4, ess_threshold=ess_threshold, max_plate_nesting=1, audit=True)
    if stale:
        with pytest.raises(AuditError, match="value"):
            smc.run()
    else:
        report = smc.run().audit
        assert report is not None and report.num_leaves == 4 * 3 + 2


@pytest.mark.parametrize("early_exit", [True, False])
def test_solutions_that_are_dropped_may_have_been_longer(early_exit: bool) -> None:
    """Where the last resampling drops all particles that took more steps, those that are left end earlier, with narrower tensors."""
    lm = TabularLM(torch.tensor([[0.0, 1.0, 1.0]] * 3), ["$", "a", "b"], eos="$")
    verifier = FunctionReward(lambda problem, text: text in ("", "a", "ab"))
    model = ready(lm, verifier, stop=";", max_tokens=1, max_steps=4, early_exit=early_exit)
    shorter = narrower = 0
    for seed in range(40):
        pyro.set_rng_seed(seed)
        with suppress(SMCFailed):
            posterior = SMC(model, 8, audit=True).run("a")
            assert posterior.audit is not None and posterior.audit.error <= 0
            shorter += posterior.audit.num_permuted < posterior.num_barriers
            narrower += int(posterior.value.lengths.max()) < posterior.value.tokens.shape[-1]
    assert (shorter > 3) is early_exit and narrower > 3


def test_a_loop_that_ends_by_a_stale_state_is_refused() -> None:
    """It ends when the particle in the first place is done, another one in the replay; where all are done, nothing is stale."""
    lm = TabularLM(torch.tensor([[0.0, 1.0, 1.0]] * 3), ["$", "a", "b"], eos="$")

    def stale(problem: str) -> Context:
        context = beside = lm.start(problem)
        for t in range(4):
            beside = context.extend(pyro.sample(f"step_{t}", LLMStep(context, stop=";", max_tokens=1)), stop=";")
            pyro.sample(f"accept_{t}", dist.Bernoulli(torch.where(beside.done, 0.9, 0.3)), obs=torch.tensor(1.0))
            context = barrier(beside)
            if bool(beside.done[0]):  # of the particle that was there
                break
        return context

    refused = 0
    for seed in range(20):
        pyro.set_rng_seed(seed)
        try:
            SMC(stale, 4, ess_threshold=1.0, audit=True).run("a")
        except AuditError:
            refused += 1
    assert refused > 10
