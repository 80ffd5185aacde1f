"""What the user asked for, and the model and algorithm it stands for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..methods import Call, ChosenMethod, check_proposes, parse_method
from ..methods.base import at_power
from ..programs.turn_options import TurnOptions
from ..remote.address import is_address
from ..reward.choice import RewardChoice, no_reward
from .errors import in_flags
from .method_options import method_options, takers
from .model_options import finish_of, read_option

if TYPE_CHECKING:
    from ..constraints import Constraint
    from ..methods.base import Callback, Run
    from ..programs.models import ReasoningModel
    from ..programs.step_proposal import StepProposal

LIMITS = (
    *("max_steps", "max_tokens", "max_tokens_completion", "temperature", "top_p", "top_k"),
    *("answer_fallback", "power", "bridge", "every", "waits", "wait", "close", "max_thinking"),
)
"""Options of the model that :func:`ppl_llm.reasoning` has under the same names."""

COMPLETION_TOKENS = 1024
"""Default of ``--max-tokens-completion``."""

MAX_SEED = 2**32 - 1


def default_method(lm: str, reward: RewardChoice) -> str:
    """Without a reward the power target, which needs the probability of a given text; servers give it seldom: there a majority vote."""
    return "smc" if reward.kind != "none" else "self-consistency" if is_address(lm) else "power-smc"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of ``solve``. ``None`` leaves the choice to the method, the preset or the library.

    :ivar RewardChoice reward: what scores the steps.

    :ivar str method: a name with options perhaps, ``smc:islands=4``.
    :ivar dict options: of the method, given apart from its name.
    :ivar str every: see :func:`ppl_llm.reasoning`.
    :ivar Path json_schema: a file with the schema that the solution is a value of; and ``regex``, which it matches as a whole; and
        ``choices``, separated by commas.
    """

    lm: str = "demo"
    reward: RewardChoice = field(default_factory=lambda: RewardChoice("prm", "demo"))
    method: str = "smc"
    preset: str | None = None
    max_steps: int = 40
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens_completion: int | None = COMPLETION_TOKENS
    finish: str | None = None
    answer_fallback: str | None = None
    equivalence: str = "exact"
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    json_schema: Path | None = None
    regex: str | None = None
    choices: str | None = None
    power: float | None = None
    bridge: int | None = None
    turns: TurnOptions = TurnOptions()  # noqa: RUF009 - frozen
    abstain: float | None = None
    every: str | None = None
    waits: int | None = None
    wait: str | None = None
    close: str | None = None
    max_thinking: int | None = None
    thinking: str | None = None

    @cached_property
    def constraint(self) -> Constraint | None:
        """What the solutions' texts must be, all of what was given at once.

        :raises ValueError: for a schema or an expression that cannot be compiled, a method that weighs no proposals, or a missing package.
        :raises OSError: for a schema that cannot be read.
        """
        if (self.json_schema, self.regex, self.choices) == (None, None, None):
            return None
        from ..constraints.choice import constraint_of

        check_proposes([self.named.method.name], "--json-schema, --regex and --choices")
        schema = None if self.json_schema is None else read_option("--json-schema", self.json_schema)
        return constraint_of(schema, self.regex, None if self.choices is None else self.choices.split(","))

    @property
    def named(self) -> ChosenMethod:
        """The method.

        :raises ValueError: for a name or an option that does not exist.
        """
        return parse_method(self.method)

    @property
    def title(self) -> str:
        """The method with its numbers."""
        chosen = {option.name: option.default for option in self.named.method.options} | self.given()
        return " ".join([self.named.method.name, *(f"{name.replace('_', ' ')} {n}" for name, n in chosen.items() if type(n) is int)])

    def given(self) -> dict[str, Any]:
        """The method's options that were given, in its name or apart from it.

        :raises ValueError: for an option that the method does not take, or that is given both ways.
        """
        named = self.named
        for name in self.options:
            flag = method_options()[name].flag
            if named.method.option(name) is None:
                raise ValueError(f"{flag} has no effect with --method {named.method.name}; it goes with {', '.join(takers(name))}")
            if name in named.options:
                raise ValueError(f"{flag} and --method {self.method} both set {name}; give it once")
        return {**named.options, **self.options}

    @property
    def steps_end(self) -> str | tuple[str, ...]:
        """The delimiter(s) of steps where there is no ``every``; a single one as a string."""
        return self.stop[0] if len(self.stop) == 1 else self.stop or "\n\n"

    def equivalent(self) -> Callable[[Hashable, Hashable], bool]:
        """When two answers are the same.

        :raises ValueError: for an unknown name, or where an extra is missing.
        """
        from ..answers.equivalence import equivalence_named

        try:
            return equivalence_named(self.equivalence)
        except ImportError as error:
            raise ValueError(str(error)) from error

    @property
    def asks_reward(self) -> bool:
        """Whether the method asks a reward: all that there is, where it needs none, as under a constraint, which weighs by itself."""
        method = self.named.method
        needed = method.needs_reward(self.target_power) and self.constraint is None
        return method.scored and (self.reward.kind != "none" or needed)

    @property
    def target_power(self) -> float | None:
        """The power that was given, as an option or with the method's name."""
        return self.named.model_options.get("power", self.power)

    @property
    def unit(self) -> str:
        """What the run reports after: ``step``, ``batch``, ``iteration`` or ``stage``."""
        return self.named.method.unit_under(self.given())

    def build(self, lm: Any, prm: Any, callback: Callback | None = None, prompt: Any = None) -> tuple[ReasoningModel, Run]:
        """The Pyro model, and the run of the algorithm around it.

        :param prompt: of the turns.
        :raises ValueError: for options out of range, naming them.
        """
        model = self.turns.around(self._model(lm, prm), prompt)
        equivalent = None if self.equivalence == "exact" else self.equivalent()
        call = Call(callback, proposals=self._proposals(model), equivalent=equivalent)
        return model, self.named.method.start(model, self.given(), call)

    def _proposals(self, model: ReasoningModel) -> StepProposal | None:
        if self.constraint is None:
            return None
        from ..programs.step_proposal import StepProposal

        cool = at_power(model)
        return StepProposal(constraint=self.constraint, temperature=None if cool is None else cool.temperature)

    def _model(self, lm: Any, prm: Any) -> ReasoningModel:
        from ..programs.models import build_reasoning

        if self.preset is not None and "preset" in self.named.model_options:
            raise ValueError(f"--preset and --method {self.method} both set the preset; give it once")
        if self.power is not None and "power" in self.named.model_options:
            raise ValueError(f"--power and --method {self.method} both set the power; give it once")
        for name in ("waits", "max_thinking"):
            if getattr(self, name) is not None and name in self.named.model_options:
                raise ValueError(f"--{name.replace('_', '-')} and --method {self.method} both set {name}; give it once")
        model = self.named.adapted(build_reasoning(lm, prm, **self.model_keywords()))
        if self.wait is not None and not (model.thinking and model.thinking.waits):
            raise ValueError("--wait has no effect without --waits, the number of times that the closing tag is replaced")
        return model

    def model_keywords(self) -> dict[str, Any]:
        """Keywords of :func:`ppl_llm.reasoning`, without those that the method's name sets."""
        chosen = {name: value for name in LIMITS if (value := getattr(self, name)) is not None}
        if self.stop:
            chosen["stop"] = self.steps_end
        if self.constraint is not None:  # what was asked for is the answer
            chosen.setdefault("answer_fallback", "text")
        return {**chosen, "preset": self.preset or "exact", "finish": finish_of(self.lm, self.finish)}

    def check(self) -> None:
        """Everything that can be known before any model is loaded.

        :raises ValueError: for options out of range, naming the flag.
        """
        from ..lm.loading import parse_dtype
        from ..programs.thinking import check_switch

        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"--seed must lie in 0 .. {MAX_SEED}, got {self.seed}")
        if self.reward.kind == "none" and self.asks_reward:
            raise no_reward(f"--method {self.named.method.name}", option="--")
        self.reward.check()
        self.turns.check()
        self._check_abstain()
        self.equivalent()
        try:
            parse_dtype(self.dtype)
            for name, value in self.given().items():
                method_options()[name].check(value)
            model, _ = self.build(None, None)
            check_switch(self.thinking, model.thinking)
            if self.asks_reward:
                self.reward.check_potential(model.preset.potential, self.max_steps, self.every)
            if self.bridge is not None and model.power == 1:
                raise ValueError("bridge has no effect without a power: give --power as well, such as 4")
        except ValueError as error:
            own = {name: option.flag for option in self.named.method.options for name in (option.parameter, option.name) if name}
            flags = {name: f"--{name.replace('_', '-')}" for name in (*LIMITS, "thinking")} | own
            raise ValueError(in_flags(str(error), flags)) from error

    def _check_abstain(self) -> None:
        """
        :raises ValueError: for no probability, or a method that gives its best candidate alone.
        """
        if self.abstain is None:
            return
        if not 0 <= self.abstain <= 1:
            raise ValueError(f"--abstain must be a probability in [0, 1], got {self.abstain}")
        budget = self.named.method.budget
        if budget is not None and budget.vote == "best-of-n":
            raise ValueError(
                f"--abstain needs probabilities or votes of answers, and --method {self.named.method.name} gives its best solution alone; "
                "take smc, importance or self-consistency"
            )

    def describe(self) -> dict[str, Any]:
        """All settings as they take effect, the preset's included; ``None`` where the method takes no such option."""
        from ..programs.thinking import thinking_options

        model = self._model(None, None)
        method = self.named.method
        return {
            "lm": self.lm,
            "reward": str(self.reward) if self.asks_reward else "none",
            "prm": self.reward.name if self.reward.kind == "prm" and self.asks_reward else None,
            "method": method.name,
            "preset": model.preset.name,
            **{"particles": None, "resampler": None, "ess_threshold": None},
            **{name: value for name, value in method.settled(model, self.given()).items() if name != "audit"},
            **{name: value for name, value in self.named.model_options.items() if name != "preset"},
            "max_steps": self.max_steps,
            "max_tokens": model.options.max_tokens,
            "max_tokens_completion": self.max_tokens_completion,
            **({} if model.power == 1 else {"power": model.power, "bridge": model.bridge}),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            **({"stop": self.steps_end} if self.every is None else {"every": self.every}),
            "finish": model.finish,
            "equivalence": self.equivalence,
            **({} if self.answer_fallback is None else {"answer_fallback": self.answer_fallback}),
            **({} if self.turns.rounds == 1 else {"rounds": self.turns.rounds, "feedback": self.turns.feedback}),
            **thinking_options(model.thinking),
            **({} if self.thinking is None else {"thinking": self.thinking}),
            "seed": self.seed,
            **({} if self.dtype is None else {"dtype": self.dtype}),
            **({} if self.constraint is None else {"constraint": repr(self.constraint)}),
            **({} if self.abstain is None else {"abstain": self.abstain}),
        }
