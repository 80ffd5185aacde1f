"""One reasoning program under every algorithm, against enumeration; the presets against their closed-form distributions."""

from __future__ import annotations

import math
from collections import defaultdict
from functools import cache
from typing import Any

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Importance as PyroImportance
from pyro.infer import Predictive
from pyro.infer.enum import iter_discrete_traces
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppl_llm import PAD, PRESETS, SMC, Context, Enumeration, Importance, LLMStep, StepReward, TabularLM, TabularReward, barrier, reasoning
from ppl_llm.inference import AuditError, EntropicAnnealing, ParticleGibbs, ParticlePosterior, TemperMessenger
from tests.helpers.reasoning import LM, MAX_STEPS, MAX_TOKENS, PRM, TEMPERATURE, distribution, key, solve, trajectories


@cache
def enumerated() -> dict[tuple[int, ...], float]:
    """Unnormalised posterior by Pyro's own enumeration of the program."""
    listed = poutine.infer_config(solve, lambda site: {"enumerate": "sequential"} if site["name"].startswith("step") else {})
    table: dict[tuple[int, ...], float] = defaultdict(float)
    for trace in iter_discrete_traces("flat", listed, "a"):
        table[key(trace.nodes["_RETURN"]["value"])] += trace.log_prob_sum().exp().item()
    return dict(table)


def empirical(posterior: ParticlePosterior) -> dict[tuple[int, ...], float]:
    """What ``posterior.marginal(key)`` gives, for many particles."""
    rows, where = posterior.value.tokens[:, 1:].unique(dim=0, return_inverse=True)
    mass = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, where, posterior.weights)
    return {tuple(v for v in row if v != PAD): m for row, m in zip(rows.tolist(), mass.tolist(), strict=True)}


def tv(p: dict[Any, float], q: dict[Any, float]) -> float:
    return sum(abs(p.get(x, 0.0) - q.get(x, 0.0)) for x in set(p) | set(q)) / 2


def tv_bound(probs: dict[Any, float], ess: float, z: float = 6.0) -> float:
    """Bound of the total variation of an empirical distribution of ``ess`` draws: its mean (Cauchy-Schwarz) + z deviations (McDiarmid)."""
    return 0.5 * sum(math.sqrt(p * (1 - p) / ess) for p in probs.values()) + z / (2 * math.sqrt(ess))


def test_enumeration_agrees_with_plain_arithmetic() -> None:
    mine = defaultdict(float)
    for tokens, _, p, z, _ in trajectories():
        mine[tokens] += p * math.prod(1 / (1 + math.exp(-value)) for value in z)
    theirs = enumerated()
    assert len(mine) == len(theirs) > 200
    assert max(abs(mine[x] - theirs[x]) for x in mine) < 1e-6
    assert {len(x) for x in mine} >= {1, 2, 3, 4, 5, 6}


def exact() -> tuple[float, dict[tuple[int, ...], float]]:
    table = enumerated()
    total = sum(table.values())
    return total, {x: mass / total for x, mass in table.items()}


@pytest.mark.parametrize("algorithm", [SMC, Importance])
def test_our_algorithms_agree(algorithm: Any) -> None:
    pyro.set_rng_seed(0)
    evidence, posterior = exact()
    result = algorithm(solve, 20_000, audit=True).run("a")
    assert tv(empirical(result), posterior) < tv_bound(posterior, float(result.get_ESS()))
    assert tv_bound(posterior, float(result.get_ESS())) < 0.12  # the bound means something
    assert abs(float(result.log_evidence.exp()) / evidence - 1) < 0.05
    assert result.audit.error == 0.0
    small = algorithm(solve, 50).run("a")
    assert dict(small.marginal(key).probs) == pytest.approx({x: m for x, m in empirical(small).items() if m > 0})


def test_unbiased_evidence_with_few_particles() -> None:
    """20 000 problems in a plate, each with its own filter of four particles; false alarm 1e-6."""
    pyro.set_rng_seed(1)
    evidence, _ = exact()
    small = TabularPlate(4000)
    for ess_threshold in (0.5, 1.0):
        z_hat = SMC(small, 4, ess_threshold=ess_threshold, max_plate_nesting=1).run("a").log_evidence.exp()
        assert abs(z_hat.mean() - evidence) < 4.9 * z_hat.std() / math.sqrt(len(z_hat))
        assert z_hat.std() / math.sqrt(len(z_hat)) < 0.02 * evidence


class TabularPlate:
    """Replicates of the same problem."""

    def __init__(self, replicates: int) -> None:
        self.replicates = replicates

    def __call__(self, problem: str) -> Context:
        with pyro.plate("problems", self.replicates, dim=-1):
            return solve([problem] * self.replicates)


def test_pyro_importance_agrees() -> None:
    """300 sequential samples; z-test of the evidence and of an answer's posterior probability, false alarm 1e-6 each."""
    pyro.set_rng_seed(2)
    evidence, posterior = exact()
    result = PyroImportance(solve, num_samples=600).run("a")
    weights = torch.stack(result.log_weights).exp().double()
    assert abs(weights.mean() - evidence) < 4.9 * weights.std() / math.sqrt(600)
    first_is_a = torch.tensor([trace.nodes["step_0"]["value"][0] == 0 for trace in result.exec_traces]).double()
    p = sum(mass for x, mass in posterior.items() if x[0] == 0)
    residual = weights * (first_is_a - p)
    assert abs(residual.mean()) < 4.9 * residual.std() / math.sqrt(600)


@pytest.mark.parametrize("parallel", [True, False])
def test_pyro_predictive_samples_the_prior(parallel: bool) -> None:
    pyro.set_rng_seed(3)
    draws = Predictive(solve, num_samples=2000 if parallel else 200, parallel=parallel)("a")
    prior = distribution(lambda steps, z: 1.0)
    first = draws["step_0"].flatten(1, -2)[:, 0] if draws["step_0"].dim() > 2 else draws["step_0"]
    p = sum(mass for x, mass in prior.items() if x[0] == 0)
    n = len(first)
    assert abs((first[:, 0] == 0).double().mean() - p) < 4.9 * math.sqrt(p * (1 - p) / n)


def test_conditioning_scores_given_steps() -> None:
    """poutine.condition: the log-joint of every trajectory equals plain arithmetic, one vectorised run."""
    found = [(tokens, p, z) for tokens, _, p, z, _ in trajectories()]
    steps = torch.full((len(found), MAX_STEPS, MAX_TOKENS), PAD)
    for row, (tokens, _, _) in zip(steps, found, strict=True):
        place = t = 0
        for v in tokens:
            row[t, place] = v
            place += 1
            if v in (2, 3) or place == MAX_TOKENS:
                t, place = t + 1, 0
    values = {f"step_{t}": steps[:, t] for t in range(MAX_STEPS)}
    with pyro.plate("particles", len(found), dim=-1):
        trace = poutine.trace(poutine.condition(solve, values)).get_trace("a")
    trace.compute_log_prob()
    log_joint = sum(node["log_prob"] for node in trace.nodes.values() if node["type"] == "sample" and "log_prob" in node)
    expected = torch.tensor([math.log(p) + sum(float(logsigmoid(torch.tensor(s))) for s in z) for _, p, z in found])
    torch.testing.assert_close(log_joint, expected, atol=1e-4, rtol=1e-4)


def test_conditioning_inside_a_filter() -> None:
    pyro.set_rng_seed(4)
    first = torch.tensor([1, 2])
    posterior = SMC(poutine.condition(solve, {"step_0": first}), 20_000).run("a")
    exact_evidence = sum(mass for x, mass in enumerated().items() if x[:2] == (1, 2))
    assert float(posterior.log_evidence.exp()) == pytest.approx(exact_evidence, rel=0.05)
    assert all(text.startswith("b;") for text in posterior.value.text)


def odds(z: tuple[float, ...], aggregation: str) -> float:
    r = [1 / (1 + math.exp(-value)) for value in z]
    s = {"last": r[-1], "prod": math.prod(r), "min": min(r)}[aggregation]
    return s / (1 - s)


def as_paper(steps: int, z: tuple[float, ...]) -> float:
    """paper.md 1.4: p(x) prod_{t < tau} G(x_1:t) G(x)^(Tmax - tau)."""
    early = math.prod(odds(z[:t], "prod") for t in range(1, steps))
    return early * odds(z, "prod") ** (MAX_STEPS - steps)


def entropic(score_temperature: float) -> Any:
    """The limit of many particles: its_hub with ``G_t^(1/T_t)``, T_t a number that follows from the population of step t."""
    rows = trajectories()
    powers: list[float] = []

    def potential(t: int, steps: int, z: tuple[float, ...]) -> float:
        return float(odds(z[: min(t, steps)], "prod") ** (1 / score_temperature))

    def weight(steps: int, z: tuple[float, ...]) -> float:
        return math.prod(potential(t, steps, z) ** power for t, power in enumerate(powers, 1))

    for t in range(1, MAX_STEPS + 1):
        eta = [p * weight(steps, z) for _, steps, p, z, _ in rows]
        g = [potential(t, steps, z) for _, steps, _, z, _ in rows]
        first, second = (sum(e * value**k for e, value in zip(eta, g, strict=True)) / sum(eta) for k in (1, 2))
        share, progress = first**2 / second, t / MAX_STEPS
        powers.append(min(1.0, share / (1 - progress)) if share < 0.5 and progress < 0.5 else 1.0)
    return weight


DISTRIBUTIONS = {
    "exact": lambda steps, z: math.prod(1 / (1 + math.exp(-value)) for value in z),
    "twisted": lambda steps, z: min(1 / (1 + math.exp(-value)) for value in z),
    "as_paper": as_paper,
    "its_hub": lambda steps, z: as_paper(steps, z) * odds(z, "prod"),
    "entropic": entropic(1.0),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_follow_their_distributions(name: str) -> None:
    """One filter of 100 000 particles; the bound is that of an i.i.d. sample a third its size, since resampling correlates particles."""
    pyro.set_rng_seed(5)
    n = 100_000
    model = reasoning(LM, PRM, name, stop=";", max_tokens=MAX_TOKENS, max_steps=MAX_STEPS, temperature=TEMPERATURE)
    posterior = SMC(model, n, **model.preset.smc).run("a")
    expected = distribution(DISTRIBUTIONS[name])
    bound = tv_bound(expected, float(posterior.get_ESS()) / 3)
    assert tv(empirical(posterior), expected) < bound
    # With scores as flat as these the entropic filter never anneals, and is its_hub; see below for sharper ones.
    same = {"its_hub", "entropic"} if name in ("its_hub", "entropic") else {name}
    others = [tv(distribution(other), expected) for known, other in DISTRIBUTIONS.items() if known not in same]
    assert min(others) > 2 * bound  # every other preset's distribution would be rejected


def test_the_entropic_preset_anneals_sharp_scores() -> None:
    """Odds to the power of 1 / 0.3, first two tokens: the first step is annealed with T = 3.8. The plain filter would be rejected."""
    pyro.set_rng_seed(12)
    n, score_temperature = 100_000, 0.3
    steps = {"stop": ";", "max_tokens": MAX_TOKENS, "max_steps": MAX_STEPS, "temperature": TEMPERATURE}
    model = reasoning(LM, PRM, "entropic", score_temperature=score_temperature, **steps)
    assert model.preset.selection == EntropicAnnealing("ess", num_steps=MAX_STEPS, keeps_target=False)
    posterior = SMC(model, n, **model.preset.smc).run("a")

    def begins(table: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
        summed: dict[tuple[int, ...], float] = defaultdict(float)
        for tokens, mass in table.items():
            summed[tokens[:2]] += mass
        return summed

    expected = begins(distribution(entropic(score_temperature)))
    plain = begins(distribution(lambda steps, z: (as_paper(steps, z) * odds(z, "prod")) ** (1 / score_temperature)))
    bound = tv_bound(expected, n / 10)
    assert tv(begins(empirical(posterior)), expected) < bound
    assert tv(plain, expected) > 2 * bound


def test_choose_follows_the_preset() -> None:
    lm = TabularLM(torch.zeros(3, 3), ["\\boxed{1}", "\\boxed{2}", "$"], eos="$")
    prm = TabularReward(torch.tensor([0.5, 1.0, 0.0]))
    context = Context.root(lm, ("p",), [[0]], batched=False)
    grown = context.extend(torch.tensor([[0, 2], [0, 2], [1, 2]]), stop=";")
    assert grown.answers() == ["1", "1", "2"]

    class Fixed:
        value, weights = grown, torch.tensor([0.3, 0.3, 0.4])

    assert reasoning(lm, prm, "exact").choose(Fixed) == "1"  # type: ignore[arg-type]
    assert reasoning(lm, prm, "its_hub").choose(Fixed) == "2"  # type: ignore[arg-type]


def test_problems_in_a_plate() -> None:
    pyro.set_rng_seed(6)
    model = reasoning(LM, PRM, "exact", stop=";", max_tokens=MAX_TOKENS, max_steps=MAX_STEPS)
    together = SMC(model, 4000, max_plate_nesting=1, audit=True).run(["a", "b", "ba"])
    assert together.log_weights.shape == (4000, 3) and together.audit.error == 0.0
    apart = [float(SMC(model, 4000).run(problem).log_evidence) for problem in ("a", "b", "ba")]
    torch.testing.assert_close(together.log_evidence, torch.tensor(apart).double(), atol=0.1, rtol=0)
    assert len(model.choose(together)) == 3
    assert [len(m) > 5 for m in together.marginal(key)] == [True] * 3


def forgets(problem: str) -> Context:
    """Scores the context from before the barrier at the next step."""
    ctx = LM.start(problem)
    for t in range(MAX_STEPS):
        step = pyro.sample(f"step_{t}", LLMStep(ctx, stop=";", max_tokens=MAX_TOKENS))
        ctx = ctx.extend(step, stop=";")
        pyro.sample(f"accept_{t}", StepReward(PRM, ctx), obs=torch.tensor(1.0))
        barrier(ctx)
    return ctx


def test_audit_rejects_a_model_that_forgets_its_state() -> None:
    pyro.set_rng_seed(7)
    with pytest.raises(AuditError, match="does not thread"):
        SMC(forgets, 50, ess_threshold=1.0, audit=True).run("a")


@pytest.mark.parametrize("name", PRESETS)
def test_audit_is_zero_on_every_preset_that_is_a_model(name: str) -> None:
    """as_paper and its_hub stop with their last particle: their factors depend on the population, also in the replay."""
    pyro.set_rng_seed(8)
    model = reasoning(LM, PRM, name, stop=";", max_tokens=MAX_TOKENS, max_steps=MAX_STEPS, early_exit=False)
    posterior = SMC(model, 40, audit=True, **model.preset.smc).run("a")
    assert posterior.audit is not None and posterior.audit.error == 0.0


def test_unknown_presets_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown preset 'exakt'; did you mean 'exact'"):
        reasoning(LM, PRM, "exakt")
    with pytest.raises(ValueError, match="max_steps must be an integer of at least 1, got 0"):
        reasoning(LM, PRM, max_steps=0)


def test_enumeration_is_the_same_for_batched_contexts() -> None:
    single = LLMStep(LM.start("a"), stop=";", max_tokens=2).enumerate_support()
    batched: Tensor = LLMStep(LM.start(["a", "b"]), stop=";", max_tokens=2).enumerate_support()
    assert {tuple(v) for v in single.tolist()} == {tuple(v) for v in batched[:, 0].tolist()}
    assert len(single) == 2 + 2 * 4  # a stop or the end at once, or one of two tokens and then any


def test_proposing_at_another_temperature_keeps_the_target() -> None:
    """q: the same tables, hotter; weights p / q (z-test of the evidence, false alarm 1e-6)."""
    pyro.set_rng_seed(9)
    evidence, _ = exact()

    def hotter(site: Any) -> Any:
        return LLMStep(site["fn"].context, stop=";", max_tokens=MAX_TOKENS, temperature=2.0) if site["name"].startswith("step") else None

    z_hat = SMC(TabularPlate(2000), 8, max_plate_nesting=1, proposals=hotter).run("a").log_evidence.exp()
    assert abs(z_hat.mean() - evidence) < 4.9 * z_hat.std() / math.sqrt(len(z_hat))
    assert z_hat.std() / math.sqrt(len(z_hat)) < 0.03 * evidence


def test_our_enumeration_agrees() -> None:
    total, posterior = exact()
    result = Enumeration(solve).run("a")
    assert result.num_particles == len(posterior)
    assert float(result.log_evidence.exp()) == pytest.approx(total, rel=1e-5)
    assert tv(empirical(result), posterior) < 1e-5


def test_particle_gibbs_on_the_same_program() -> None:
    """300 iterations of 16 particles; references finish at different steps. The chain mixes fast: a tenth of them is a safe ESS."""
    pyro.set_rng_seed(10)
    _, posterior = exact()
    chain = ParticleGibbs(solve, 16, resampler="systematic").run(300, "a")
    by_first: dict[int, float] = defaultdict(float)
    for x, mass in posterior.items():
        by_first[x[0]] += mass
    found = dict(chain.marginal(lambda particle: key(particle)[0]).probs)
    assert tv(found, by_first) < tv_bound(by_first, 480, z=3.0)
    assert tv(found, dict(Enumeration(solve).run("b").marginal(lambda particle: key(particle)[0]).probs)) > tv_bound(by_first, 480, z=3.0)


@pytest.mark.parametrize(("likelihood", "prior"), [(0.0, 1.0), (0.3, 1.0), (2.0, 1.0), (1.0, 2.0), (0.5, 0.5)])
def test_tempered_targets(likelihood: float, prior: float) -> None:
    """Enumeration to rounding, SMC by Monte Carlo (false alarm 1e-6); beta = 0 gives the prior, whose evidence is 1."""
    pyro.set_rng_seed(11)
    tempered = TemperMessenger(likelihood, prior)(solve)
    expected = sum(p**prior * math.prod(1 / (1 + math.exp(-s)) for s in z) ** likelihood for _, _, p, z, _ in trajectories())
    assert float(Enumeration(tempered).run("a").log_evidence.exp()) == pytest.approx(expected, rel=1e-5)
    plate = TemperMessenger(likelihood, prior)(TabularPlate(500))
    z_hat = SMC(plate, 16, max_plate_nesting=1).run("a").log_evidence.exp()
    assert abs(z_hat.mean() - expected) <= 4.9 * z_hat.std() / math.sqrt(len(z_hat)) + 1e-6
    assert z_hat.std() / math.sqrt(len(z_hat)) < 0.05 * expected
