"""Language models on a server: scores, ends of steps, text mode and failures, against a server in the process."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from typing import Any

import pyro
import pytest
import torch

from ppl_llm import SMC, Context, LLMStep, OpenAILM, StopReason, TabularReward, reasoning
from ppl_llm.inference import CostMeter
from ppl_llm.lm.base import StepOptions
from ppl_llm.remote.errors import ServerError
from tests.helpers.fake_network import Fault
from tests.helpers.fake_server import URL, FakeServer
from tests.helpers.served_table import OPTIONS, SYMBOLS, byte_tokenizer, local, remote, serve, table

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


def reasons(lm: OpenAILM, options: StepOptions = OPTIONS, num_sequences: int = 60) -> Context:
    pyro.set_rng_seed(1)
    context = lm.start("a")
    return context.extend(lm.sample_step(context, torch.Size([num_sequences]), options).tokens, stop=options.stop)


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
    """No sequence is lost or doubled: every sequence has a prompt of its own, and the tokens are those of a server without faults."""
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
