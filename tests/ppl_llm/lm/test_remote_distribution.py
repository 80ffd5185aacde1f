"""The distribution of steps from a server: exactly that of the local model, and wrong clients rejected."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm import SMC, Enumeration, OpenAILM, TabularLM, TabularReward, reasoning
from ppl_llm.lm.base import StepOptions
from ppl_llm.remote.completions import Choice
from tests.helpers.served_table import OPTIONS, SYMBOLS, local, remote, serve


class AllSeeds(OpenAILM):
    """Sequences ``[64, 2]`` have seeds 0 .. 63, once for each of two problems."""

    def _seeds(self, total: int) -> list[int]:
        return (torch.arange(total) // 2).tolist()


class OneSeed(AllSeeds):
    """Wrong: all sequences share a seed."""

    def _seeds(self, total: int) -> list[int]:
        return [7] * total


class Permuted(AllSeeds):
    """Wrong: replies go to other sequences."""

    def _write(self, *args: Any) -> list[Choice]:
        return super()._write(*args)[::-1]


class Shifted(AllSeeds):
    """Wrong: the last sequence's reply is lost and the first one's is used twice."""

    def _write(self, *args: Any) -> list[Choice]:
        choices = super()._write(*args)
        return [choices[0], *choices[:-1]]


def quarters(seed: int, position: int) -> float:
    """The middle of a cell: the digits of the seed in base 4 are the cells."""
    return (seed // 4**position % 4 + 0.5) / 4


def distribution_error(kind: type[OpenAILM]) -> float:
    """Largest error of the probability of a step, over all steps after each of two prompts; every seed is used once."""
    server = serve(uniforms=quarters)
    lm = remote(server, kind)
    steps = lm.sample_step(lm.start(["a", "b"]), torch.Size([64, 2]), OPTIONS).tokens
    error = 0.0
    for p, prompt in enumerate("ab"):
        context = local().start(prompt)
        support = local().enumerate_steps(context, OPTIONS)
        exact = local().step_log_prob(context, support, OPTIONS).exp()
        found = Counter(map(tuple, steps[:, p].tolist()))
        assert sum(found.values()) == 64
        shares = torch.tensor([found[tuple(step)] / 64 for step in support.tolist()])
        error = max(error, float((shares - exact).abs().max()), abs(float(shares.sum()) - 1))
    return error


def test_the_distribution_of_a_remote_step_is_exactly_the_local_one() -> None:
    assert distribution_error(AllSeeds) < 1e-6


@pytest.mark.parametrize("wrong", [OneSeed, Permuted, Shifted])
def test_wrong_sequences_are_rejected_by_the_exact_distribution(wrong: type[OpenAILM]) -> None:
    assert distribution_error(wrong) > 1 / 64 - 1e-6, "one sequence in 64 is out of place at least"


class SeedPerRequest(OpenAILM):
    """Wrong: all sequences in one request with a seed, which servers apply to each of its prompts."""

    def _write(self, prompts: Any, room: Any, seeds: Any, *rest: Any) -> list[Choice]:
        self.seeded, self.extra_body = False, {"seed": seeds[0]}
        return super()._write(prompts, room, seeds, *rest)


def chi_square(lm: OpenAILM, num_sequences: int = 600) -> tuple[float, int]:
    """Statistic and degrees of freedom of sampled steps against the exact distribution, rare steps pooled."""
    context = local().start("b")
    support = local().enumerate_steps(context, OPTIONS)
    expected = num_sequences * local().step_log_prob(context, support, OPTIONS).exp()
    found = Counter(map(tuple, lm.sample_step(lm.start("b"), torch.Size([num_sequences]), OPTIONS).tokens.tolist()))
    observed = torch.tensor([float(found[tuple(step)]) for step in support.tolist()])
    assert observed.sum() == num_sequences
    common = expected >= 10
    observed = torch.cat([observed[common], observed[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    return float(((observed - expected) ** 2 / expected).sum()), len(observed) - 1


def tail(statistic: float, dof: int) -> float:
    """P(chi-square with ``dof`` degrees of freedom exceeds the statistic)."""
    return float(torch.special.gammaincc(torch.tensor(dof / 2.0, dtype=torch.float64), torch.tensor(statistic / 2, dtype=torch.float64)))


@pytest.mark.parametrize("seeded", [True, False])
def test_sampled_steps_pass_a_chi_square_test(seeded: bool) -> None:
    """False alarms at a rate of 1e-4 over choices of the seed, which is fixed."""
    pyro.set_rng_seed(11)
    server = serve()
    statistic, dof = chi_square(remote(server, seeded=seeded))
    assert tail(statistic, dof) > 1e-4
    assert len(server.calls) == (600 if seeded else 3), "a request for each sequence, or 256 sequences to a request"


@pytest.mark.parametrize("wrong", [OneSeed, SeedPerRequest])
def test_sequences_that_share_a_seed_fail_the_chi_square_test(wrong: type[OpenAILM]) -> None:
    pyro.set_rng_seed(11)
    assert tail(*chi_square(remote(serve(), wrong), 300)) < 1e-20


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.6}, {"temperature": 2.0, "top_k": 3, "top_p": 0.8}])
def test_warping_options_reach_the_server(options: dict[str, Any]) -> None:
    """Log-probabilities are those of the local model's warped distribution."""
    pyro.set_rng_seed(0)
    logits = torch.randn(4, 4)
    own = TabularLM(logits, SYMBOLS, eos="$")
    warped = StepOptions(";", 3, **options)
    lm = remote(serve(lambda ids: logits[ids[-1]], processed=True), log_probs="processed")
    sample = lm.sample_step(lm.start("a"), torch.Size([40]), warped)
    assert sample.log_probs is not None
    assert torch.allclose(sample.log_probs, own.step_log_prob(own.start("a"), sample.tokens, warped), atol=1e-5)
    raw = remote(serve())
    assert raw.sample_step(raw.start("a"), torch.Size([2]), warped).log_probs is None, "raw log-probabilities are not those of the draw"


def test_every_sampling_default_of_the_server_is_overridden() -> None:
    server = serve()
    lm = remote(server)
    lm.sample_step(lm.start("a"), torch.Size([1]), OPTIONS)
    neutral = {"top_k": -1, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
    neutral |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert {name: server.calls[0][name] for name in neutral} == neutral


def test_the_seed_reproduces_and_sequences_that_are_done_do_not_shift_it() -> None:
    def draw(finished: int | None = None) -> Tensor:
        lm = remote(serve())
        context = lm.start(["a", "b", "a", "b"])
        if finished is not None:
            context = context.extend(torch.tensor([[2, -1, -1] if i != finished else [3, -1, -1] for i in range(4)]), stop=";")
        pyro.set_rng_seed(5)
        return lm.sample_step(context, torch.Size([4]), OPTIONS).tokens

    assert torch.equal(draw(), draw())
    one, other = draw(finished=1), draw(finished=2)
    assert (one[1] == -1).all() and (other[2] == -1).all()
    assert torch.equal(one[[0, 3]], other[[0, 3]])


def test_smc_on_a_server_has_the_posterior_of_the_table() -> None:
    """Evidence within four standard errors (false alarms: 6e-5), the seed is fixed; without the rewards it would be 1."""
    reward = TabularReward(torch.tensor([0.5, -1.0, 0.3, 0.0]))
    lm = remote(serve())

    def model(of: Any) -> Any:
        return reasoning(of, reward, max_steps=3, stop=";", max_tokens=2)

    exact = float(Enumeration(model(local())).run("a").log_evidence)
    pyro.set_rng_seed(3)
    estimates = torch.stack([SMC(model(lm), 32).run("a").log_evidence.exp() for _ in range(12)])
    standard_error = float(estimates.std() / len(estimates) ** 0.5)
    assert abs(float(estimates.mean()) - torch.tensor(exact).exp()) < 4 * standard_error < 0.1
