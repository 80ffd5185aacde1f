"""Process reward models on a server: every family against its published recipe, through a server in the process."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Model

from ppl_llm import RemotePRM
from ppl_llm.inference import CostMeter
from ppl_llm.remote.errors import ServerError
from ppl_llm.reward.prm.next_token_scorer import NextTokenScorer
from ppl_llm.reward.prm.pooling_scorer import PoolingScorer
from tests.helpers.fake_network import Fault
from tests.helpers.fake_server import URL, FakeServer
from tests.helpers.tiny_models import language_model
from tests.helpers.tiny_prms import RECIPES, WRITE, Recipe
from tests.ppl_llm.reward.prm.test_families import PROBLEMS, compare, run_filter, written

Serve = Callable[..., FakeServer]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("served")
    return {name: write(root / published) for name, (published, write) in WRITE.items()}


@pytest.fixture(scope="module")
def recipes(directories: dict[str, Path]) -> dict[str, Recipe]:
    return {name: RECIPES[name](path) for name, path in directories.items()}


@pytest.fixture(scope="module")
def networks(directories: dict[str, Path]) -> dict[str, Callable[[list[int]], Tensor]]:
    """``[L, K]`` raw outputs of each family's network, from one pass of transformers."""

    def headed(directory: Path) -> Callable[[list[int]], Tensor]:
        net, weights = Qwen2Model.from_pretrained(directory).eval(), load_file(directory / "model.safetensors")

        @torch.no_grad()
        def outputs(ids: list[int]) -> Tensor:
            hidden = net(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
            if "v_head.summary.weight" in weights:
                return hidden @ weights["v_head.summary.weight"].T + weights["v_head.summary.bias"]
            inner = (hidden @ weights["score.0.weight"].T + weights["score.0.bias"]).relu()
            return inner @ weights["score.2.weight"].T + weights["score.2.bias"]

        return outputs

    def causal(directory: Path) -> Callable[[list[int]], Tensor]:
        net = AutoModelForCausalLM.from_pretrained(directory).eval()

        @torch.no_grad()
        def outputs(ids: list[int]) -> Tensor:
            return net(torch.tensor([ids]), use_cache=False).logits[0]

        return outputs

    return {name: (headed if name in ("qwen", "skywork") else causal)(path) for name, path in directories.items()}


@pytest.fixture
def serve(directories: dict[str, Path], networks: dict[str, Any]) -> Serve:
    def make(name: str, endpoint: str = "auto", **options: Any) -> FakeServer:
        tokenizer = AutoTokenizer.from_pretrained(directories[name])
        outputs = networks[name]
        if endpoint == "completions" or (endpoint == "auto" and name in ("math-shepherd", "rlhflow")):
            return FakeServer(lambda ids: outputs(ids)[-1], tokenizer, **options)
        step = {"qwen": "<extra_0>", "skywork": "\n", "math-shepherd": "ки"}.get(name)
        pooler: dict[str, Any] = {} if step is None else {"step_tag_id": tokenizer(step, add_special_tokens=False)["input_ids"][-1]}
        if name == "math-shepherd":
            pooler["returned_token_ids"] = tokenizer("+ -", add_special_tokens=False)["input_ids"]
        return FakeServer(None, tokenizer, pool=outputs, pooler=pooler | options.pop("pooler", {}), **options)

    return make


def remote(server: FakeServer, directory: Path, **options: Any) -> RemotePRM:
    return RemotePRM(URL, tokenizer=directory, transport=server.transport(), **{"backoff": 0.0, **options})


@pytest.mark.parametrize(
    ("name", "endpoint"),
    [
        ("qwen", "auto"),
        ("skywork", "auto"),
        ("math-shepherd", "auto"),
        ("rlhflow", "auto"),
        ("math-shepherd", "pooling"),
        ("rlhflow", "pooling"),
    ],
)
def test_scores_are_those_of_the_published_recipe(
    name: str, endpoint: str, directories: dict[str, Path], recipes: dict[str, Recipe], serve: Serve
) -> None:
    """Over random particle filters with ragged steps, finished sequences and resampling; the family is recognised by the directory."""
    prm = remote(serve(name, endpoint), directories[name], endpoint=endpoint)
    assert prm.family == name
    for seed in range(2):
        run_filter(prm, compare(prm, recipes[name]), seed, PROBLEMS[seed % 2])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["qwen", "rlhflow"])
def test_the_whole_answer_as_one_step(name: str, directories: dict[str, Path], recipes: dict[str, Recipe], serve: Serve) -> None:
    from ppl_llm.reward.prm.formats.base import one_block

    prm = remote(serve(name), directories[name], whole_answer=True)
    run_filter(prm, compare(prm, recipes[name], one_block), 1, steps=3)  # type: ignore[arg-type]


def swapped(scorer: Any) -> None:
    ask = scorer.score
    scorer.score = lambda sequences, at: [[-z for z in row] for row in ask(sequences, at)]


def late(scorer: Any) -> None:
    ask = scorer.score
    scorer.score = lambda sequences, at: ask(sequences, [[k - 1 for k in positions] for positions in at])


def permuted(scorer: Any) -> None:
    ask = scorer.score

    def score(sequences: Any, at: Any) -> Any:
        found = ask(sequences, at)
        return [row if len(row) != len(other) else other for row, other in zip(found, found[1:] + found[:1], strict=True)]

    scorer.score = score


@pytest.mark.parametrize("mutant", [swapped, late, permuted])
def test_mutants_are_rejected(mutant: Any, directories: dict[str, Path], recipes: dict[str, Recipe], serve: Serve) -> None:
    prm = remote(serve("rlhflow"), directories["rlhflow"])
    mutant(prm.scorer)
    with pytest.raises(AssertionError, match="not close"):
        run_filter(prm, compare(prm, recipes["rlhflow"]), 1)  # type: ignore[arg-type]


def trace(sequences: int = 3) -> Any:
    return language_model().start(PROBLEMS[0]).expand((sequences,)).extend(written([f"{k % 2} is it.\n\n" for k in range(sequences)]))


def test_equal_sequences_are_asked_for_once_and_no_step_twice(directories: dict[str, Path], serve: Serve) -> None:
    server = serve("rlhflow")
    prm = remote(server, directories["rlhflow"])
    context = trace(6)
    with CostMeter() as meter:
        prm.step_log_odds(context)
        prm.step_log_odds(context)
    assert [len(call["prompt"]) for call in server.calls] == [2]
    assert meter.totals["prm_calls"] == 6 and meter.totals["prm_requests"] == 1
    prm.step_log_odds(context.extend(written(["2 + 2\n\n"] * 6)))
    assert [len(call["prompt"]) for call in server.calls] == [2, 2]


@pytest.mark.parametrize("name", ["qwen", "skywork"])
def test_a_server_that_gives_probabilities(name: str, directories: dict[str, Path], recipes: dict[str, Recipe], serve: Serve) -> None:
    """One that ignores ``use_activation``: log-odds are taken from its probabilities, less precisely."""
    prm = remote(serve(name, pooler={"always_activates": True}), directories[name])
    run_filter(prm, compare(prm, recipes[name]), 0)  # type: ignore[arg-type]
    assert isinstance(prm.scorer, PoolingScorer) and prm.scorer.gives_probabilities


@pytest.mark.parametrize("name", ["qwen", "math-shepherd"])
def test_half_of_the_calls_failing(name: str, directories: dict[str, Path], recipes: dict[str, Recipe], serve: Serve) -> None:
    dice = random.Random(1)
    kinds = [Fault("status", 503), Fault("truncated"), Fault("dropped"), Fault("choices")]
    server = serve(name, faults=lambda call: dice.choice(kinds) if dice.random() < 0.5 else None)
    prm = remote(server, directories[name], max_attempts=40)
    for seed in range(3):
        run_filter(prm, compare(prm, recipes[name]), seed)  # type: ignore[arg-type]
    assert prm.client.retries > 5


def test_what_a_server_cannot_do_is_said(directories: dict[str, Path], serve: Serve) -> None:
    with pytest.raises(ValueError, match=r"--pooler-config '\{\"tok_pooling_type\": \"STEP\", \"step_tag_id\": \d+\}'"):
        remote(serve("qwen", pooler={"step_tag_id": 0}), directories["qwen"]).step_log_odds(trace())
    with pytest.raises(ServerError, match="does not support Pooling API"):
        remote(serve("rlhflow"), directories["rlhflow"], endpoint="pooling").step_log_odds(trace())
    with pytest.raises(ValueError, match="has a head of its own; serve it with --runner pooling"):
        remote(serve("qwen"), directories["qwen"], endpoint="completions")
    assert bool((remote(serve("qwen"), directories["qwen"], max_length=16).step_log_odds(trace()) == -torch.inf).all())
    with pytest.raises(ServerError, match="reward model changed under way"):
        remote(serve("qwen", faults=lambda call: Fault("model") if call == 1 else None), directories["qwen"]).step_log_odds(trace())

    class Plain(FakeServer):
        def _completions(self, body: dict[str, Any]) -> dict[str, Any]:
            return super()._completions({**body, "logprob_token_ids": []})

    server = serve("rlhflow")
    server.__class__ = Plain
    with pytest.raises(ValueError, match="it needs logprob_token_ids"):
        remote(server, directories["rlhflow"]).step_log_odds(trace())


@pytest.mark.parametrize("activates", [False, True])
@pytest.mark.parametrize("name", ["math-shepherd", "rlhflow"])
def test_rows_of_the_whole_vocabulary_are_read_at_the_two_tokens(
    name: str, activates: bool, directories: dict[str, Path], recipes: dict[str, Recipe], serve: Serve
) -> None:
    """Raw, or as probabilities of all tokens; a server that returns the two alone gives the same."""
    server = serve(name, "pooling", pooler={"returned_token_ids": None, "always_activates": activates})
    prm = remote(server, directories[name], endpoint="pooling")
    run_filter(prm, compare(prm, recipes[name]), 0)  # type: ignore[arg-type]
    assert isinstance(prm.scorer, PoolingScorer) and prm.scorer.gives_probabilities == activates
    assert server.pool is not None and server.pool([1]).shape[-1] > 300


@pytest.mark.parametrize("activates", [False, True])
@pytest.mark.parametrize("name", ["qwen", "skywork"])
def test_rows_of_a_vocabulary_are_no_head_of_scores(name: str, activates: bool, directories: dict[str, Path], serve: Serve) -> None:
    """The language model below such a reward model, served by mistake: columns 0 and 1 are not taken for scores."""
    server = serve(name, pooler={"always_activates": activates})
    server.pool = lambda ids: torch.randn(len(ids), 330, generator=torch.Generator().manual_seed(sum(ids)))
    with pytest.raises(ValueError, match="returned 330 outputs for each token, and a head of scores has one or two"):
        remote(server, directories[name]).step_log_odds(trace())


def test_rows_that_do_not_hold_the_two_tokens(directories: dict[str, Path], serve: Serve) -> None:
    """A classifier with three classes under the name of a '+/-' model, whose tokens are beyond its columns."""
    server = serve("rlhflow", "pooling")
    server.pool = lambda ids: torch.zeros(len(ids), 3)
    with pytest.raises(ValueError, match=r"returned 3 outputs for each token, too few for a vocabulary that holds the tokens \(\d+, \d+\)"):
        remote(server, directories["rlhflow"], endpoint="pooling").step_log_odds(trace())


def test_families_that_cannot_be_told(directories: dict[str, Path], serve: Serve, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(directories["qwen"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pass family="):
        remote(serve("qwen"), tmp_path)
    prm = remote(serve("qwen"), tmp_path, family="qwen")
    assert prm.endpoint == "pooling" and isinstance(remote(serve("rlhflow"), directories["rlhflow"]).scorer, NextTokenScorer)
    assert repr(prm) == "RemotePRM('http://fake/v1', 'fake', 'qwen')"
