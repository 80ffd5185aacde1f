"""Process reward models on a server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...context import Context
from ...context_cache import CacheKey
from ...inference.cost import count
from ...inference.util.checked import checked
from ...inference.util.validation import check_optional_count, unknown_name
from ...remote.client import DEFAULT_VARIABLE, ServerClient
from ...remote.served import ServedModel
from ...remote.served_tokenizer import ServedTokenizer
from ..score_cache import ScoreCache, repeat_last
from ..step_texts import answer_text, begun_steps, step_texts
from .families import OVERLONG, PRMFamily, detect_family, get_family, read_config
from .next_token_scorer import NextTokenScorer
from .pooling_scorer import PoolingScorer

_log = logging.getLogger(__name__)

_REMEMBERED = 2**16
"""Steps whose token ids are kept."""

Query = tuple[tuple[int, ...], int]
"""Token ids of a trace, and the position to be scored."""


class RemotePRM:
    """A process reward model behind a server, in the formats of :class:`~ppl_llm.TransformersPRM`.

    Two kinds of server are known, and each family has its usual one:

    - ``pooling`` (Qwen2.5-Math-PRM, Skywork): vLLM with ``--runner pooling --pooler-config '{"tok_pooling_type": "STEP", "step_tag_id":
      ID}'``. Log-odds are read from raw outputs. The server keeps no prefixes for it and reads the whole trace at every step.
    - ``completions`` (math-shepherd, RLHFlow): the '+/-' models served as language models. Log-odds are read from the log-probabilities of
      the two tokens, and prefixes stay in the server's cache.

    Sequences that are equal are scored once, all sequences of a step in one request, and no step twice.

    :param str base_url: e.g. ``http://host:8001/v1``.
    :param str model: the name it is served under; may be left out where there is only one.
    :param str family: ``qwen``, ``skywork``, ``math-shepherd`` or ``rlhflow``; ``auto`` recognises it by the configuration beside the
        tokenizer.
    :param tokenizer: of the model: an object, a directory or a hub name; by default what the server calls the model.
    :param str endpoint: ``pooling``, ``completions``, or ``auto`` for the family's usual one.
    :param bool whole_answer: score the answer so far as a single step.
    :param int max_length: longest trace in tokens; by default, and at most, what the server or the configuration tells.
    :param dict format_options: of the family's format, e.g. ``{"system_prompt": None}``.
    :param str overlong: as for :class:`~ppl_llm.TransformersPRM`.
    :param client: keywords for :class:`~ppl_llm.remote.client.ServerClient`.
    :raises ServerError: if the server cannot be reached, and ValueError if it does not serve the model or the family cannot be told.
    """

    @checked
    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        family: str = "auto",
        *,
        tokenizer: Any = None,
        endpoint: str = "auto",
        whole_answer: bool = False,
        max_length: int | None = None,
        format_options: Mapping[str, Any] | None = None,
        overlong: str = "zero",
        api_key_env: str = DEFAULT_VARIABLE,
        **client: Any,
    ) -> None:
        if endpoint not in ("auto", "pooling", "completions"):
            raise ValueError(f"endpoint must be one of auto, pooling, completions, got {endpoint!r}")
        if overlong not in OVERLONG:
            raise unknown_name("overlong", overlong, OVERLONG)
        check_optional_count("max_length", max_length)
        self.overlong = overlong
        known = None if family == "auto" else get_family(family)
        self.client = ServerClient(base_url, api_key_env=api_key_env, **client)
        served = ServedModel.find(self.client, model)
        own = ServedTokenizer.of(served, tokenizer, kind="prm")
        self.model, self.max_length, self.whole_answer = served.name, served.limit(max_length, own.max_length), whole_answer
        kind = known or _detected(own, served)
        self.family, self.tokenizer = kind.name, own.tokenizer
        self.format = kind.make_format(own.tokenizer, own.vocab_size, **(format_options or {}))
        good, bad = (getattr(self.format, name, None) for name in ("good_id", "bad_id"))
        pair = None if good is None or bad is None else (good, bad)
        if endpoint == "completions" and pair is None:
            raise ValueError(f"a reward model of the family {kind.name!r} has a head of its own; serve it with --runner pooling")
        self.endpoint = endpoint if endpoint != "auto" else "pooling" if pair is None else "completions"
        self.scorer: PoolingScorer | NextTokenScorer
        if self.endpoint == "pooling" or pair is None:
            self.scorer = PoolingScorer(self.client, self.model, self.format)
        else:
            self.scorer = NextTokenScorer(self.client, self.model, *pair)
        self._key = CacheKey(f"prm on a server {self.model} {whole_answer}")
        self._cache = ScoreCache()
        self._written: dict[tuple[int, str], list[int]] = {}

    def release_caches(self) -> None:
        """Forget the token ids of steps; contexts stay valid."""
        self._written.clear()

    def step_log_odds(self, context: Context) -> Tensor:
        """Log-odds that each step is right: ``[*batch, T]`` float32.

        :raises ServerError: if the server fails for good.
        :raises ValueError: if a score is nan.
        """
        known = self._cache.get(context)
        start = known.shape[-1]
        if start == context.num_steps:
            return known
        flat = context.lengths.numel()
        queries = self._queries(context, start)
        asked = [query for sequence in queries for query in sequence if query is not None and not self._too_long(query)]
        found = self._ask(asked)
        scores = [[0.0 if query is None else found.get(query, 0.0) for query in sequence] for sequence in queries]
        new = torch.tensor(scores, device=known.device)
        taken = torch.tensor([[query is not None for query in sequence] for sequence in queries], device=known.device)
        scored = taken
        beyond = torch.tensor([[self._too_long(query) for query in sequence] for sequence in queries], device=known.device)
        if bool(beyond.any()):
            _log.warning("%d solutions exceed the reward model's context of %d tokens", int(beyond.any(-1).sum()), self.max_length)
            kept = torch.zeros_like(beyond) if self.overlong == "last" and start else beyond
            new, taken = torch.where(beyond, -torch.inf, new), torch.where(beyond, kept, taken)
        all_scores = repeat_last(known.reshape(flat, start), new, taken)
        known_scored = self._cache.scored(context).reshape(flat, start)
        all_scored = torch.cat([known_scored, scored], -1).view(*context.batch_shape, -1)
        return self._cache.put(context, all_scores.view(*context.batch_shape, -1), f"the reward model {self.model!r}", all_scored)

    def scored_steps(self, context: Context) -> Tensor:
        """The steps that have text, ``[*batch, T]``; the others are not read."""
        self.step_log_odds(context)
        return self._cache.scored(context)

    def _ask(self, queries: list[Query]) -> dict[Query, float]:
        wanted: dict[tuple[int, ...], list[int]] = {}
        for trace, position in dict.fromkeys(queries):
            wanted.setdefault(trace, []).append(position)
        if not wanted:
            return {}
        count(prm_calls=len(queries))
        found = self.scorer.score(list(wanted), list(wanted.values()))
        return {(trace, k): z for (trace, at), row in zip(wanted.items(), found, strict=True) for k, z in zip(at, row, strict=True)}

    def _queries(self, context: Context, start: int) -> list[list[Query | None]]:
        """For each flat sequence and step from ``start`` on what to ask; ``None`` for a step that a finished sequence did not take."""
        before = torch.zeros(context.batch_shape, dtype=torch.long)
        answers = [context.tokens.reshape(-1, context.tokens.shape[-1]).tolist(), context.prompt_lengths.flatten().tolist()]
        ends, which = context.ends.reshape(-1, context.num_steps).tolist(), context.problem_index.flatten().tolist()
        heads = [self._head(context, p) for p in range(len(context.problems))]
        result: list[list[Query | None]] = []
        for sequence, steps in enumerate(step_texts(context, 0, before)):
            head, ids = heads[which[sequence]], list[int]()
            places: list[int | None] = []
            for step in steps:
                if step is not None and not self.whole_answer:
                    ids += self._step(step.text, step.number)
                places.append(len(head) + len(ids) - 1 if step is not None else None)
            trace, ask = tuple(head + ids), list[Query | None]()
            for t in range(start, context.num_steps):
                place = places[t]
                if place is not None and self.whole_answer:
                    row, prompt = answers[0][sequence], answers[1][sequence]
                    trace = tuple(head + self.format.answer(answer_text(context, sequence, row[prompt : ends[sequence][t]])))
                    place = len(trace) - 1
                ask.append(None if place is None else (trace, place))
            result.append(ask)
        return result

    def _head(self, context: Context, problem: int) -> list[int]:
        """Token ids of a problem, and of the steps of an answer that its prompt has begun."""
        steps, _ = ([], "") if self.whole_answer else begun_steps(context.prefill_of(problem))
        return self.format.prompt(context.problems[problem]) + [i for t, step in enumerate(steps) for i in self._step(step, t)]

    def _too_long(self, query: Query | None) -> bool:
        """Whether the model's context ends before the token to be scored."""
        return query is not None and query[1] + 1 + (self.endpoint == "completions") > self.max_length

    def _step(self, text: str, index: int) -> list[int]:
        if (index, text) not in self._written:
            if len(self._written) >= _REMEMBERED:
                self._written.clear()
            self._written[index, text] = self.format.step(text, index)
        return self._written[index, text]

    def __repr__(self) -> str:
        return f"RemotePRM({self.client.address.api!r}, {self.model!r}, {self.family!r})"


def _detected(own: ServedTokenizer, served: ServedModel) -> PRMFamily:
    try:
        return detect_family(own.source or served.source, read_config(own.source or served.source), own.tokenizer)
    except OSError as error:
        raise ValueError(f"there is no configuration to tell the family of {served.name!r} by; pass family=... (--prm-family)") from error
