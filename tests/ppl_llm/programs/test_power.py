"""reasoning(power=...): the enumerated target, filters with and without moves, and what moves cost a language model."""

from __future__ import annotations

import pyro
import pytest
import torch

from ppl_llm import SMC, Enumeration, StepProposal, SuffixMH, TabularLM, TabularReward, TransformersLM, reasoning
from ppl_llm.demo import example
from ppl_llm.methods import Call, get_method, parse_method
from ppl_llm.programs.models import ReasoningModel

TABLE = torch.tensor([[2.0, 1, 1, 0], [1, 1, 1, 1], [1, 2, 0, 1], [1, 0, 0, 0]])
LM = TabularLM((TABLE / TABLE.sum(-1, keepdim=True)).log(), ["a", "b", ";", "$"], eos="$")
REWARD = TabularReward(torch.tensor([0.5, -0.5, 0.0, 1.0]))


def model(power: float, reward: bool = False, bridge: int | None = None, top_k: int | None = None) -> ReasoningModel:
    prm = REWARD if reward else None
    return reasoning(LM, prm, max_steps=2, stop=";", max_tokens=2, power=power, bridge=bridge, early_exit=False, top_k=top_k)


def texts(plain: ReasoningModel) -> dict[tuple[int, ...], float]:
    """Each solution's probability, from the enumeration of the plain model."""
    posterior = Enumeration(plain).run("a")
    steps = torch.cat([posterior.sites[f"step_{t}"] for t in range(2)], -1)
    masses = posterior.weights * posterior.log_evidence.exp()
    return {tuple(path.tolist()): float(mass) for path, mass in zip(steps, masses, strict=True)}


@pytest.mark.parametrize("reward", [False, True])
@pytest.mark.parametrize("alpha", [0.5, 2.0, 4.0])
def test_the_target_is_a_power_of_the_language_model(alpha: float, reward: bool) -> None:
    """``p(x)^alpha`` times the reward's factors, which enumeration gives by themselves."""
    plain, scored = texts(model(1.0)), texts(model(1.0, reward))
    wanted = {path: p**alpha * scored[path] / p for path, p in plain.items() if p > 0}
    found = {path: mass for path, mass in texts(model(alpha, reward)).items() if mass > 0}
    assert found.keys() == wanted.keys()
    assert all(found[path] == pytest.approx(mass, rel=1e-4) for path, mass in wanted.items())


@pytest.mark.parametrize("moves", [0, 1])
@pytest.mark.parametrize("bridge", [None, 2])
def test_filters_with_cool_proposals(bridge: int | None, moves: int) -> None:
    """Evidence of 2,000 filters in one batch, |z| < 4.5; a false alarm with probability 7e-6 each."""
    powered = model(4.0, True, bridge)
    exact = float(Enumeration(powered).run("a").log_evidence.exp())
    pyro.set_rng_seed(0)
    own = {"rejuvenate": SuffixMH, "moves": moves} if moves else {}
    smc = SMC(powered, 3, ess_threshold=0.8, max_plate_nesting=1, proposals=StepProposal(temperature=0.25), **own)  # type: ignore[arg-type]
    ratio = smc.run(["a"] * 2000).log_evidence.exp() / exact
    assert abs(float((ratio.mean() - 1) / (ratio.std() / 2000**0.5))) < 4.5


def test_a_truncated_model_proposes_its_own_steps() -> None:
    """A cooler model may find probable what the truncation has cut off; and the target is the power of the truncated model."""
    powered = model(4.0, top_k=2)
    exact = float(Enumeration(powered).run("a").log_evidence.exp())
    method = parse_method("power-smc").method
    pyro.set_rng_seed(0)
    ratio = method.start(powered, {"particles": 4}, Call(max_plate_nesting=1))(["a"] * 2000).log_evidence.exp() / exact
    assert abs(float((ratio.mean() - 1) / (ratio.std() / 2000**0.5))) < 4.5


def test_moves_find_their_prefixes_in_the_cache() -> None:
    """What moves keep of a solution is not read again: the tokens run besides the sampled ones are few."""
    lm = TransformersLM.from_pretrained("demo")
    pyro.set_rng_seed(0)
    cost = SMC(reasoning(lm, max_steps=6, max_tokens=32), 6, rejuvenate=SuffixMH).run(example(2).text).cost
    plain = SMC(reasoning(lm, max_steps=6, max_tokens=32), 6).run(example(2).text).cost
    assert cost["tokens_sampled"] > 1.3 * plain["tokens_sampled"]
    assert cost["tokens_prefilled"] < 200 and cost["tokens_prefilled"] < 0.3 * cost["tokens_sampled"]


def test_methods_set_and_keep_powers() -> None:
    plain = reasoning(LM, None)
    given = reasoning(LM, None, power=2.0, bridge=3)
    for name in ("power-smc", "power-mh"):
        assert parse_method(name).adapted(plain).power == 4.0 and parse_method(name).adapted(given).power == 2.0
        assert parse_method(f"{name}:power=3:bridge=2").adapted(plain).bridge == 2
    assert parse_method("smc:preset=twisted").adapted(given).power == 2.0 and parse_method("smc").adapted(plain).power == 1.0
    assert get_method("power-smc:moves=1").sized(18)["particles"] == 8 and get_method("power-mh").least == 3
