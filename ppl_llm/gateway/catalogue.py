"""Models that exist for clients only: a language model under a method, chosen by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..methods import MODEL_OPTIONS, SOLVING, BudgetedMethod, ChosenMethod, Method, parse_method
from .errors import ApiError, bad_value
from .fields import Fields

SIZES = (4, 16, 64)
"""Budgets of the models that are listed; any other can be asked for."""

_SIZED = re.compile(r"(.+?)-(\d{1,6})")


@dataclass(frozen=True)
class Choice:
    """A method with its options.

    :ivar Method method: of the registry.
    :ivar dict options: of the method, where they are not its defaults.
    :ivar dict model_options: of the model, see :data:`ppl_llm.methods.MODEL_OPTIONS`.
    """

    method: Method
    options: dict[str, Any]
    model_options: dict[str, Any]

    @property
    def chosen(self) -> ChosenMethod:
        return ChosenMethod(self.method.name, self.method, self.options, self.model_options)


class Catalogue:
    """``NAME``, ``NAME:smc-16``, ``NAME:best-of-n-8:preset=twisted``: the language model under a method at a budget, with options.

    A number is a budget of so many complete solutions, as in ``ppl-llm evaluate``: the particles of a filter, the samples of a vote.

    :param str name: of the language model.
    :param Choice default: what ``NAME`` alone stands for.
    :param bool scored: whether there is a reward; without one only methods that need none are offered.
    :param int particles: most solutions side by side.
    """

    def __init__(self, name: str, default: Choice, scored: bool, particles: int) -> None:
        self.name, self.default, self._scored, self._particles = name, default, scored, particles

    def names(self) -> list[str]:
        """The model, and methods at a few budgets."""
        found = [self.name]
        for method in SOLVING.values():
            if method.needs_reward() and not self._scored:
                continue
            if method.budget is None:
                found.append(f"{self.name}:{method.name}")
            for size in SIZES if method.budget is not None else ():
                try:
                    name = f"{self.name}:{method.name}-{size}"
                    self.check(self.find(name))
                except ApiError:
                    continue
                found.append(name)
        return found

    def find(self, model: str) -> Choice:
        """What a name stands for.

        :raises ApiError: with status 404 for a name of nothing.
        """
        return self.choose(model, Fields({}))

    def choose(self, model: str, asked: Fields) -> Choice:
        """What a name and the options of a request stand for together.

        :param Fields asked: the options, ``ppl`` of the request.
        :raises ApiError: with status 404 for a name of nothing, 400 for options that do not go with it.
        """
        named = self._parse(model)
        method = asked.text("method")
        if method is not None:
            if named is not None:
                raise bad_value(asked.name("method"), f"the model {model[:100]!r} and {asked.name('method')} both name a method; give one")
            try:
                named = _Named.parse(method)
            except ValueError as error:
                raise bad_value(asked.name("method"), str(error)) from error
        of = self.default if named is None else named.choice
        options, model_options = dict(of.options), dict(of.model_options)
        for option in (*of.method.options, *MODEL_OPTIONS.values()):
            if not asked.has(option.name):
                continue
            into = model_options if option.name in MODEL_OPTIONS else options
            if named is not None and option.name in into:
                raise bad_value(asked.name(option.name), f"{asked.name(option.name)} is set by the method's name already; give it once")
            into[option.name] = asked.option(option)
        if named is not None and named.budget is not None:
            try:
                options = _at_budget(of.method, options, named.budget)
            except ValueError as error:
                if any(asked.has(option.name) for option in of.method.options):
                    raise bad_value("ppl", str(error)) from error
                raise _unknown(model, str(error)) from error
        return Choice(of.method, options, model_options)

    def _parse(self, model: str) -> _Named | None:
        """``None`` for the language model alone."""
        if model == self.name:
            return None
        if not model.startswith(f"{self.name}:"):
            raise _unknown(model, f"known: {self.name}, {self.name}:METHOD-BUDGET, see /v1/models")
        try:
            return _Named.parse(model[len(self.name) + 1 :])
        except ValueError as error:
            raise _unknown(model, str(error)) from error

    def check_default(self) -> None:
        """
        :raises ValueError: for a default method that :meth:`check` refuses.
        """
        try:
            self.check(self.default)
        except ApiError as error:
            raise ValueError(error.message) from error

    def check(self, choice: Choice, constrained: bool = False) -> None:
        """
        :param bool constrained: whether a constraint weighs the solutions, where no reward does.
        :raises ApiError: for a method that needs a reward where there is none, or for too many solutions side by side.
        """
        if choice.method.needs_reward(choice.model_options.get("power")) and not self._scored and not constrained:
            raise ApiError(400, f"method {choice.method.name} needs a reward model, and this server has none", param="model")
        sizes = {o.name: choice.options.get(o.name, o.default) for o in choice.method.options if o.side_by_side}
        total = 1
        for size in sizes.values():
            total *= size or 1
        if total > self._particles:
            names = " x ".join(sizes)
            raise bad_value(f"ppl.{next(iter(sizes))}", f"{names} must be at most {self._particles} here, got {total}")


class _Named(NamedTuple):
    """A method by name.

    :ivar int budget: ``None`` where the name has none.
    """

    choice: Choice
    budget: int | None

    @classmethod
    def parse(cls, text: str) -> _Named:
        """
        :raises ValueError: for a method or an option that does not exist.
        """
        head, *items = text.split(":")
        sized = None if head in SOLVING else _SIZED.fullmatch(head)
        named = parse_method(":".join([sized[1] if sized else head, *items]))
        return cls(Choice(named.method, dict(named.options), dict(named.model_options)), int(sized[2]) if sized else None)


def _at_budget(method: Method, options: dict[str, Any], budget: int) -> dict[str, Any]:
    """Options of a method of ``solve`` with so many complete solutions.

    :raises ValueError: for a budget that is too small, and for options that follow from it.
    """
    if method.budget is None:
        raise ValueError(f"{method.name} has no budget; give its options after colons: {', '.join(o.name for o in method.options)}")
    budgeted = BudgetedMethod(method.name, method, options, {})
    if budget < budgeted.least:
        raise ValueError(f"{method.name} needs a budget of at least {budgeted.least}, got {budget}")
    sizes = budgeted.sized(budget)
    for name, value in options.items():
        if sizes[name] != value:
            raise ValueError(f"{name} follows from the budget {budget}; leave one of them out")
    said = {*method.budget.sizes(budget, sizes), *method.budget.defaults, *options}
    return {option.name: sizes[option.name] for option in method.options if option.name in said}


def _unknown(model: str, why: str) -> ApiError:
    return ApiError(404, f"The model {model[:100]!r} does not exist here: {why}", param="model", code="model_not_found")
