"""An algorithm as a model of lm-evaluation-harness (extra ``lm-eval``)."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyro
import torch

from ..context import DEFAULT_STOP, Context
from ..lm.base import LanguageModel
from ..methods import get_method
from ..programs.models import ReasoningModel, reasoning
from ..reward.base import RewardModel
from .aggregators import Candidate, log_score
from .source import Models
from .teacher_forced import teacher_forced
from .votes import VOTES, candidates

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError("this needs lm-evaluation-harness; install it with: pip install 'ppl-llm[lm-eval]'") from error

_log = logging.getLogger(__name__)

_CHAT = "<ppl_llm messages>"
"""What stands before chat messages that travel through the harness as text."""

_HONOURED = ("until", "max_gen_toks")
_WITHOUT_EFFECT = ("do_sample", "temperature")


@register_model("ppl_llm")
class PPLHarnessLM(TemplateLM):
    """Answers ``generate_until`` requests through an inference algorithm: the text of the best solution with the answer that was chosen.

    Example::

        import lm_eval
        from ppl_llm.evaluation.harness import PPLHarnessLM

        lm_eval.simple_evaluate(model=PPLHarnessLM("path/to/lm", "path/to/prm", method="smc", budget=16), tasks=["gsm8k"], num_fewshot=0)
        lm_eval.simple_evaluate(model="ppl_llm", model_args="method=smc,budget=16,lm=demo,prm=demo", tasks=[...])

    A request's text is the problem, the user's turn where the language model has a chat template; with ``apply_chat_template=True`` the
    messages are used as they are, and the reward model reads the last user turn. ``until`` ends a solution, and ``max_gen_toks`` cuts it;
    ``temperature`` and ``do_sample`` of a task have no effect, since every algorithm here samples. ``loglikelihood`` and
    ``loglikelihood_rolling`` requests are answered exactly, by the language model alone.

    :param lm: a language model, or a name as in :class:`~ppl_llm.evaluation.source.Models`.
    :param prm: a reward model, or a name; ``None`` for that of the demo language model, and none for any other.
    :param str method: see :data:`ppl_llm.methods.BUDGETED`.
    :param int budget: completions per request.
    :param str preset: see :func:`ppl_llm.reasoning`.
    :param str aggregation: replaces the preset's.
    :param int max_steps: steps at most.
    :param int max_tokens: longest step.
    :param float temperature: of the language model.
    :param str answer_line: put below a solution that has an answer, which stands for ``{answer}``, for tasks that look for one form only:
        ``"#### {answer}"`` for the strict match of gsm8k.
    :param batch_size: requests that share a batch; ``auto`` is 8.
    :param max_batch_size: of no effect; the harness gives it.
    :param str device: where models given by name run; by default the CPU.
    :param int seed: the same requests in the same order give the same texts.
    :raises ImportError: (on import of this module) without lm-eval, naming the extra.
    :raises ValueError: for an unknown method or options out of range.
    :raises OSError: if a model cannot be found or read.
    """

    def __init__(
        self,
        lm: str | LanguageModel = "demo",
        prm: str | RewardModel | None = None,
        method: str = "smc",
        budget: int = 16,
        *,
        preset: str = "exact",
        aggregation: str | None = None,
        max_steps: int = 40,
        max_tokens: int = 256,
        temperature: float = 1.0,
        answer_line: str | None = None,
        batch_size: int | str | None = 8,
        max_batch_size: int | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.method = get_method(method)
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < self.method.least:
            raise ValueError(f"budget of {method!r} must be an integer of at least {self.method.least}, got {budget!r}")
        self.batch_size = 8 if batch_size is None or batch_size == "auto" else int(batch_size)
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size!r}")
        if answer_line is not None and "{answer}" not in answer_line:
            raise ValueError(f"answer_line must hold {{answer}}, got {answer_line!r}")
        self.budget, self.answer_line, self.seed = budget, answer_line, seed
        names = Models(
            lm if isinstance(lm, str) else "demo",
            "demo" if prm is not None and not isinstance(prm, str) else prm,
            preset,
            aggregation,
            max_steps,
            max_tokens,
            temperature,
            device,
            reward=None if isinstance(lm, str) or prm is not None else "none",
        )
        names.check()
        if names.chosen_reward.kind == "none" and self.method.method.needs_reward(self.method.model_options.get("power")):
            raise ValueError(
                f"method {method!r} needs a reward model, and none is given; give prm, or take method 'power-smc' or 'self-consistency'"
            )
        self.names, self.vote_aggregation = names, names.vote_aggregation
        loaded = names.load() if isinstance(lm, str) or isinstance(prm, str) else None
        named_prm = loaded is not None and (prm is None or isinstance(prm, str))
        self.lm: LanguageModel = loaded.lm if loaded is not None and isinstance(lm, str) else lm  # type: ignore[assignment]
        self.prm: RewardModel | None = loaded.prm if named_prm else prm  # type: ignore[assignment, union-attr]
        self._batches = 0

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A solution for each request; those with the same options share batches."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        texts = [""] * len(requests)
        for options, members in groups.items():
            model, until, limit = self._program(json.loads(options))
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                solutions = self._solve(model, [_problem(requests[i].args[0]) for i in batch])
                for i, (context, particle, answer) in zip(batch, solutions, strict=True):
                    texts[i] = self._text(context[particle], answer, until, limit)
                    self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
        return texts

    def _program(self, options: Mapping[str, Any]) -> tuple[ReasoningModel, list[str], int | None]:
        """The Pyro program that ends where a task says, its stop strings, and the longest text in tokens."""
        for name in options.keys() - {*_HONOURED, *_WITHOUT_EFFECT}:
            _log.warning("the task's option %s=%r has no effect here", name, options[name])
        given = options.get("until") or []
        until = [given] if isinstance(given, str) else list(given)
        limit = options.get("max_gen_toks")
        names = self.names
        plain = reasoning(self.lm, self.prm, names.preset)
        ends = [*([plain.finish] if plain.finish is not None else []), *map(re.escape, until)]
        model = reasoning(
            self.lm,
            self.prm,
            names.preset,
            max_steps=names.max_steps,
            stop=tuple(dict.fromkeys([DEFAULT_STOP, *until])),
            max_tokens=names.max_tokens if limit is None else min(names.max_tokens, int(limit)),
            temperature=names.temperature,
            aggregation=names.aggregation,
            finish="|".join(f"(?:{end})" for end in ends) or None,
        )
        return model, until, limit

    @torch.no_grad()
    def _solve(self, model: ReasoningModel, problems: list[Any]) -> list[tuple[Context, int, Any]]:
        """Of each problem: the particles, the chosen one, and the answer."""
        pyro.set_rng_seed(int.from_bytes(hashlib.blake2b(f"{self.seed}/{self._batches}".encode(), digest_size=4).digest()))
        self._batches += 1
        model = self.method.adapted(model)
        posterior = self.method.start(model, problems, self.budget)
        aggregation = self.method.aggregation(model, self.vote_aggregation)
        vote = self.method.vote_under(model.preset.vote)
        chosen = []
        for i in range(len(problems)):
            pool = candidates(model, posterior, i)
            answer = VOTES[vote](pool, aggregation, **self.method.vote_options)
            context = posterior[i].value if isinstance(posterior, list) else posterior.value.select_plate(1, i)
            chosen.append((context, _best(pool, answer, vote, aggregation), answer))
        return chosen

    def _text(self, particle: Context, answer: Any, until: Iterable[str], limit: int | None) -> str:
        begin, end = int(particle.prompt_lengths), int(particle.lengths)
        text = self.lm.decode(particle.tokens[begin : end if limit is None else min(end, begin + int(limit))].tolist())
        for stop in until:
            text = text.partition(stop)[0]
        if self.answer_line is None or answer is None:
            return text
        return f"{text.rstrip()}\n{self.answer_line.replace('{answer}', str(answer))}"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as text; the language model's own chat template is applied when a request comes back."""
        return _CHAT + json.dumps(chat_history, ensure_ascii=False)

    @property
    def tokenizer_name(self) -> str:
        """Tells the prompts of one language model from another's in the harness's caches."""
        return f"ppl_llm {self.names.lm}".replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Of the language model's tokenizer, where it has one."""
        return getattr(getattr(self.lm, "tokenizer", None), "chat_template", None)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.lm.eos_ids[0])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """
        :raises ValueError: for a language model whose tokenizer is not here.
        """
        tokenizer = getattr(self.lm, "tokenizer", None)
        if tokenizer is None or not hasattr(self.lm, "step_log_prob"):
            raise ValueError(
                f"log-likelihoods of given texts need a language model that runs in this process, not {type(self.lm).__name__}; "
                "tasks of the output type generate_until, such as gsm8k, work with every model"
            )
        if string.startswith(_CHAT):
            prompt = self.lm.start([_problem(string)])
            return [int(i) for i in prompt.tokens[0]]
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(tokenizer(string, **options)["input_ids"])

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context.startswith(_CHAT):
            return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)
        pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
        return pair

    def _loglikelihood_tokens(self, requests: Sequence[Any], disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
        pairs = [(before, after) for _, before, after in requests]
        return teacher_forced(self.lm, pairs, self.batch_size * self.budget)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, in windows as long as the model's context."""
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.lm.max_length - 1,
                context_len=1,
            )
            parts = [(("", ""), *make_disjoint_window(window)) for window in windows]
            totals.append(sum(log_prob for log_prob, _ in self._loglikelihood_tokens(parts)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals


def _problem(text: str) -> Any:
    """What ``lm.start`` takes: the text of a request, or its chat messages."""
    return json.loads(text.removeprefix(_CHAT)) if text.startswith(_CHAT) else text


def _best(pool: Sequence[Candidate], answer: Any, vote: str, aggregation: str) -> int:
    """The particle to show for an answer: by weight where weights decide, then by score; any particle counts where no answer was found."""
    weighted = vote in ("posterior", "shares")

    def worth(n: int) -> tuple[float, float, int]:
        score = log_score(pool[n], aggregation) if pool[n].step_log_odds else 0.0
        return (pool[n].weight if weighted else float(pool[n].weight > 0), score, -n)

    return max((n for n, candidate in enumerate(pool) if answer is None or candidate.answer == answer), key=worth)
