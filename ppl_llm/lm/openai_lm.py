"""Language models on an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..context import PAD, Context
from ..context_cache import CacheKey
from ..inference.cost import count
from ..inference.util.checked import checked
from ..inference.util.validation import check_optional_count
from ..remote.client import DEFAULT_VARIABLE, ServerClient
from ..remote.completion_service import CompletionService
from ..remote.completions import Choice
from ..remote.served import ServedModel
from ..remote.served_tokenizer import ServedTokenizer
from ..remote.text_mode import TextMode
from ..remote.token_mode import TokenMode
from .base import StepOptions, StepSample
from .prompt_scores import PROMPTS_PER_REQUEST, first_known, padded, score_steps, sequences
from .prompts import PromptBuilder
from .stopping import StopAutomaton, step_lengths, token_bytes
from .structured_outputs import SERVERS, refuse_constraint, structured_fields
from .token_figures import TokenFigure, keep, wanted

_SEEDS = 2**31
_OWN_FIELDS = {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "echo", "logprobs", "stream"}


class OpenAILM:
    """A language model behind ``/v1/completions``: vLLM, SGLang, llama.cpp, ``transformers serve`` and others.

    **Prompts** travel as token ids, and so do the steps that come back; ``mode="text"`` is for servers that know only text, see
    :class:`~ppl_llm.remote.text_mode.TextMode` for what is lost. The tokenizer is loaded here.

    **Randomness.** Each sequence has its own seed, drawn from torch's generator before any sequence drops out, so that
    ``pyro.set_rng_seed`` reproduces a run on the same server, and a request that is repeated after a failure gives the same step. A
    request of this API has one seed for all of its prompts, which would give sequences common random numbers, so a step of N sequences is N
    requests sent at once. ``seeded=False`` sends all sequences in one request without a seed, which servers answer faster: sequences are
    independent, but nothing reproduces them, and where failures depend on the length of a step, repeating them favours short ones.

    **Log-probabilities** of sampled steps are the server's for the tokens that it sampled. ``log_probs`` says what they mean: ``"raw"``,
    of the model itself (vLLM's default), which are those of the distribution sampled from only at temperature 1 without ``top_p`` and
    ``top_k`` and are not used otherwise; ``"processed"``, of the distribution sampled from (vLLM: ``--logprobs-mode
    processed_logprobs``); ``"none"``, not asked for. Given steps are scored by the server with ``echo``, at temperature 1 without
    ``top_p`` and ``top_k`` only. The weights of particle filters whose proposal is the model need neither.

    The ends of steps are looked for here too, so that a server which runs past a delimiter does not change the distribution.

    :param str base_url: e.g. ``http://host:8000/v1``.
    :param str model: the name it is served under; may be left out where there is only one.
    :param tokenizer: of the model: an object, a directory or a hub name; by default what the server calls the model.
    :param str mode: ``token_ids`` or ``text``.
    :param bool seeded: whether each sequence has a seed.
    :param str log_probs: ``raw``, ``processed`` or ``none``.
    :param str system_prompt: system turn before a problem given as a string.
    :param str chat_template: Jinja template to use in place of the tokenizer's.
    :param dict template_options: further variables of the chat template, e.g. ``{"enable_thinking": False}`` for Qwen3.
    :param int max_length: longest context in tokens; by default, and at most, what the server or the configuration tells.
    :param eos_ids: tokens that end the text, beside those of the tokenizer and its model's configuration.
    :param bool server_stop: ``False`` does not send stop strings to a server in text mode.
    :param dict extra_body: further fields of every request for steps.
    :param str structured_outputs: ``vllm`` or ``sglang``, whose requests can carry a constraint: ``LLMStep(constraint=...)`` with
        ``JsonSchema``, ``Regex`` and ``Choices`` works then. It means the renormalised model, as a server tells no masses; their
        log-probabilities are unknown.
    :param device: of the tensors of contexts.
    :param client: keywords for :class:`~ppl_llm.remote.client.ServerClient`: ``api_key_env``, ``timeout``, ``max_attempts``, ``backoff``,
        ``concurrency``, ``transport``.
    :raises ServerError: if the server cannot be reached, and ValueError if it does not serve the model or an option makes no sense.
    """

    enumerable = False

    @checked
    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        tokenizer: Any = None,
        mode: str = "token_ids",
        seeded: bool = True,
        log_probs: str = "raw",
        system_prompt: str | None = None,
        chat_template: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        eos_ids: Sequence[int] = (),
        server_stop: bool = True,
        extra_body: Mapping[str, Any] | None = None,
        structured_outputs: str | None = None,
        device: torch.device | str = "cpu",
        api_key_env: str = DEFAULT_VARIABLE,
        **client: Any,
    ) -> None:
        choices = (("mode", mode, ("token_ids", "text")), ("log_probs", log_probs, ("raw", "processed", "none")))
        for name, value, known in (*choices, ("structured_outputs", structured_outputs or "vllm", SERVERS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        check_optional_count("max_length", max_length)
        self._service = CompletionService(ServerClient(base_url, api_key_env=api_key_env, **client))
        served = ServedModel.find(self.client, model)
        self.model, own = served.name, ServedTokenizer.of(served, tokenizer)
        self.max_length = served.limit(max_length, own.max_length)
        self.tokenizer, self.vocab_size, ends = own.tokenizer, own.vocab_size, own.eos_ids | set(eos_ids)
        if not ends:
            raise ValueError("the tokenizer names no token that ends the text; pass eos_ids=(...)")
        self.eos_ids = torch.tensor(sorted(ends), device=device)
        self.seeded, self.log_probs = seeded, log_probs if mode == "token_ids" else "none"
        self.prompts = PromptBuilder(self.tokenizer, system_prompt, chat_template, template_options)
        self.tokenizer = self.prompts.tokenizer  # with the chat template that was given
        self.mode: TokenMode | TextMode = TokenMode(ends) if mode == "token_ids" else TextMode(self.tokenizer, ends, server_stop)
        self.extra_body, self.structured_outputs = dict(extra_body or {}), structured_outputs
        if clash := sorted(_OWN_FIELDS & self.extra_body.keys()):
            raise ValueError(f"extra_body must not set {', '.join(clash)}: OpenAILM and the options of a step do")
        self._key = CacheKey(f"lm on a server {self.model}")
        self._automata: dict[tuple[str, ...], StopAutomaton] = {}
        self._special_ids = {str(token): i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    @property
    def device(self) -> torch.device:
        return self.eos_ids.device

    @property
    def client(self) -> ServerClient:
        """The connections to the server."""
        return self._service.client

    def start(self, problem: Any) -> Context:
        """The context of a problem, before any step.

        :param problem: a string, a list of chat messages ``{"role": ..., "content": ...}``, or a list of problems (a batch dimension).
        :raises ValueError: if a problem is empty or its prompt fills the model's context.
        """
        batched = isinstance(problem, (list, tuple)) and not (problem and isinstance(problem[0], dict))
        texts, prompts, prefills = zip(*map(self.prompts, problem if batched and problem else [problem]), strict=True)
        if (longest := max(map(len, prompts))) >= self.max_length:
            raise ValueError(f"the prompt has {longest} tokens, which leaves no room in the model's context of {self.max_length} tokens")
        return Context.root(self, texts, list(prompts), batched, prefills)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it stands.

        :raises ValueError: for a text that the tokenizer cannot write.
        """
        return self.prompts.encode(text)

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def stop_automaton(self, stop: str | tuple[str, ...]) -> StopAutomaton:
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if stops not in self._automata:
            special = [i for text, i in self._special_ids.items() if text in stops]
            self._automata[stops] = StopAutomaton(token_bytes(self.tokenizer, self.vocab_size), stops, self.device, special)
        return self._automata[stops]

    @torch.no_grad()
    def sample_step(self, context: Context, batch_shape: torch.Size, options: StepOptions) -> StepSample:
        """Draw one step for each sequence that is not done, all at once. Fails if the server does, or ends steps where it should not.

        :raises ValueError: for a constraint that the server does not keep to.
        """
        original, context = context, context.expand(torch.broadcast_shapes(batch_shape, context.batch_shape))
        _, temperatures = options.by_sequence(context.batch_shape, self.device)
        total, width = context.lengths.numel(), options.max_tokens
        seeds = self._seeds(total)
        room = (context.limit - context.lengths).flatten().clamp(max=width)
        active = (~context.done).flatten().nonzero()[:, 0]
        tokens = torch.full((total, width), PAD, device=self.device)
        log_probs: Tensor | None = torch.zeros(total, width, dtype=torch.float64, device=self.device)
        if len(active):
            prompts = [self.mode.prompt(ids) for ids in sequences(context, active)]
            fields = {} if options.constraint is None else structured_fields(self.structured_outputs, options.constraint, context, active)
            own = [options.temperature] * len(active) if temperatures is None else temperatures[active].tolist()
            choices = self._write(prompts, room[active].tolist(), [seeds[i] for i in active.tolist()], own, options, fields)
            watch = self.stop_automaton(options.stop).start(context).flatten()[active]
            drawn, each = self._steps(choices, watch, room[active], active, options)
            tokens[active, : drawn.shape[1]] = drawn
            log_probs = None if each is None or log_probs is None else log_probs.index_copy(0, active, each)
        count(tokens_sampled=int((tokens != PAD).sum()))
        step, shape = tokens.view(*context.batch_shape, width), context.batch_shape
        if log_probs is None:
            return StepSample(step, None)
        figures = tuple(figure for figure in wanted(context, self) if options.plain and figure == TokenFigure("log_prob"))
        keep(context, self, figures, step, log_probs.view(*shape, width, 1).expand(*shape, width, len(figures)))
        original.cache_entries.update(context.cache_entries)
        return StepSample(step, log_probs.sum(-1).to(torch.get_default_dtype()).view(shape))

    def _seeds(self, total: int) -> list[int]:
        return [int(seed) for seed in torch.randint(_SEEDS, (total,))]

    def _write(
        self, prompts: list[Any], room: list[int], seeds: list[int], temperatures: list[Any], options: StepOptions, fields: dict[str, Any]
    ) -> list[Choice]:
        """What the server writes after each prompt, at its temperature; ``fields`` are those of a constraint."""
        shared = {
            "model": self.model,
            "top_p": options.top_p,
            **self.mode.fields(options.stop_strings, options.top_k, self.log_probs != "none", self._special_ids),
            **self.extra_body,
            **fields,
        }
        if self.seeded:
            groups = [[i] for i in range(len(prompts))]
        else:
            kinds = list(zip(room, temperatures, strict=True))
            alike = [[i for i in range(len(prompts)) if kinds[i] == kind] for kind in sorted(set(kinds))]
            groups = [same[k : k + PROMPTS_PER_REQUEST] for same in alike for k in range(0, len(same), PROMPTS_PER_REQUEST)]
        bodies = [
            {
                **shared,
                "prompt": [prompts[i] for i in group] if len(group) > 1 else prompts[group[0]],
                "max_tokens": room[group[0]],
                "temperature": temperatures[group[0]],
                **({"seed": seeds[group[0]]} if self.seeded else {}),
            }
            for group in groups
        ]
        found: dict[int, Choice] = {}
        for group, completion in zip(groups, self._service.complete(bodies, list(map(len, groups))), strict=True):
            found.update(zip(group, completion.choices, strict=True))
        return [choice for _, choice in sorted(found.items())]

    def _steps(
        self, choices: list[Choice], watch: Tensor, room: Tensor, active: Tensor, options: StepOptions
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens of steps and their log-probabilities, ``[A, M]`` each, cut where they end."""
        written = [self.mode.tokens(choice, options.stop_strings)[: options.max_tokens] for choice in choices]
        tokens = torch.tensor([ids + [PAD] * (options.max_tokens - len(ids)) for ids in written], device=self.device)
        if bool((tokens >= self.vocab_size).any()):
            raise ValueError(
                f"the server returned token id {int(tokens.max())}, the tokenizer here knows {self.vocab_size}: is it the model's?"
            )
        lengths, over = step_lengths(tokens, self.stop_automaton(options.stop), watch, self.eos_ids, room)
        for k in (~over).nonzero()[:, 0].tolist():
            if isinstance(self.mode, TokenMode) or choices[k].finish_reason != "length" or not written[k]:
                raise ValueError(choices[k].complaint(int(active[k]), self.decode(written[k]), int(room[k])))
        if overrun := int((tokens != PAD).sum() - lengths.sum()):
            count(lm_tokens_past_the_end=overrun)
        tokens = torch.where(torch.arange(options.max_tokens, device=self.device) < lengths[:, None], tokens, PAD)
        if self.log_probs == "none" or options.constraint is not None or (self.log_probs == "raw" and not options.plain):
            return tokens, None
        each = [first_known(choice.log_probs, n) for choice, n in zip(choices, lengths.tolist(), strict=True)]
        rows = [row for row in each if row is not None]
        return tokens, None if len(rows) < len(each) else padded(rows, options.max_tokens).to(self.device)

    @torch.no_grad()
    def step_log_prob(self, context: Context, tokens: Tensor, options: StepOptions) -> Tensor:
        """Log-probability ``[*batch_shape]`` of given steps ``[*batch_shape, max_tokens]``, which the server scores as parts of prompts.

        :raises ValueError: at another temperature than 1, with ``top_p`` or ``top_k``, in text mode, or if the server cannot do it.
        """
        refuse_constraint(options.constraint)
        batch_shape = torch.broadcast_shapes(tokens.shape[:-1], context.batch_shape)
        context = context.expand(batch_shape)
        if tokens.shape[-1] != options.max_tokens:
            raise ValueError(f"a step has {options.max_tokens} token places (max_tokens), got a value with {tokens.shape[-1]}")
        steps = tokens.expand(*batch_shape, tokens.shape[-1]).reshape(-1, tokens.shape[-1]).to(self.device)
        counts = (steps != PAD).sum(-1)
        room = (context.limit - context.lengths).flatten().clamp(max=options.max_tokens)
        known = torch.where((steps >= 0) & (steps < self.vocab_size), steps, PAD)
        automaton = self.stop_automaton(options.stop)
        lengths, over = step_lengths(known, automaton, automaton.start(context).flatten(), self.eos_ids, room)
        done = context.done.flatten()
        allowed = torch.where(done, counts == 0, over & (lengths == counts))
        log_probs = torch.where(allowed, 0.0, -torch.inf)
        active = (allowed & ~done).nonzero()[:, 0]
        if len(active):
            if not options.plain or not isinstance(self.mode, TokenMode):
                raise ValueError(
                    "a server scores given steps under the model itself: in mode token_ids, at temperature 1, without top_p and top_k; "
                    "else use a local TransformersLM, or an algorithm that needs no log-probabilities of steps (SMC without audit)"
                )
            log_probs[active] = score_steps(self._service, self.model, context, active, steps).sum(-1).to(log_probs)
        return log_probs.view(batch_shape)

    @torch.no_grad()
    def token_values(self, context: Context, tokens: Tensor, figure: TokenFigure) -> Tensor:
        """Log-probabilities ``[*batch_shape, M]`` of given tokens, which the server scores as parts of prompts; 0 on padding.

        :raises ValueError: for another figure than these, or in text mode.
        """
        if figure != TokenFigure("log_prob") or not isinstance(self.mode, TokenMode):
            raise ValueError(f"a server gives log-probabilities of tokens at temperature 1, in mode token_ids, and no {figure}")
        context = context.expand(torch.broadcast_shapes(tokens.shape[:-1], context.batch_shape))
        steps = tokens.expand(*context.batch_shape, tokens.shape[-1]).reshape(-1, tokens.shape[-1]).to(self.device)
        counts = (steps != PAD).sum(-1)
        active = (~context.done.flatten() & (counts > 0)).nonzero()[:, 0]
        values = torch.zeros(steps.shape, dtype=torch.float64, device=self.device)
        if len(active):
            values[active] = score_steps(self._service, self.model, context, active, steps)
        return values.view(*context.batch_shape, -1)

    def __repr__(self) -> str:
        return f"OpenAILM({self.client.address.api!r}, {self.model!r})"
