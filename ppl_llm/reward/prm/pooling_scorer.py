"""Scores of steps from a server's pooling endpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...inference.cost import count
from ...remote.client import ServerClient
from ...remote.errors import MalformedReply, ServerError
from .formats.base import PRMFormat

_PER_REQUEST = 64
_TINY = 1e-38
"""Least probability that float32 tells from 0."""

Rows = list[list[float]]


class PoolingScorer:
    """Reads log-odds from vLLM's ``/pooling`` of a model served with ``--runner pooling``.

    With the pooling type STEP the server returns a row for each step token, with ALL one for each token; both are understood. Raw outputs
    are asked for (``use_activation: false``), since log-odds beyond 16 are lost in probabilities; whether the server obeys is found out by
    asking both ways once.

    :param ServerClient client: connections to the server.
    :param str model: the name it is served under.
    :param PRMFormat form: of the traces.
    """

    def __init__(self, client: ServerClient, model: str, form: PRMFormat) -> None:
        self.client, self.model = client, model
        self._step_id: int | None = getattr(form, "step_id", None)
        good, bad = (getattr(form, name, None) for name in ("good_id", "bad_id"))
        self._pair: tuple[int, int] | None = None if good is None or bad is None else (good, bad)
        self.gives_probabilities: bool | None = None
        self._answers_as: str | None = None

    def score(self, sequences: Sequence[Sequence[int]], at: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-odds at positions of sequences.

        :raises ServerError: if the server fails for good, or answers with another model than before.
        :raises ValueError: if it does not pool by steps.
        """
        if self.gives_probabilities is None:
            raw, active = (self._ask([sequences[0]], activation)[0] for activation in (False, True))
            self.gives_probabilities = raw == active and all(map(_is_probability, raw))
        rows = self._ask(sequences)
        return [
            [self._log_odds(found[i]) for i in self._which(sequence, found, positions)]
            for sequence, found, positions in zip(sequences, rows, at, strict=True)
        ]

    def _ask(self, sequences: Sequence[Sequence[int]], activation: bool = False) -> list[Rows]:
        groups = [sequences[k : k + _PER_REQUEST] for k in range(0, len(sequences), _PER_REQUEST)]
        bodies = [{"model": self.model, "input": [list(ids) for ids in group], "use_activation": activation} for group in groups]
        before = self.client.retries
        replies = self.client.post(f"{self.client.address.root}/pooling", bodies, lambda i, reply: _parse(reply, len(groups[i])))
        count(prm_requests=len(bodies), prm_tokens=sum(map(len, sequences)))
        if repeated := self.client.retries - before:
            count(prm_requests_repeated=repeated)
        for _, name in replies:
            if self._answers_as is not None and name != self._answers_as:
                raise ServerError(f"the server's reward model changed under way, from {self._answers_as!r} to {name!r}: start again")
            self._answers_as = name
        return [rows for found, _ in replies for rows in found]

    def _which(self, sequence: Sequence[int], rows: Rows, positions: Sequence[int]) -> list[int]:
        """Rows of positions."""
        tags = [k for k, token in enumerate(sequence) if token == self._step_id]
        if tags and len(rows) == len(tags):
            return [tags.index(position) for position in positions]
        if len(rows) == len(sequence):
            return list(positions)
        pooler = f'{{"tok_pooling_type": "STEP", "step_tag_id": {self._step_id}}}' if tags else '{"tok_pooling_type": "ALL"}'
        raise ValueError(
            f"the server returned {len(rows)} rows for {len(sequence)} tokens with {len(tags)} step tokens; "
            f"start vLLM with --runner pooling --pooler-config '{pooler}'"
        )

    def _log_odds(self, row: list[float]) -> float:
        if len(row) == 1:
            return _logit(row[0], 1 - row[0]) if self.gives_probabilities else row[0]
        if self._pair is None:
            if len(row) != 2:
                raise ValueError(
                    f"the server returned {len(row)} outputs for each token, and a head of scores has one or two: this is a language model "
                    "with its vocabulary; serve the reward model itself, or pass the family that it is of"
                )
            bad, good = row[0], row[1]
        elif len(row) != 2 and max(self._pair) >= len(row):
            raise ValueError(
                f"the server returned {len(row)} outputs for each token, too few for a vocabulary that holds the tokens {self._pair}: "
                "serve the model with its vocabulary, or pass the family that it is of"
            )
        else:
            good, bad = (row[0], row[1]) if len(row) == 2 else (row[self._pair[0]], row[self._pair[1]])
        return _logit(good, bad) if self.gives_probabilities else good - bad


def _parse(reply: Any, sequences: int) -> tuple[list[Rows], str | None]:
    try:
        by_index = {int(entry["index"]): [[float(x) for x in row] for row in entry["data"]] for entry in reply["data"]}
        if len(reply["data"]) != sequences or sorted(by_index) != list(range(sequences)):
            raise MalformedReply(f"the server returned scores {sorted(by_index)} for {sequences} sequence(s)")
        return [by_index[i] for i in range(sequences)], reply.get("model")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedReply(f"the server's reply is not one of /pooling: {type(error).__name__} {error}") from None


def _is_probability(row: list[float]) -> bool:
    inside = all(0 <= x <= 1 for x in row)
    return inside and (len(row) == 1 or math.isclose(sum(row), 1, abs_tol=1e-2))


def _logit(good: float, bad: float) -> float:
    return math.log(max(good, _TINY)) - math.log(max(bad, _TINY))
