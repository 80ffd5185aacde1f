"""A small table of probabilities as a local language model, and behind a server in the process."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ppl_llm import OpenAILM, TabularLM
from ppl_llm.lm.base import StepOptions
from tests.helpers.fake_server import URL, FakeServer

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


def byte_tokenizer(symbols: list[str], eos: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose tokens are given; ``eos`` is special."""
    alphabet = {" ": "Ġ", "\n": "Ċ"}
    vocabulary = {"".join(alphabet.get(char, char) for char in symbol): i for i, symbol in enumerate(symbols)}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([eos])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos)
