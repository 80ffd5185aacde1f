"""Values on the way and a verifier at the end: the target is p tau whatever the values are."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm import SMC, Enumeration, FunctionReward, OpenAILM, ParticleGibbs, PrefixValue, RolloutValue, Twist, reasoning
from ppl_llm.evaluation import Results, fit_twist
from ppl_llm.inference.cost import CostMeter
from ppl_llm.lm import StepOptions
from ppl_llm.reward import rollout_value
from ppl_llm.reward.keyed_uniforms import keyed_uniforms, keys_of
from tests.helpers.exact import enumerate_sweep, estimator_error
from tests.helpers.twist_mutants import FreshRollouts, NeverConcluded, OneRolloutForAll, WithoutVerifier, ZeroValues
from tests.helpers.twisted import LM, MAX_STEPS, OPTIONS, VERIFIER, Optimal, Prefixes, Token, Twisted, prefixes, tau, value

EXACT = 1e-10


def given(spread: float, seed: int) -> Prefixes:
    generator = torch.Generator().manual_seed(seed)
    return Prefixes({text: spread * float(torch.randn((), generator=generator)) for text in prefixes()})


def known() -> Prefixes:
    """V* itself."""
    return Prefixes({text: math.log(value(text) / (1 - value(text))) for text in prefixes()})


def error(reward: Any, scheme: str = "systematic", ess_threshold: float = 0.9) -> float:
    model = Twisted(reward)
    return estimator_error(model, *enumerate_sweep(model, 2, scheme, ess_threshold))  # type: ignore[arg-type]


def rolled(rollouts: int, seed: int = 0, kind: type[RolloutValue] = RolloutValue) -> RolloutValue:
    return kind(LM, VERIFIER, rollouts, options=OPTIONS, max_steps=MAX_STEPS, seed=seed)


@pytest.mark.parametrize(
    ("scheme", "spread", "ess_threshold"), [("systematic", 1.0, 0.5), ("stratified", 4.0, 0.9), ("systematic", 4.0, 1.0)]
)
def test_the_target_is_the_verifiers_whatever_the_values(scheme: str, spread: float, ess_threshold: float) -> None:
    assert error(Twist(given(spread, 0), VERIFIER), scheme, ess_threshold) < EXACT


class LeastValue(Twist):
    """A mutant: aggregated as a reward of single steps, a solution counts as its least value."""

    of_prefixes = telescopes = False


def evidence(reward: Any, **options: Any) -> float:
    """As a user has it: the preset, through the ready model."""
    model = reasoning(LM, reward, preset="twisted", stop=";", max_tokens=1, max_steps=MAX_STEPS, **options)
    return float(Enumeration(model).run("a").log_evidence.exp())


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
@pytest.mark.parametrize("reward", [Twist(given(1.0, 0), VERIFIER), Twist(given(4.0, 1), VERIFIER), rolled(1)])
def test_the_preset_has_the_verifiers_target(reward: Twist, potential: str) -> None:
    exact = sum(Twisted(VERIFIER).paths().values())
    assert evidence(reward, potential=potential) == pytest.approx(exact, rel=1e-6)  # scores are float32
    assert evidence(LeastValue(given(1.0, 0), VERIFIER), potential=potential) < 0.9 * exact


@pytest.mark.parametrize("options", [{"aggregation": "min"}, {"preset": "exact"}, {"preset": "as_paper"}])
def test_other_targets_are_refused_by_name(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="scores of Twist that do not multiply to the verifier's: take potential='difference'"):
        reasoning(LM, Twist(given(1.0, 0), VERIFIER), **{"preset": "twisted", **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [WithoutVerifier, ZeroValues, NeverConcluded])
def test_rejects_twists_that_are_not_unbiased(wrong: type[Twist]) -> None:
    assert error(wrong(given(1.0, 0), VERIFIER)) > 0.01


@pytest.mark.parametrize("rollouts", [1, 3])
def test_the_target_is_the_verifiers_for_any_rollouts(rollouts: int) -> None:
    """A seed is an outcome of all rollouts of all prefixes."""
    for seed in range(2):
        assert error(rolled(rollouts, seed)) < EXACT


def test_all_randomness_of_rollouts_and_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every outcome of a rollout of each of the prefixes of one step: the mean of the counts is V*, the evidence is right in each."""
    probs = LM.logits.softmax(-1)
    cells = {1: probs[1].cumsum(-1), 2: probs[2].cumsum(-1)}
    total = torch.zeros(2, dtype=torch.float64)
    model = Twisted(None, length=2)  # type: ignore[arg-type]
    evidence = 0.0
    for outcome in itertools.product(range(3), repeat=2):  # of the token after "a" and after "b"

        def scripted(keys: Tensor, copies: int, size: int, counter: int, outcome: tuple[int, ...] = outcome) -> Tensor:
            places = [float(cells[last][outcome[last - 1]] - probs[last, outcome[last - 1]] / 2) for last in keys.tolist()]
            return torch.tensor(places, dtype=torch.float64)[None, :, None].expand(copies, -1, size)

        monkeypatch.setattr(rollout_value, "keyed_uniforms", scripted)
        monkeypatch.setattr(rollout_value, "keys_of", lambda tokens, seed: tokens.gather(-1, (tokens >= 0).sum(-1, keepdim=True) - 1)[:, 0])
        reward = RolloutValue(LM, VERIFIER, 1, options=OPTIONS, max_steps=2)
        mass = float(probs[1, outcome[0]] * probs[2, outcome[1]])
        prefix = LM.start("a").expand((2,)).extend(torch.tensor([[1], [2]]), stop=())
        total += mass * reward.sums(prefix).double()
        model.reward = reward
        chances, posterior = enumerate_sweep(model, 2, "systematic", 0.9)  # type: ignore[arg-type]
        assert estimator_error(model, chances, posterior) < EXACT  # type: ignore[arg-type]
        evidence += mass * float((chances * posterior.log_evidence.exp()).sum())
    assert total.tolist() == pytest.approx([float(probs[1, 0] * tau("a")), float(probs[2, 0] * tau("b"))], abs=1e-7)
    assert evidence == pytest.approx(sum(model.paths().values()), abs=EXACT)


def test_with_the_best_proposal_and_the_true_values_nothing_varies() -> None:
    model, exact = Twisted(Twist(known(), VERIFIER)), math.log(sum(Twisted(VERIFIER).paths().values()))
    pyro.set_rng_seed(0)

    def best(site: Any) -> Optimal | None:
        return Optimal(site["fn"]) if isinstance(site["fn"], Token) else None

    for ess_threshold in (0.5, 1.0):
        found = SMC(model, 2, ess_threshold=ess_threshold, proposals=best, max_plate_nesting=1).run(100).log_evidence
        assert float((found - exact).abs().max()) < 1e-12
        plain = SMC(model, 2, ess_threshold=ess_threshold, max_plate_nesting=1).run(100).log_evidence
        assert float(plain.exp().std()) > 0.05  # with the values alone it varies


def trajectories() -> Any:
    """Two solutions step by step, what backends keep of the first steps lost."""
    context = LM.start("a").expand((2,))
    for step in ([1, 2], [2, 1], [0, 0]):
        context = context.extend(torch.tensor(step)[:, None], stop=())
    return context


def test_a_prefix_has_one_value() -> None:
    """However it is scored: step by step, at once, in another order or process, and twice in a batch."""
    reward, whole = rolled(3), rolled(3).step_log_odds(trajectories())
    context = LM.start("a").expand((2,))
    before = torch.get_rng_state()
    for step in ([1, 2], [2, 1], [0, 0]):
        context = context.extend(torch.tensor(step)[:, None], stop=())
        reward.step_log_odds(context)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(reward.step_log_odds(context), whole)
    swapped = trajectories().reorder(torch.tensor([1, 0]))
    assert torch.equal(rolled(3).step_log_odds(swapped), whole[[1, 0]])
    assert not torch.equal(rolled(3, seed=1).step_log_odds(trajectories()), whole)
    assert whole[:, -1].tolist() == pytest.approx([math.log(tau(t) / (1 - tau(t))) if tau(t) < 1 else math.inf for t in ("ab", "ba")])


@pytest.mark.parametrize("wrong", [FreshRollouts])
def test_rejects_values_that_change(wrong: type[RolloutValue]) -> None:
    reward = rolled(3, kind=wrong)
    assert not all(torch.equal(reward.step_log_odds(trajectories()), reward.step_log_odds(trajectories())) for _ in range(3))


def agreement(kind: type[RolloutValue]) -> float:
    """Largest distance of values from V*, with 2,000 rollouts."""
    reward = rolled(2000, kind=kind)
    context = LM.start("a").expand((4,)).extend(torch.tensor([[1], [2], [1], [2]]), stop=())
    context = context.extend(torch.tensor([[1], [1], [2], [2]]), stop=())
    found = reward.value.step_log_odds(context).sigmoid()
    exact = torch.tensor([[value(t[:1]), value(t)] for t in ("aa", "ba", "ab", "bb")])
    return float((found - exact).abs().max())


def test_rollouts_estimate_the_value() -> None:
    """Within 5 standard errors of at most 0.5 / sqrt(2000), for 6 prefixes: a false alarm in 3e5 seeds, and the seed is fixed."""
    assert agreement(RolloutValue) < 5 * 0.5 / math.sqrt(2000)


@pytest.mark.parametrize("wrong", [OneRolloutForAll])
def test_rejects_wrong_rollouts(wrong: type[RolloutValue]) -> None:
    assert agreement(wrong) > 5 * 0.5 / math.sqrt(2000)


def test_equal_prefixes_are_rolled_out_once() -> None:
    context = LM.start("a").expand((6,)).extend(torch.tensor([[1], [1], [2], [1], [2], [0]]), stop=())
    with CostMeter() as cost:
        rolled(4).step_log_odds(context)
    assert 2 * 4 <= cost.totals["tokens_sampled"] <= 2 * 4 * 2  # at most two steps are left; for all five it would be 20 at least


def test_chains_and_the_audit_run_on_rollouts() -> None:
    model = Twisted(rolled(2))
    pyro.set_rng_seed(0)
    assert -6 < float(SMC(model.walk, 64, audit=True).run().log_evidence) < 0
    chain = ParticleGibbs(model.walk, 16, ancestor_sampling=True).run(4)
    assert float(chain.weights.sum()) == pytest.approx(1.0)


def test_uniforms_are_uniform_and_follow_from_tokens() -> None:
    tokens = torch.randint(0, 50, (400, 12), generator=torch.Generator().manual_seed(0))
    keys = keys_of(tokens, 0)
    u = keyed_uniforms(keys, 4, 16, 3)
    assert u.shape == (4, 400, 16) and u.dtype == torch.float64 and float(u.min()) >= 0 and float(u.max()) < 1
    counts = torch.histc(u.float(), 32, 0, 1)
    expected = u.numel() / 32
    assert float(((counts - expected) ** 2 / expected).sum()) < 31 + 5 * math.sqrt(62)  # chi squared, five standard deviations
    pairs = torch.corrcoef(torch.stack([u.flatten()[:-1], u.flatten()[1:]]))[0, 1]
    assert abs(float(pairs)) < 5 / math.sqrt(u.numel())
    assert torch.equal(keys, keys_of(torch.nn.functional.pad(tokens, (0, 3), value=-1), 0))  # padding does not matter
    assert len(set(keys.tolist())) == 400 and not torch.equal(keys, keys_of(tokens, 1))
    assert not torch.equal(keys, keys_of(tokens.flip(-1), 0)) and not torch.equal(u, keyed_uniforms(keys, 4, 16, 4))


def test_what_is_refused() -> None:
    for arguments, message in (
        ({"rollouts": 0}, "rollouts must be an integer of at least 1, got 0"),
        ({"prior": 0.0}, "prior must be positive, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            RolloutValue(LM, VERIFIER, **arguments)  # type: ignore[arg-type]
    served = OpenAILM.__new__(OpenAILM)
    served.vocab_size, served.max_length, served.eos_ids = 3, 9, torch.tensor([0])
    with pytest.raises(ValueError, match=r"RolloutValue needs a local language model.*OpenAILM is none"):
        RolloutValue(served, VERIFIER)
    with pytest.raises(ValueError, match="lm must be a language model"):
        RolloutValue(object(), VERIFIER)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"value must be a reward model.*got 3"):
        Twist(3, VERIFIER)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"verifier must be a reward model.*or a function.*got 3"):
        Twist(known(), 3)  # type: ignore[arg-type]
    assert isinstance(Twist(known(), lambda problem, text: True).verifier, FunctionReward)
    random = FunctionReward(lambda problem, text: 0.5)
    random.estimated = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="the scores of Twist are estimates"):
        reasoning(LM, Twist(known(), random), preset="twisted", score_temperature=2.0)
    assert not Twist(random, VERIFIER).estimated
    assert RolloutValue(LM, VERIFIER, options=StepOptions(max_tokens=2)).options.max_tokens == 2


# fit_twist: a logistic regression


def records(weights: list[float], problems: int = 60, samples: int = 16) -> Results:
    """Solutions whose being right follows from their scores by a logistic regression."""
    rng = torch.Generator().manual_seed(0)
    rows = []
    for p in range(problems):
        pool = []
        for _ in range(samples):
            z = (2 * torch.randn(1, generator=rng)).tolist()
            odds = weights[0] * z[0] + weights[3]
            right = float(torch.rand((), generator=rng)) < 1 / (1 + math.exp(-odds))
            fields = {"weight": 1 / samples, "log_odds": z, "tokens": 3, "finished": True, "path": None}
            pool.append({"answer": "1" if right else "0", **fields})
        cell = {"problem": str(p), "method": "importance", "budget": samples, "seed": 0, "correct": True, "gold": "1", "level": None}
        rows.append({**cell, "answer": "1", "answers": {}, "cost": {}, "candidates": pool})
    return Results(rows)


def test_the_regression_finds_what_made_the_data() -> None:
    """960 observations; standard errors of the log-odds at z = -2, 0, 2 are at most 0.2."""
    value = fit_twist(records([0.8, 0.0, 0.0, -0.5]), Prefixes({"a": -2.0, "b": 2.0, "aa": 0.0}))
    context = LM.start("a").expand((2,)).extend(torch.tensor([[1], [2]]), stop=())
    assert value.step_log_odds(context)[:, 0].tolist() == pytest.approx([-2.1, 1.1], abs=0.8)
    assert error(Twist(PrefixValue(given(1.0, 3), value.weights), VERIFIER)) < EXACT


def test_the_regression_is_the_maximum() -> None:
    z = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.3, math.nan], [-2.0, math.nan], [0.1, -1.0], [1.5, 0.2]], dtype=torch.float64)
    right = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    best = PrefixValue.fit(VERIFIER, z, ~z.isnan(), right).weights
    from ppl_llm.reward.prefix_value import features

    real = ~z.isnan()
    x, y = features(z.nan_to_num(), real)[real], right[:, None].expand_as(real)[real].double()
    scale = x[:, :3].std(0)

    def loss(w: Tensor) -> float:
        odds = x @ w
        return float(torch.nn.functional.softplus(odds).sub(y * odds).sum() + 0.05 * (w[:3] * scale).square().sum())

    for direction in torch.eye(4, dtype=torch.float64):
        assert all(loss(best + step * direction) > loss(best) for step in (-0.01, 0.01))


def test_what_cannot_be_fitted() -> None:
    results = records([0.0, 0.0, 0.0, 100.0], problems=2)
    with pytest.raises(ValueError, match="all 32 solutions are right; a twist is fitted to both kinds"):
        fit_twist(results, VERIFIER)
    for cells in results.by_key.values():
        for record in cells.values():
            record["candidates"] = [{**c, "log_odds": []} for c in record["candidates"]]
    with pytest.raises(ValueError, match="no independent samples with scores"):
        fit_twist(Results(r for cells in results.by_key.values() for r in cells.values()), VERIFIER)
    nan = torch.full((2, 1), math.nan)
    with pytest.raises(ValueError, match="hold nan"):
        PrefixValue.fit(VERIFIER, nan, torch.ones(2, 1, dtype=torch.bool), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="takes 4 finite weights"):
        PrefixValue(VERIFIER, torch.ones(3))
