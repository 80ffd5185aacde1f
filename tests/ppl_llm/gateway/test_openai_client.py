"""What OpenAI's own client gets: answers, streams, several answers, the same ones again, and its exceptions."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pyro
import pytest
import torch

from ppl_llm import SMC, FunctionReward, reasoning
from ppl_llm.finishing import decoded
from ppl_llm.gateway import Gateway, Keys, Served
from ppl_llm.inference import BestOfN
from ppl_llm.lm.prompts import PlainText
from tests.helpers.gateway import ENDLESS, PATIENCE, PROBLEM, Running, models, running, until

MESSAGES: Any = [{"role": "user", "content": PROBLEM}]
KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Keys([KEY, "another-key"]), queue=0, concurrent=4, body_bytes=20_000, choices=8) as up:
        yield up


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE) as made:
        yield made


def alone(method: Any, particles: int, seed: int, **options: Any) -> tuple[Any, Any]:
    """The model, and the posterior of the same run without a server."""
    lm, prm = models()
    model = reasoning(lm, prm, max_tokens_completion=options.pop("max_tokens_completion", 1024), **options)
    pyro.set_rng_seed(seed)
    return model, method(model, particles).run([*MESSAGES])


def chosen(model: Any, posterior: Any) -> str:
    text: str = posterior.value.text[model.choose_particle(posterior.value, posterior.weights.tolist(), model.choose(posterior))]
    return text


def posterior(reply: Any) -> dict[str | None, float]:
    return {each["answer"]: each["probability"] for each in reply.model_extra["ppl"]["answers"]}


def streamed(client: openai.OpenAI, **fields: Any) -> tuple[dict[int, str], list[Any]]:
    """Texts by the number of the choice, and all chunks."""
    texts: dict[int, str] = {}
    chunks = list(client.chat.completions.create(messages=MESSAGES, stream=True, **fields))
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return texts, chunks


@pytest.mark.parametrize(("name", "method"), [("demo:smc-6", SMC), ("demo:best-of-n-6", BestOfN)])
def test_the_message_is_the_solution_that_the_library_chooses(client: openai.OpenAI, name: str, method: Any) -> None:
    model, expected = alone(method, 6, 11)
    reply = client.chat.completions.create(model=name, messages=MESSAGES, seed=11)
    [choice] = reply.choices
    assert choice.message.content == chosen(model, expected) and choice.finish_reason == "stop"
    told: Any = reply.model_extra["ppl"]  # type: ignore[index]
    assert posterior(reply) == pytest.approx(expected.answers().probs, abs=1e-5)
    assert told["answer"] == model.choose(expected) and told["seed"] == 11
    assert told["ess"] == pytest.approx(expected.ess.tolist(), abs=1e-4)
    assert told["cost"]["tokens_sampled"] == expected.cost["tokens_sampled"]
    if method is SMC:
        assert told["log_evidence"] == pytest.approx(float(expected.log_evidence), abs=1e-5)
    else:
        assert "gives no evidence" in told["no_evidence"] and not told["estimates_posterior"]
    assert reply.usage is not None and reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens == int(model.lm.start(MESSAGES).lengths)


def test_a_stream_says_what_the_message_says(client: openai.OpenAI) -> None:
    settled = 0
    for seed in range(4):
        for name in ("demo:smc-6", "demo:beam-search-8", "demo:self-consistency:particles=12:until=same:3:batch=2"):
            whole = client.chat.completions.create(model=name, messages=MESSAGES, seed=seed)
            texts, chunks = streamed(client, model=name, seed=seed, stream_options={"include_usage": True})
            assert texts == {0: whole.choices[0].message.content}
            assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices == [] and chunks[-1].usage == whole.usage
            assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
            assert posterior(chunks[-2]) == pytest.approx(posterior(whole), abs=1e-5)  # the second run finds the prompt in the cache
            pieces = sum(bool(choice.delta.content) for chunk in chunks for choice in chunk.choices)
            assert pieces == 1 or name == "demo:smc-6", "what may yet change must not be told"
            settled += pieces > 1
    assert settled, "nothing was settled before the end of any run"


def test_several_answers_are_draws_from_the_posterior(client: openai.OpenAI) -> None:
    _, posterior = alone(SMC, 6, 5)
    drawn = torch.multinomial(posterior.weights, 4, replacement=True).tolist()
    expected = [posterior.value.text[n] for n in drawn]
    reply = client.chat.completions.create(model="demo:smc-6", messages=MESSAGES, seed=5, n=4)
    assert [choice.message.content for choice in reply.choices] == expected
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert [choice.model_extra["ppl"]["answer"] for choice in reply.choices] == [posterior.value.answers()[n] for n in drawn]  # type: ignore[index]
    texts, _ = streamed(client, model="demo:smc-6", seed=5, n=4)
    assert texts == dict(enumerate(expected))


def test_a_seed_gives_the_same_answer_again(client: openai.OpenAI) -> None:
    def told(seed: int | None) -> tuple[Any, Any]:
        """What all particles together say: four draws, and the posterior up to the rounding of another batch."""
        reply = client.chat.completions.create(model="demo:smc-6", messages=MESSAGES, n=4, **({} if seed is None else {"seed": seed}))
        probabilities = {answer: pytest.approx(p, abs=1e-5) for answer, p in posterior(reply).items()}
        return [choice.message.content for choice in reply.choices], probabilities

    assert told(3) == told(3) and told(-1) == told(2**32 - 1)
    assert told(3)[0] != told(4)[0] and told(None)[1] != told(None)[1]


@pytest.mark.parametrize("stop", ["Third", "\n\nSecond", ["8", "nowhere"], " ="])
def test_a_stop_ends_the_text_and_is_no_part_of_it(client: openai.OpenAI, stop: Any) -> None:
    stops = [stop] if isinstance(stop, str) else stop
    reply = client.chat.completions.create(model="demo:smc-4", messages=MESSAGES, seed=1, stop=stop)
    text = reply.choices[0].message.content
    assert text is not None and not any(each in text for each in stops) and reply.choices[0].finish_reason == "stop"
    model, posterior = alone(SMC, 4, 1, final_stop=tuple(stops))
    assert text == chosen(model, posterior)
    first = posterior.value[0]
    assert any(each in decoded(first.lm, first.tokens, first.prompt_lengths, first.lengths) for each in stops), "the stop never came"
    assert streamed(client, model="demo:smc-4", seed=1, stop=stop)[0] == {0: text}


def test_limits_of_a_text(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="demo:smc-4", messages=MESSAGES, seed=1, max_tokens=7)
    assert reply.choices[0].finish_reason == "length" and reply.usage is not None and reply.usage.completion_tokens == 7
    again = client.chat.completions.create(model="demo:smc-4", messages=MESSAGES, seed=1, max_completion_tokens=7)
    assert again.choices[0].message.content == reply.choices[0].message.content
    few = client.chat.completions.create(model="demo:smc-4", messages=MESSAGES, seed=1, extra_body={"ppl": {"max_steps": 1}})
    text = few.choices[0].message.content
    assert few.choices[0].finish_reason == "length" and text is not None and text.startswith("First") and "Second" not in text


def test_temperature_zero_is_the_likeliest_text(client: openai.OpenAI) -> None:
    texts = {
        client.chat.completions.create(model="demo:smc-4", messages=MESSAGES, seed=seed, temperature=0).choices[0].message.content
        for seed in range(3)
    }
    _, posterior = alone(SMC, 1, 0, top_k=1)
    assert texts == {posterior.value.text[0]}


def test_a_text_completion_continues_the_prompt_as_it_stands(client: openai.OpenAI) -> None:
    lm, prm = models()
    prompts = [f"{PROBLEM} First: 15 + 1 =", "Second: 16 - 8"]
    reply = client.completions.create(model="demo:smc-4", prompt=prompts, n=2, seed=2, max_tokens=6)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3] and len(reply.model_extra["ppl"]) == 2  # type: ignore[index]
    model = reasoning(lm, prm, max_tokens_completion=6)
    for number, prompt in enumerate(prompts):
        assert lm.start(PlainText(prompt)).tokens.tolist() == lm.tokenizer(prompt)["input_ids"]
        pyro.set_rng_seed(2)
        posterior = SMC(model, 4).run(PlainText(prompt))
        drawn = torch.multinomial(posterior.weights, 2, replacement=True).tolist()
        assert [choice.text for choice in reply.choices[2 * number : 2 * number + 2]] == [posterior.value.text[n] for n in drawn]
    texts = dict.fromkeys(range(4), "")
    for chunk in client.completions.create(model="demo:smc-4", prompt=prompts, n=2, seed=2, max_tokens=6, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == [choice.text for choice in reply.choices]


def test_options_of_the_registry(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="demo",
        messages=MESSAGES,
        seed=1,
        extra_body={"ppl": {"method": "smc", "particles": 5, "preset": "twisted", "ess_threshold": 1, "islands": 2}},
    )
    told: Any = reply.model_extra["ppl"]  # type: ignore[index]
    assert told["preset"] == "twisted" and told["num_particles"] == 10 and all(told["resampled"][:-1]) and len(told["islands"]) == 2
    named = client.chat.completions.create(model="demo:smc-10:preset=twisted:islands=2:ess_threshold=1", messages=MESSAGES, seed=1)
    assert named.choices[0].message.content == reply.choices[0].message.content


def test_models_can_be_listed_and_used(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"demo", "demo:smc-16", "demo:best-of-n-16", "demo:self-consistency-4"} <= set(names) and names[0] == "demo"
    assert client.models.retrieve("demo:best-of-n-8").id == "demo:best-of-n-8"
    for name in names:
        if name.endswith("-16"):
            reply = client.chat.completions.create(model=name, messages=MESSAGES, seed=1, extra_body={"ppl": {"max_steps": 3}})
            assert reply.model == name and reply.choices[0].message.content


def test_a_response_format_is_a_constraint(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
    reply = client.chat.completions.create(model="demo:smc-4", messages=MESSAGES, seed=1, response_format=form, max_tokens=3)
    text = reply.choices[0].message.content
    assert text is not None and isinstance(json.loads(text), int)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="demo:beam-search-4", messages=MESSAGES, response_format=form)
    assert refused.value.param == "response_format"


# Errors, as exceptions of the client


def test_bad_requests_name_the_field(client: openai.OpenAI) -> None:
    for fields, param in [
        ({"temperature": 3}, "temperature"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"n": 9}, "n"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"extra_body": {"made_up": 1}}, "made_up"),
        ({"extra_body": {"ppl": {"particles": 10_000}}}, "ppl.particles"),
        ({"extra_body": {"ppl": {"particles": 200, "islands": 2}}}, "ppl.particles"),
        ({"extra_body": {"ppl": {"particles": "many"}}}, "ppl.particles"),
        ({"extra_body": {"ppl": {"preset": "as_papers"}}}, "ppl.preset"),
        ({"extra_body": {"ppl": {"beam_width": 4}}}, "ppl.beam_width"),
        ({"extra_body": {"ppl": {"made_up": 4}}}, "ppl.made_up"),
        ({"extra_body": {"ppl": {"method": "smcc"}}}, "ppl.method"),
        ({"extra_body": {"ppl": {"deadline": 1e9}}}, "ppl.deadline"),
    ]:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="demo", messages=MESSAGES, **fields)  # type: ignore[call-overload]
        assert refused.value.param == param and refused.value.type == "invalid_request_error", param
    for message in ({"role": "user", "content": ""}, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="demo", messages=[message])  # type: ignore[list-item]
        assert refused.value.param is not None and refused.value.param.startswith("messages")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": PROBLEM * 60}])
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "messages"
    with pytest.raises(openai.BadRequestError):
        list(client.chat.completions.create(model="demo", messages=[{"role": "user", "content": PROBLEM * 60}], stream=True))


def test_unknown_models_are_not_found(client: openai.OpenAI) -> None:
    for name in ("nothing", "demo:smcc-4", "demo:smc-4:nothing=1", "demo:smc-0", "demo:smc-4:particles=8", "demo:"):
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model=name, messages=MESSAGES)
        assert refused.value.code == "model_not_found" and refused.value.param == "model"


def test_a_wrong_key_is_refused(server: Running) -> None:
    for key in ("wrong", KEY + "x", KEY[:-1]):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as other, pytest.raises(openai.AuthenticationError):
            other.models.list()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="another-key", max_retries=0) as other:
        assert other.models.list().data


def test_another_hosts_name_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        client.with_options(default_headers={"Host": "evil.example"}).models.list()


def test_a_body_that_is_too_long_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "x" * 30_000}])
    assert refused.value.status_code == 413


def test_no_solution_is_an_error_of_its_own() -> None:
    """Where a verifier rejects every solution."""
    lm, _ = models()
    picky = Gateway(Served("picky", lm, FunctionReward(lambda problem, solution: 0.0)))
    with running(served=picky) as up, openai.OpenAI(base_url=f"{up.url}/v1", api_key="x", max_retries=0) as other:
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            other.chat.completions.create(model="picky:smc-4", messages=MESSAGES)
        assert refused.value.code == "no_solution" and "weight zero" in refused.value.message
        assert other.chat.completions.create(model="picky:self-consistency-4", messages=MESSAGES).choices[0].message.content


@pytest.mark.parametrize("method", ["smc-4", "best-of-n-4", "smc:particles=4:islands=2", "power-smc-4", "suffix-mh"])
def test_solutions_that_are_all_cut_come_back(method: str) -> None:
    """A reward of whole answers gives them no weight; what was written is not lost, at once and as a stream."""
    lm, _ = models()
    whole = Gateway(Served("whole", lm, FunctionReward(lambda problem, solution: 1.0)))
    asked: Any = {"model": f"whole:{method}", "messages": MESSAGES, "max_tokens": 7, "seed": 1}
    with running(served=whole) as up, openai.OpenAI(base_url=f"{up.url}/v1", api_key="x", max_retries=0) as other:
        reply = other.chat.completions.create(**asked, n=2)
        for choice in reply.choices:
            assert choice.finish_reason == "length" and choice.message.content and choice.model_extra["ppl"]["weight"] == 0.0
        assert reply.usage is not None and reply.usage.completion_tokens == 14
        assert reply.model_extra is not None and reply.model_extra["ppl"]["stopped"] == "length"
        assert reply.model_extra["ppl"]["method"] == method.removesuffix("-4").partition(":")[0]
        assert reply.model_extra["ppl"]["cost"]["tokens_sampled"] >= 14
        texts, _ = streamed(other, **{name: value for name, value in asked.items() if name != "messages"})
        assert texts[0] == reply.choices[0].message.content
        assert other.chat.completions.create(**{**asked, "max_tokens": 400}).choices[0].finish_reason == "stop"


class Never:
    """Scores of steps under which nothing may be written from a step on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_log_odds(self, context: Any) -> torch.Tensor:
        scores = torch.zeros(*context.batch_shape, context.num_steps)
        scores[..., self.step :] = -torch.inf
        return scores


@pytest.mark.parametrize("step", [0, 1])
def test_solutions_that_a_reward_rules_out_before_their_ends_are_an_error(step: int) -> None:
    """They had room left: to say that they were too long would be wrong."""
    lm, _ = models()
    never = Gateway(Served("never", lm, Never(step)))
    with running(served=never) as up, openai.OpenAI(base_url=f"{up.url}/v1", api_key="x", max_retries=0) as other:
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            other.chat.completions.create(model="never:smc-4", messages=MESSAGES, seed=1)
        assert refused.value.code == "no_solution"


def test_a_deadline_before_the_first_step_is_an_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as refused:
        client.chat.completions.create(model="demo:smc-64", messages=MESSAGES, extra_body={"ppl": {"deadline": 0.001}})
    assert refused.value.status_code == 504 and refused.value.code == "deadline_exceeded"


def test_a_full_queue_and_a_client_that_times_out(server: Running, client: openai.OpenAI) -> None:
    """The queue is as long as there are places; clients that hang up leave room for others."""
    until(server.idle)
    streams = [client.chat.completions.create(model=ENDLESS, messages=MESSAGES, stream=True) for _ in range(4)]
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="demo", messages=MESSAGES)
    assert 1 <= int(refused.value.response.headers["Retry-After"]) <= 60 and refused.value.code == "queue_full"
    streams.pop().close()
    until(lambda: server.gateway.dispatcher.active == 3)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model=ENDLESS, messages=MESSAGES)
    until(lambda: server.gateway.dispatcher.active == 3)
    assert client.chat.completions.create(model="demo:smc-4", messages=MESSAGES).choices[0].message.content
    for stream in streams:
        stream.close()
    until(server.idle)


def test_no_server_is_a_connection_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as nobody,
        pytest.raises(openai.APIConnectionError),
    ):
        nobody.models.list()
