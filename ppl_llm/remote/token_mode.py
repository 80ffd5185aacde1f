"""Steps as token ids, for servers that take and return them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .completions import Choice


class TokenMode:
    """Token ids both ways: the server continues exactly the tokens that were sampled (vLLM: ``return_token_ids``).

    All sampling options are sent, also where they do nothing, since servers have their own defaults (vLLM: those of the model's
    ``generation_config.json``, often a nucleus and a repetition penalty).

    :param set eos_ids: tokens that end the text.
    """

    def __init__(self, eos_ids: set[int]) -> None:
        self._eos_ids = sorted(eos_ids)

    def prompt(self, ids: list[int]) -> list[int]:
        """What is sent of a sequence."""
        return ids

    def fields(self, stops: list[str], top_k: int | None, log_probs: bool, special: Mapping[str, int]) -> dict[str, Any]:
        """Fields of a request beside those that every server knows.

        :param special: ids of special tokens; servers do not find these in their texts, so one that is a delimiter is sent as an id.
        """
        return {
            "top_k": -1 if top_k is None else top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "stop": [stop for stop in stops if stop not in special],
            "stop_token_ids": sorted({*self._eos_ids, *(special[stop] for stop in stops if stop in special)}),
            "include_stop_str_in_output": True,
            "return_token_ids": True,
            **({"logprobs": 0} if log_probs else {}),
        }

    def tokens(self, choice: Choice, stops: list[str]) -> list[int]:
        """Tokens that a server wrote, the end of the step included.

        :raises ValueError: if it does not return token ids.
        """
        if choice.token_ids is None:
            raise ValueError(
                "the server does not return token ids (vLLM does from 0.10.2 on); pass mode='text' to send and receive text, see OpenAILM"
            )
        return choice.token_ids
