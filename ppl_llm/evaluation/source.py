"""Which models an evaluation runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..answers.equivalence import equivalence_named
from ..constraints.base import Constraint
from ..constraints.choice import constraint_of
from ..context import DEFAULT_STOP
from ..lm.base import LanguageModel
from ..lm.loading import parse_dtype
from ..methods import Call, get_method
from ..programs.models import ReasoningModel, build_reasoning, reasoning
from ..programs.presets import get_preset
from ..programs.thinking import THINKING_OPTIONS, check_switch, thinking_of, thinking_switch
from ..programs.turn_options import TurnOptions
from ..remote.address import is_address
from ..reward.base import RewardModel
from ..reward.choice import RewardChoice, context_note
from ..reward.confidence import Confidence
from ..reward.judge_options import JudgeOptions
from ..reward.python_file import file_digest
from ..thinking import WAIT


@dataclass(frozen=True)
class Models:
    """Names and options from which every process loads the same program.

    :param str lm: ``demo``, a directory, a name on the Hugging Face Hub, or the address of a server that has one model.
    :param str prm: process reward model: ``demo``, ``demo-weak``, a directory, a name on the Hub, or an address.
    :param str reward: one of :data:`~ppl_llm.reward.choice.REWARD_KINDS`; ``prm=NAME`` is the same as ``reward="prm:NAME"``. Without
        either it is the demo reward model for the demo language model, and none for any other; see ``chosen_reward``.
    :param str preset: see :func:`ppl_llm.reasoning`.
    :param str aggregation: replaces the preset's.
    :param int max_steps: steps at most.
    :param int max_tokens: longest step.
    :param float temperature: of the language model.
    :param str device: where the models run; by default the CPU.
    :param tuple calibration: temperature and bias of the reward model's log-odds, see
        :class:`~ppl_llm.reward.calibration.Calibration`; ``dataclasses.astuple(load_calibration(file, prm))`` gives
        those of a file (:mod:`ppl_llm.reward.calibration`).
    :param bool answer_scores: record the reward model's score of each whole solution written as one step (the model-based aggregation),
        for votes recomputed from the records; needs a local process reward model.
    :param str dtype: number format of local models' weights, e.g. ``bfloat16``; by default that of the checkpoint.
    :param int max_tokens_completion: tokens of a solution at most.
    :param float top_p: nucleus sampling.
    :param int top_k: sampling from the likeliest tokens only.
    :param tuple stop: delimiters of steps; a blank line by default.
    :param str finish: regular expression of a step that ends a solution.
    :param str system_prompt: system turn before a problem.
    :param str chat_template: Jinja template in place of the tokenizer's.
    :param str prm_family: of a process reward model; recognised by its configuration by default.
    :param str answer_fallback: see :func:`ppl_llm.reasoning`.
    :param float power: of the target; see :func:`ppl_llm.reasoning`. Votes over samples are as without it, but for ``importance``.
    :param int bridge: steps along which it grows.
    :param str every: a factor at every position of this kind, see :func:`ppl_llm.reasoning`.
    :param int waits: see :func:`ppl_llm.reasoning`, as for ``wait``, ``close`` and ``max_thinking``.
    :param str thinking: ``on`` or ``off``, the switch ``enable_thinking`` of the chat template.
    :param str confidence: record how sure the language model is of each solution, ``KIND:WINDOW:OVER`` as ``top-k:2048:bottom``, for votes
        recomputed from the records; see :class:`~ppl_llm.Confidence`.
    :param bool keep_texts: record the text of each candidate.
    :param str json_schema: a schema, as text: solutions are values of it. ``regex``: they match it as a whole. ``choices``: each is one of
        these. All of what is given at once, as a global constraint (:mod:`ppl_llm.constraints`); for methods that weigh proposals.
    :param JudgeOptions judge: of a judge as the reward.
    :param TurnOptions turns: how often a solution is written, and what is said about its drafts.
    :param str equivalence: when answers are the same: ``exact``, or ``math`` (extra ``math``).
    """

    lm: str = "demo"
    prm: str | None = None
    preset: str = "exact"
    aggregation: str | None = None
    max_steps: int = 40
    max_tokens: int = 256
    temperature: float = 1.0
    device: str | None = None
    equivalence: str = "exact"
    calibration: tuple[float, float] | None = None
    answer_scores: bool = False
    dtype: str | None = None
    reward: str | None = None
    max_tokens_completion: int | None = None
    top_p: float = 1.0
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    finish: str | None = None
    system_prompt: str | None = None
    chat_template: str | None = None
    prm_family: str | None = None
    answer_fallback: str | None = None
    keep_texts: bool = False
    power: float = 1.0
    bridge: int | None = None
    json_schema: str | None = None
    regex: str | None = None
    choices: tuple[str, ...] | None = None
    every: str | None = None
    waits: int = 0
    wait: str = WAIT
    close: str | None = None
    max_thinking: int | None = None
    thinking: str | None = None
    confidence: str | None = None
    judge: JudgeOptions = JudgeOptions()  # noqa: RUF009 - frozen
    turns: TurnOptions = TurnOptions()  # noqa: RUF009 - frozen

    @property
    def constraint(self) -> Constraint | None:
        """What solutions must be, all of what is given at once.

        :raises ValueError: for what cannot be compiled, or where a package is missing.
        """
        return constraint_of(self.json_schema, self.regex, self.choices)

    @property
    def chosen_reward(self) -> RewardChoice:
        """The reward.

        :raises ValueError: if two are given, or one that does not exist.
        """
        return RewardChoice.of(self.lm, self.prm, self.reward, self.judge)

    @property
    def named_prm(self) -> str | None:
        """The name of the process reward model; ``None`` for any other reward."""
        chosen = self.chosen_reward
        return chosen.name if chosen.kind == "prm" else None

    @property
    def vote_aggregation(self) -> str:
        """Score of a solution from those of its steps, for votes: the preset's; for the likelihood of all steps that is the product."""
        if self.aggregation is not None:
            return self.aggregation
        preset = get_preset(self.preset)
        return "prod" if preset.potential == "likelihood" else preset.aggregation

    def equivalent(self) -> Callable[[Hashable, Hashable], bool]:
        """
        :raises ImportError: for ``math`` without its extra.
        :raises ValueError: for another name.
        """
        return equivalence_named(self.equivalence)

    def vote_options(self) -> dict[str, Any]:
        """What :func:`~ppl_llm.evaluation.work.execute` needs to turn samples into answers."""
        return {
            "proposals": self.constraint,
            "aggregation": self.vote_aggregation,
            "equivalent": self.equivalent(),
            "answer_scores": self.answer_scores,
            "keep_texts": self.keep_texts,
        }

    def without_reward(self) -> Models:
        """The same without its reward, for methods none of which asks it; scores of whole solutions are asked for by name."""
        if self.answer_scores:
            return self
        return replace(self, prm=None, reward="none", calibration=None, prm_family=None, judge=JudgeOptions())

    def load(self) -> ReasoningModel:
        """The Pyro program.

        :raises OSError: if a model cannot be found or read.
        :raises ValueError: if it cannot be used, or an option is out of range.
        """
        self.check()
        prompts = {"system_prompt": self.system_prompt, "chat_template": self.chat_template, **thinking_switch(self.thinking)}
        lm = self._load_lm(self.lm, **prompts)
        reward = self.chosen_reward.load(lm, self._load_lm, self._load_prm, self._load_orm, self.every)
        sure = None if self.confidence is None else Confidence.parse(self.confidence)
        model = reasoning(lm, reward, self.preset, confidence=sure, **self._options())
        return self.turns.around(model, self.turns.prompt(lm, self._load_lm, model.answer_fallback))

    def _load_lm(self, name: str, **prompts: Any) -> LanguageModel:
        if is_address(name):
            from ..lm.openai_lm import OpenAILM

            return OpenAILM(name, **prompts)
        from ..lm.transformers_lm import TransformersLM

        return TransformersLM.from_pretrained(name, device_map=self.device, dtype=parse_dtype(self.dtype), **prompts)

    def _load_prm(self, name: str) -> RewardModel:
        from ..reward.calibration import CalibratedReward, Calibration

        calibration = None if self.calibration is None else Calibration(*self.calibration)
        family = self.prm_family or "auto"
        if is_address(name):
            from ..reward.prm.remote_prm import RemotePRM

            prm = RemotePRM(name, family=family)
            return prm if calibration is None else CalibratedReward(prm, calibration)
        from ..reward.prm.transformers_prm import TransformersPRM

        dtype = parse_dtype(self.dtype)
        return TransformersPRM.from_pretrained(name, family, device_map=self.device, dtype=dtype, calibration=calibration)

    def _load_orm(self, name: str, partial: bool | str) -> RewardModel:
        from ..reward.transformers_orm import TransformersORM

        return TransformersORM.from_pretrained(name, device_map=self.device, dtype=parse_dtype(self.dtype), partial=partial)

    def check(self) -> None:
        """
        :raises ValueError: for options out of range, before a model is loaded.
        """
        self.equivalent()
        constraint = self.constraint  # compiled here, so that a mistake is known before a model is loaded
        if constraint is not None and is_address(self.lm):
            raise ValueError("json_schema, regex and choices need the logits of a local language model; a server does not tell them")
        parse_dtype(self.dtype)
        if self.confidence is not None:
            Confidence.parse(self.confidence)
        check_switch(self.thinking, thinking_of(self.waits, self.wait, self.close, self.max_thinking))
        self.chosen_reward.check()
        self.turns.check(tests=True)
        prm = self.named_prm
        if self.answer_scores and (prm is None or is_address(prm)):
            raise ValueError("answer_scores needs a reward model in this process that reads steps; a served one gives scores of steps")
        if prm is None and (self.calibration is not None or self.prm_family is not None):
            raise ValueError(f"calibration and prm_family are for a process reward model, and the reward is {self.chosen_reward}")
        if self.prm_family not in (None, "auto"):
            from ..reward.prm.families import get_family

            get_family(str(self.prm_family))
        build_reasoning(None, None, self.preset, **self._options())

    def note(self) -> str | None:
        """What to know before a run: whether solutions may be longer than the process reward model reads.

        :raises OSError: if there is no such model.
        """
        prm = self.named_prm
        if prm is None or self.lm == "demo":
            return None
        if is_address(prm):
            from ..remote.client import ServerClient
            from ..remote.served import ServedModel

            return context_note(self.max_tokens_completion, ServedModel.find(ServerClient(prm), None).max_length)
        from ..reward.prm.families import context_of

        return context_note(self.max_tokens_completion, context_of(prm))

    def check_methods(self, methods: Sequence[str], budgets: Sequence[int]) -> None:
        """What methods have to say about these options, before a model is loaded.

        :raises ValueError: for what does not go together, naming the method.
        """
        model = self.turns.around(build_reasoning(None, None, self.preset, **self._options()))
        for name in dict.fromkeys(methods):
            method = get_method(name)
            own = [budget for budget in budgets if budget >= method.least]
            try:
                adapted = method.adapted(model)
                if method.method.scored:
                    self.chosen_reward.check_potential(adapted.preset.potential, self.max_steps, self.every)
                if own and not method.shared and method.method.build is not None:
                    method.method.start(adapted, method.sized(min(own)), Call(max_plate_nesting=1))
            except ValueError as error:
                raise ValueError(f"method {name!r}: {error}") from error

    def files(self) -> dict[str, str]:
        """Digests of the files that are named in the options, and hold what these records depend on."""
        chosen, feedback = self.chosen_reward, self.turns.feedback or ""
        functions = [chosen.name if chosen.kind == "verifier" else None, self.judge.score, self.turns.judge.score]
        functions += [feedback.removeprefix("verifier:")] if feedback.startswith("verifier:") else []
        names = [name.rpartition(":")[0] for name in functions if name is not None and ":" in name]  # a scale such as 1-10 has none
        names += [chosen.name or ""] if chosen.kind == "hidden" else []
        return {name: file_digest(Path(name).expanduser()) for name in sorted(set(names))}

    def _options(self) -> dict[str, Any]:
        names = ("aggregation", "max_steps", "max_tokens", "temperature", "top_p", "top_k", "finish", "max_tokens_completion")
        given = {name: getattr(self, name) for name in (*names, "answer_fallback", "power", "bridge", "every", *THINKING_OPTIONS)}
        if given["answer_fallback"] is None and (self.json_schema, self.regex, self.choices) != (None, None, None):
            given["answer_fallback"] = "text"  # what was asked for is the answer
        return given | ({"stop": self._stop} if self.stop else {})

    @property
    def _stop(self) -> str | tuple[str, ...]:
        return self.stop[0] if len(self.stop) == 1 else tuple(self.stop) or DEFAULT_STOP
