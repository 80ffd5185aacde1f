"""Scores of steps as the next token of a language model on a server."""

from __future__ import annotations

from collections.abc import Sequence

from ...remote.client import ServerClient
from ...remote.completion_service import CompletionService

_PER_REQUEST = 256


class NextTokenScorer:
    """Reads log-odds of a '+/-' reward model that is served like any language model.

    The difference of the log-probabilities of the two tokens is that of their logits, whatever the other tokens are. Prefixes stay in the
    server's cache, so that each step is read once; pooling endpoints read the whole trace each time.

    :param ServerClient client: connections to the server.
    :param str model: the name it is served under.
    :param int good_id: the token that says a step is good.
    :param int bad_id: the token that says it is bad.
    """

    def __init__(self, client: ServerClient, model: str, good_id: int, bad_id: int) -> None:
        self.client, self.model, self._good_id, self._bad_id = client, model, good_id, bad_id
        self._service = CompletionService(client, counter="prm")

    def score(self, sequences: Sequence[Sequence[int]], at: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-odds at positions of sequences.

        :raises ServerError: if the server fails for good.
        :raises ValueError: if it does not tell the log-probabilities of given tokens.
        """
        prompts = [tuple(sequence[: k + 1]) for sequence, positions in zip(sequences, at, strict=True) for k in positions]
        distinct = list(dict.fromkeys(prompts))
        groups = [distinct[k : k + _PER_REQUEST] for k in range(0, len(distinct), _PER_REQUEST)]
        neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        asked = {"logprobs": 20, "logprob_token_ids": [self._good_id, self._bad_id], "return_tokens_as_token_ids": True}
        bodies = [
            {"model": self.model, "prompt": [list(ids) for ids in group], "max_tokens": 1, "seed": 0, **neutral, **asked}
            for group in groups
        ]
        odds: dict[tuple[int, ...], float] = {}
        for group, completion in zip(groups, self._service.complete(bodies, [len(group) for group in groups]), strict=True):
            for ids, choice in zip(group, completion.choices, strict=True):
                first = (choice.top_log_probs or [{}])[0]
                if not {self._good_id, self._bad_id} <= first.keys():
                    raise ValueError(
                        f"the server does not tell the log-probabilities of tokens {self._good_id} and {self._bad_id}: it needs "
                        "logprob_token_ids (vLLM from 0.12 on), or the model is no '+/-' reward model"
                    )
                odds[ids] = first[self._good_id] - first[self._bad_id]
        return [[odds[tuple(sequence[: k + 1])] for k in positions] for sequence, positions in zip(sequences, at, strict=True)]
