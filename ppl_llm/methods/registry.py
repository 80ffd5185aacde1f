"""The methods by name, and names with options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import chains, filters, searches, tempered, votes
from .base import Call, Method, Options, library
from .options import MODEL_OPTIONS, Option

if TYPE_CHECKING:
    from ..inference import Equivalent, ParticlePosterior
    from ..programs.models import ReasoningModel

METHODS: dict[str, Method] = {
    method.name: method for family in (filters.FAMILY, chains.FAMILY, tempered.FAMILY, searches.FAMILY, votes.FAMILY) for method in family
}

SOLVING = {name: method for name, method in METHODS.items() if method.build is not None}
"""The methods of ``solve``."""

BUDGETED = {name: method for name, method in METHODS.items() if method.budget is not None}
"""The methods of ``evaluate``."""

IN_PYTHON_ONLY: dict[str, str] = {
    "Enumeration": "exact, for models that can be listed",
    "PMMH": "for models with unknown parameters",
}
"""Algorithms that have no use for a language model named on the command line, and why."""


BY_OPTION: dict[str, str] = {"Adaptive": "until"}
"""Algorithms that are put around that of a method by one of its options."""


@dataclass(frozen=True)
class ChosenMethod:
    """A method with the options that a name such as ``smc:preset=as_paper:islands=4`` sets.

    :ivar str name: the whole name.
    :ivar Method method: what it begins with.
    :ivar dict options: of the method.
    :ivar dict model_options: of the model, see :func:`ppl_llm.reasoning`.
    """

    name: str
    method: Method
    options: Options
    model_options: Options

    def adapted(self, model: ReasoningModel) -> ReasoningModel:
        """The model with the options of the name in place of its own.

        :raises ValueError: for options that do not go together.
        """
        from ..programs.models import build_reasoning
        from ..programs.thinking import thinking_options

        changes = dict(self.model_options)
        if self.method.power != 1 and model.power == 1:
            changes.setdefault("power", self.method.power)
        if not changes:
            return model
        same = ("max_tokens_completion", "answer_fallback", "final_stop", "power", "bridge", "confidence")
        kept: dict[str, Any] = {name: getattr(model, name) for name in same}
        kept |= thinking_options(model.thinking)
        if model.finish != model.preset.finish:
            kept["finish"] = model.finish
        if "preset" not in changes:
            kept |= {"score_temperature": model.score_temperature, "score": model.score}
            if model.aggregation != model.preset.aggregation_for(model.prm):  # it was asked for
                kept["aggregation"] = model.aggregation
        preset = changes.pop("preset", model.preset)
        options = {**vars(model.options), "max_steps": model.max_steps, "early_exit": model.early_exit, **kept, **changes}
        if model.every is not None:  # which says where steps end
            options = {name: value for name, value in options.items() if name != "stop"} | {"every": model.every}
        adapted = build_reasoning(model.lm, model.prm, preset, **options)
        if "bridge" in self.model_options and adapted.power == 1:
            raise ValueError(f"bridge={adapted.bridge} has no effect without a power: give power as well, such as power=4")
        around = getattr(model, "around", None)
        return adapted if around is None else around(adapted)


@dataclass(frozen=True)
class BudgetedMethod(ChosenMethod):
    """A method as an evaluation runs it: at a budget of B complete solutions per problem."""

    @property
    def _free(self) -> dict[str, Any]:
        """All options that do not follow from the budget."""
        budget = self.method.budget
        assert budget is not None
        defaults = {option.name: option.default for option in (*self.method.options, *budget.extra)}
        return {**defaults, **budget.defaults, **self.options}

    @property
    def least(self) -> int:
        """Smallest budget."""
        assert self.method.budget is not None
        return max(self.method.budget.least(self._free), self.options.get("batch", 1))

    @property
    def shared(self) -> bool:
        """Whether it votes over the samples that all such methods share."""
        assert self.method.budget is not None
        return self.method.budget.shared and not self.in_batches

    @property
    def weighs_power(self) -> bool:
        """Whether a power target changes its answers: that of votes over shared samples does not."""
        assert self.method.budget is not None
        return not self.shared or self.method.budget.vote in ("posterior", "preset")

    @property
    def in_batches(self) -> bool:
        """Whether each problem stops by a rule of its own, see ``until``: there is then a posterior for each."""
        return self.options.get("until") is not None

    def start(
        self, model: ReasoningModel, problems: list[Any], budget: int, equivalent: Equivalent | None = None, proposals: Any = None
    ) -> ParticlePosterior | list[ParticlePosterior]:
        """The posterior at a budget, with a plate of problems; :func:`independent` samples for a vote; a list where they stop alone.

        :param ReasoningModel model: as :meth:`adapted`.
        :param equivalent: when two answers are the same.
        :param proposals: of the steps, for methods that take them.
        """
        if self.shared:
            return independent(model, problems, budget, proposals)
        call = Call(max_plate_nesting=1, proposals=proposals, equivalent=equivalent, may_die=True)
        found: ParticlePosterior | list[ParticlePosterior] = self.method.start(model, self.sized(budget), call)(problems)
        return found

    def sized(self, budget: int) -> dict[str, Any]:
        """All options at a budget."""
        assert self.method.budget is not None
        return {**self._free, **self.method.budget.sizes(budget, self._free)}

    def aggregation(self, model: ReasoningModel, default: str) -> str:
        """Score of a solution from those of its steps, for votes: the default unless the name changes the model's.

        :param ReasoningModel model: as :meth:`adapted`.
        """
        if not any(name in self.model_options for name in ("preset", "aggregation")):
            return default
        return "prod" if model.preset.potential == "likelihood" else model.aggregation

    @property
    def vote_options(self) -> dict[str, Any]:
        """Those of the vote alone."""
        assert self.method.budget is not None
        return {name: self._free[name] for name in self.method.budget.voting}

    def vote_under(self, preset_vote: str) -> str:
        """The name of the vote; ``preset`` leaves it to the preset's, see :class:`~ppl_llm.Preset`."""
        assert self.method.budget is not None
        if self.method.budget.vote != "preset":
            return self.method.budget.vote
        return "best-of-n" if preset_vote == "argmax" else "posterior"


def independent(model: ReasoningModel, problems: list[Any], budget: int, proposals: Any = None) -> ParticlePosterior:
    """The samples that every vote shares, with their log-probabilities where sampling in this process gives them anyway."""
    from ..lm.autoregressive import AutoregressiveLM

    local = isinstance(model.lm, AutoregressiveLM)
    call = Call(max_plate_nesting=1, proposals=proposals, may_die=True)
    importance = library("Importance")(model, budget, record_log_probs=local, **call.keywords())
    posterior: ParticlePosterior = call.run_of(importance)(problems)
    return posterior


def check_proposes(names: Iterable[str], what: str, flag: str = "--method ") -> None:
    """
    :param str what: needs proposals, for the message.
    :param str flag: before the name of a method, for the message.
    :raises ValueError: for a method that takes no proposals, whose results would not be weighed.
    """
    unable = next((name for name in names if not METHODS[name.partition(":")[0]].proposes), None)
    if unable is not None:
        able = ", ".join(name for name, method in METHODS.items() if method.proposes)
        raise ValueError(f"{what} have no effect with {flag}{unable}; they go with {able}")


def get_method(name: str) -> BudgetedMethod:
    """A method of ``evaluate`` by name, with options after colons: ``smc:preset=as_paper``, ``smc:resampler=multinomial:islands=4``,
    ``particle-gibbs:sweeps=8``, ``dvts:expand=8``.

    :raises ValueError: for an unknown name, with the nearest known one, or for options that it does not take under a budget.
    """
    base, *items = name.split(":")
    method = _look_up(base, BUDGETED)
    budget = method.budget
    assert budget is not None
    known = {option.name: option for option in (*method.options, *budget.extra) if option.name in budget.free or option in budget.extra}
    in_batches = any(item.startswith("until=") for item in items)
    voting = {name: option for name, option in known.items() if name in budget.voting}
    settable = voting if budget.shared and not in_batches else {**known, **MODEL_OPTIONS}
    for key in (item.partition("=")[0] for item in items):
        if method.option(key) is not None and key not in known and settable:
            raise ValueError(f"method {name!r}: {key} follows from the budget here; options: {', '.join(settable)}")
    chosen = BudgetedMethod(name, method, *_split(_parse(name, items, settable)))
    if items:
        _check(chosen, chosen.sized(chosen.least))
    return chosen


def parse_method(name: str) -> ChosenMethod:
    """A method of ``solve`` by name, with options after colons: ``smc:particles=32:resampler=ssp``.

    :raises ValueError: for an unknown name, with the nearest known one, or for options that it does not take.
    """
    base, *items = name.split(":")
    if base in METHODS and base not in SOLVING:
        raise ValueError(f"method {base!r} is a vote that only evaluate has; take {METHODS[base].algorithm.lower()}")
    method = _look_up(base, SOLVING)
    return ChosenMethod(name, method, *_split(_parse(name, items, {**{o.name: o for o in method.options}, **MODEL_OPTIONS})))


def _look_up(base: str, methods: Mapping[str, Method]) -> Method:
    if base not in methods:
        from ..inference.util.validation import unknown_name

        raise unknown_name("method", base, methods)
    return methods[base]


def _parse(name: str, items: list[str], known: Mapping[str, Option]) -> dict[str, Any]:
    base = name.partition(":")[0]
    options: dict[str, Any] = {}
    for item in _joined(items, known):
        key, _, text = item.partition("=")
        if not text:
            raise ValueError(f"method {name!r}: expected option=value after the colon, got {item!r}")
        if key not in known:
            from ..inference.util.validation import unknown_name

            if known:
                raise unknown_name(f"{base} option", key, known)
            takes = ", or only together with until" if base in METHODS and METHODS[base].option("until") is not None else ""
            raise ValueError(f"method {base!r} takes no options here{takes}")
        if key in options:
            raise ValueError(f"method {name!r}: {key} is given twice")
        try:
            options[key] = known[key].parse(text)
        except ValueError as error:
            raise ValueError(f"method {name!r}: {error}") from error
    return options


def _joined(items: list[str], known: Mapping[str, Option]) -> list[str]:
    """Items with those that belong to the value before them, as the second in ``until=beta`` and ``0.95``."""
    found: list[str] = []
    for item in items:
        option = known.get(found[-1].partition("=")[0]) if found else None
        if "=" not in item and option is not None and option.colons:
            found[-1] += f":{item}"
        else:
            found.append(item)
    return found


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of the method and those of the model."""
    own = {name: value for name, value in options.items() if name not in MODEL_OPTIONS}
    return own, {name: value for name, value in options.items() if name in MODEL_OPTIONS}


def _check(chosen: ChosenMethod, options: Options) -> None:
    """What the library has to say, before a model is loaded."""
    from ..programs.models import build_reasoning

    model = chosen.adapted(build_reasoning(None, None))
    if chosen.method.build is not None:
        chosen.method.start(model, options)
