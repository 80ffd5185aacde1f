"""Language models on a server: the law of remote steps, their ends, scores and failures, against a server in the process."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm import SMC, Context, Enumeration, LLMStep, OpenAILM, StopReason, TabularLM, TabularReward, reasoning
from ppl_llm.inference import CostMeter
from ppl_llm.lm.protocol import StepOptions
from ppl_llm.remote.completions import Choice
from ppl_llm.remote.errors import ServerError
from tests.ppl_llm.fake_server import URL, FakeServer, Fault, byte_tokenizer

SYMBOLS = ["a", "b", ";", "$"]
TABLE = torch.tensor([[2.0, 1, 1, 0], [1, 1, 1, 1], [1, 2, 0, 1], [1, 0, 0, 0]]).log()
"""Probabilities in quarters, so that the four cells of a uniform give them exactly. Two tokens at most end a step in most cases."""
OPTIONS = StepOptions(stop=";", max_tokens=3)


def table(ids: list[int]) -> Tensor:
    return TABLE[ids[-1]]


def local() -> TabularLM:
    return TabularLM(TABLE, SYMBOLS, eos="$")


def serve(next_logits: Any = table, **options: Any) -> FakeServer:
    return FakeServer(next_logits, byte_tokenizer(SYMBOLS, "$"), **options)


def remote(server: FakeServer, kind: type[OpenAILM] = OpenAILM, **options: Any) -> OpenAILM:
    return kind(URL, tokenizer=server.tokenizer, transport=server.transport(), **{"backoff": 0.0, **options})


# The law ------------------------------------------------------------------------------------------------------------------------------


class AllSeeds(OpenAILM):
    """Lanes ``[64, 2]`` have seeds 0 .. 63, once for each of two problems."""

    def _lane_seeds(self, total: int) -> list[int]:
        return (torch.arange(total) // 2).tolist()


class OneSeed(AllSeeds):
    """Wrong: all lanes share a seed."""

    def _lane_seeds(self, total: int) -> list[int]:
        return [7] * total


class Permuted(AllSeeds):
    """Wrong: replies go to other lanes."""

    def _write(self, *args: Any) -> list[Choice]:
        return super()._write(*args)[::-1]


class Shifted(AllSeeds):
    """Wrong: the last lane's reply is lost and the first one's is used twice."""

    def _write(self, *args: Any) -> list[Choice]:
        choices = super()._write(*args)
        return [choices[0], *choices[:-1]]


def quarters(seed: int, position: int) -> float:
    """The middle of a cell: the digits of the seed in base 4 are the cells."""
    return (seed // 4**position % 4 + 0.5) / 4


def law_error(kind: type[OpenAILM]) -> float:
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


def test_the_law_of_a_remote_step_is_exactly_the_local_one() -> None:
    assert law_error(AllSeeds) < 1e-6


@pytest.mark.parametrize("wrong", [OneSeed, Permuted, Shifted])
def test_wrong_lanes_are_rejected_by_the_exact_law(wrong: type[OpenAILM]) -> None:
    assert law_error(wrong) > 1 / 64 - 1e-6, "one lane in 64 is out of place at least"


class SeedPerRequest(OpenAILM):
    """Wrong: all lanes in one request with a seed, which servers apply to each of its prompts."""

    def _write(self, prompts: Any, room: Any, seeds: Any, options: Any) -> list[Choice]:
        self.seeded, self.extra_body = False, {"seed": seeds[0]}
        return super()._write(prompts, room, seeds, options)


def chi_square(lm: OpenAILM, num_lanes: int = 600) -> tuple[float, int]:
    """Statistic and degrees of freedom of sampled steps against the exact law, rare steps pooled."""
    context = local().start("b")
    support = local().enumerate_steps(context, OPTIONS)
    expected = num_lanes * local().step_log_prob(context, support, OPTIONS).exp()
    found = Counter(map(tuple, lm.sample_step(lm.start("b"), torch.Size([num_lanes]), OPTIONS).tokens.tolist()))
    observed = torch.tensor([float(found[tuple(step)]) for step in support.tolist()])
    assert observed.sum() == num_lanes
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
    assert len(server.calls) == (600 if seeded else 3), "a request for each lane, or 256 lanes to a request"


@pytest.mark.parametrize("wrong", [OneSeed, SeedPerRequest])
def test_lanes_that_share_a_seed_fail_the_chi_square_test(wrong: type[OpenAILM]) -> None:
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


def test_the_seed_reproduces_and_lanes_that_are_done_do_not_shift_it() -> None:
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


# Scores -------------------------------------------------------------------------------------------------------------------------------


def test_given_steps_are_scored_like_the_tables() -> None:
    lm, context = remote(serve()), local().start("a")
    support = local().enumerate_steps(context, OPTIONS)
    values = torch.cat([support, torch.tensor([[2, 0, -1], [0, -1, -1], [-1, -1, -1], [0, 3, 1], [9, 2, -1]])])
    with CostMeter() as meter:
        found = LLMStep(lm.start("a"), ";", 3).log_prob(values)
    assert torch.allclose(found, local().step_log_prob(context, values, OPTIONS), atol=1e-5)
    assert (found[-5:] == -torch.inf).all(), "not steps"
    assert meter.totals["lm_requests"] == 1
    finished = lm.start("a").extend(torch.tensor([[3, -1, -1]]), stop=";")
    empty = torch.full((1, 3), -1)
    assert lm.step_log_prob(finished, empty, OPTIONS).tolist() == [0.0]


def test_scores_that_a_server_cannot_give_are_errors() -> None:
    lm = remote(serve())
    step = torch.tensor([[2, -1, -1]])
    with pytest.raises(ValueError, match="at temperature 1, without top_p and top_k"):
        lm.step_log_prob(lm.start("a"), step, StepOptions(";", 3, temperature=0.7))
    lm = remote(serve(echo=False))
    with pytest.raises(ValueError, match="does not score prompts"):
        lm.step_log_prob(lm.start("a"), step, OPTIONS)
    with pytest.raises(ValueError, match="3 token places"):
        lm.step_log_prob(lm.start("a"), step[:, :2], OPTIONS)


# Ends of steps ------------------------------------------------------------------------------------------------------------------------


def reasons(lm: OpenAILM, options: StepOptions = OPTIONS, num_lanes: int = 60) -> Context:
    pyro.set_rng_seed(1)
    context = lm.start("a")
    return context.extend(lm.sample_step(context, torch.Size([num_lanes]), options).tokens, stop=options.stop)


def test_reasons_of_ends() -> None:
    found = reasons(remote(serve()))
    assert {int(reason) for reason in found.reasons[:, 0]} == {StopReason.DELIMITER, StopReason.END_OF_TEXT, StopReason.LENGTH}


def test_a_server_that_runs_past_the_delimiter_does_not_change_the_step() -> None:
    class Deaf(FakeServer):
        def _completions(self, body: dict[str, Any]) -> dict[str, Any]:
            return super()._completions({**body, "stop": []})

    deaf = Deaf(table, byte_tokenizer(SYMBOLS, "$"))
    assert torch.equal(reasons(remote(deaf)).tokens, reasons(remote(serve())).tokens)


def test_a_special_token_as_delimiter_is_sent_as_an_id() -> None:
    server = serve()
    server.tokenizer.add_special_tokens({"additional_special_tokens": ["b"]})
    lm = remote(server)
    found = reasons(lm, StepOptions(stop=("b", ";"), max_tokens=4))
    assert server.calls[0]["stop"] == [";"] and server.calls[0]["stop_token_ids"] == [1, 3]
    assert {int(reason) for reason in found.reasons[:, 0]} == {StopReason.DELIMITER, StopReason.LENGTH}
    assert {row[1:][row[1:] >= 0][-1].item() for row in found.tokens} == {0, 1, 2}, (
        "steps end at a special or a plain delimiter or at length"
    )


def test_steps_without_a_delimiter_have_a_fixed_length() -> None:
    found = reasons(remote(serve(lambda ids: torch.tensor([1.0, 1, 1, -torch.inf]))), StepOptions(stop=(), max_tokens=5))
    assert found.lengths.tolist() == [6] * 60 and set(found.reasons[:, 0].tolist()) == {int(StopReason.LENGTH)}


def test_the_context_of_the_server_limits_the_last_step() -> None:
    server = serve(lambda ids: torch.tensor([0.0, 0.0, -torch.inf, -torch.inf]), max_model_len=6)
    lm = remote(server)
    context = lm.start("aaaa")
    context = context.extend(lm.sample_step(context, torch.Size([2]), OPTIONS).tokens, stop=";")
    assert context.lengths.tolist() == [6, 6] and context.reasons[:, 0].tolist() == [StopReason.CONTEXT_FULL] * 2
    with pytest.raises(ValueError, match="no room in the model's context of 6 tokens"):
        lm.start("aaaaaa")


def test_an_unknown_end_of_text_is_an_error_with_a_remedy() -> None:
    server = serve()
    lm = remote(server)
    lm.eos_ids = torch.tensor([0])  # the server still ends at $
    with pytest.raises(ValueError, match=r"neither a delimiter nor the end of the text.*eos_ids="):
        reasons(lm)


# Text ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server_options", [{}, {"strips_stop": True}, {"tells_stop": False}])
def test_text_mode_gives_the_same_steps(server_options: dict[str, Any]) -> None:
    ids = reasons(remote(serve()))
    lm = remote(serve(token_ids=False, **server_options), mode="text", server_stop=server_options != {"tells_stop": False})
    assert torch.equal(reasons(lm).tokens, ids.tokens)
    assert lm.sample_step(lm.start("a"), torch.Size([2]), OPTIONS).log_probs is None
    with pytest.raises(ValueError, match="mode token_ids"):
        lm.step_log_prob(lm.start("a"), torch.tensor([[2, -1, -1]]), OPTIONS)


def test_text_mode_does_not_guess_how_a_step_ended() -> None:
    with pytest.raises(ValueError, match=r"cannot be told from the end of the text; pass server_stop=False"):
        reasons(remote(serve(token_ids=False, tells_stop=False, strips_stop=True), mode="text"))


def test_a_server_without_token_ids_is_told_apart() -> None:
    class Plain(FakeServer):
        def _completions(self, body: dict[str, Any]) -> dict[str, Any]:
            return super()._completions({**body, "return_token_ids": False})

    with pytest.raises(ValueError, match=r"does not return token ids.*mode='text'"):
        reasons(remote(Plain(table, byte_tokenizer(SYMBOLS, "$"))))


# Failures -----------------------------------------------------------------------------------------------------------------------------


def test_two_hundred_steps_with_a_fifth_of_the_calls_failing() -> None:
    """No lane is lost or doubled: every lane has a prompt of its own, and the tokens are those of a server without faults."""
    endless = torch.tensor([[2.0, 1, 1, 0], [1, 1, 2, 0], [1, 2, 1, 0], [1, 1, 1, 0]]).log()
    prompts = ["aa", "ab", "ba", "bb"]
    kinds = [Fault("status", 429), Fault("status", 500), Fault("status", 503), Fault("status", 408)]
    kinds += [Fault("truncated"), Fault("dropped"), Fault("choices")]
    dice = random.Random(8)
    injected: list[Fault] = []

    def faults(call: int) -> Fault | None:
        if dice.random() >= 0.2:
            return None
        injected.append(dice.choice(kinds))
        return injected[-1]

    def run(server: FakeServer) -> tuple[Context, Counter[str]]:
        lm = remote(server, max_attempts=20)
        pyro.set_rng_seed(21)
        context = lm.start(prompts)
        with CostMeter() as meter:
            for _ in range(200):
                context = context.extend(lm.sample_step(context, torch.Size([4]), StepOptions(";", 2)).tokens, stop=";")
        return context, meter.totals

    calm, calm_cost = run(serve(lambda ids: endless[ids[-1]], max_model_len=2048))
    stormy, stormy_cost = run(serve(lambda ids: endless[ids[-1]], max_model_len=2048, faults=faults))
    assert torch.equal(calm.tokens, stormy.tokens) and torch.equal(calm.ends, stormy.ends)
    assert [text[:2] for text in map(lambda row: "".join(SYMBOLS[i] for i in row[:2]), stormy.tokens.tolist())] == prompts
    assert {fault.kind for fault in injected} == {"status", "truncated", "dropped", "choices"} and len(injected) > 150
    assert stormy_cost["lm_requests_repeated"] == len(injected) and calm_cost["lm_requests_repeated"] == 0
    assert stormy_cost["tokens_sampled"] == calm_cost["tokens_sampled"]


def test_smc_with_failing_calls_gives_the_same_posterior() -> None:
    dice = random.Random(0)

    def run(faults: Any) -> Any:
        lm = remote(serve(faults=faults), max_attempts=20)
        pyro.set_rng_seed(2)
        return SMC(reasoning(lm, TabularReward(torch.tensor([0.5, -1.0, 0.3, 0.0])), max_steps=4, stop=";", max_tokens=3), 16).run("a")

    calm, stormy = run(lambda call: None), run(lambda call: Fault("status", 503) if dice.random() < 0.2 else None)
    assert torch.equal(calm.log_weights, stormy.log_weights) and torch.equal(calm.value.tokens, stormy.value.tokens)


def test_another_model_under_way_is_an_error() -> None:
    lm = remote(serve(faults=lambda call: Fault("model") if call == 3 else None))
    with pytest.raises(ServerError, match="changed under way, from 'fake' to 'another'"):
        lm.sample_step(lm.start("a"), torch.Size([5]), OPTIONS)


def test_a_kept_run_knows_the_model_and_not_the_connection() -> None:
    """Contexts go through a file with their model; a program is told from that of another model."""
    lm = remote(serve())
    context = lm.start("a")
    context = context.extend(lm.sample_step(context, torch.Size([3]), OPTIONS).tokens, stop=";")
    again = pickle.loads(pickle.dumps(context))
    assert torch.equal(again.tokens, context.tokens) and again.text == context.text
    reward = TabularReward(torch.zeros(4))
    named = reasoning(lm, reward).settings, reasoning(remote(serve(model="other")), reward).settings
    assert named[0]["lm"] == "lm on a server fake" != named[1]["lm"]


def test_prefix_cache_hits_are_counted() -> None:
    lm = remote(serve(prefix_cache=True))
    with CostMeter() as meter:
        lm.sample_step(lm.start("abab"), torch.Size([5]), OPTIONS)
    assert meter.totals["tokens_prefilled"] == 4 + 4 * 1 and meter.totals["lm_tokens_cached"] == 4 * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "other"}, r"does not serve 'other'. It serves: fake"),
        ({"mode": "ids"}, "mode must be one of token_ids, text"),
        ({"log_probs": "both"}, "log_probs must be one of raw, processed, none"),
        ({"max_length": 513}, r"max_length must lie in 2 .. 512, got 513"),
        ({"extra_body": {"temperature": 0.1}}, "extra_body must not set temperature"),
        ({"concurrency": 0}, "concurrency must be an integer of at least 1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        remote(serve(), **options)


def test_a_server_that_does_not_tell_its_context() -> None:
    with pytest.raises(ValueError, match="pass max_length="):
        remote(serve(max_model_len=None))
    assert remote(serve(max_model_len=None), max_length=100).max_length == 100
    demo = OpenAILM(URL, "fake", tokenizer="demo", transport=serve(max_model_len=None).transport())
    assert demo.max_length == 1024 and demo.vocab_size == 422 and demo.eos_ids.tolist() == [2], "from the configuration"


def test_a_server_that_refuses_fields_it_does_not_know() -> None:
    server = serve(faults=lambda call: Fault("status", 422))
    with pytest.raises(ServerError, match=r"HTTP 422: fault 422. A server that knows no token ids needs OpenAILM\(..., mode='text'\)"):
        reasons(remote(server))
    assert len(server.calls) <= 60, "not tried again"


def test_a_server_whose_list_of_models_is_empty_is_believed() -> None:
    class Shy(FakeServer):
        async def _reply(self, path: str, raw: bytes) -> Any:
            if path == "/v1/models":
                return 200, {}, b'{"object": "list", "data": []}'
            return await super()._reply(path, raw)

    shy = Shy(table, byte_tokenizer(SYMBOLS, "$"))
    assert remote(shy, model="fake", max_length=64).model == "fake"
    with pytest.raises(ValueError, match="does not list its models"):
        remote(shy, max_length=64)
