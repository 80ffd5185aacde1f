"""Models that exist for clients only: a language model under a method, chosen by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

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
            if method.scored and not self._scored:
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
        if model == self.name:
            return self.default
        if not model.startswith(f"{self.name}:"):
            raise _unknown(f"The model {model[:100]!r} does not exist here; known: {self.name}, {self.name}:METHOD-BUDGET, see /v1/models")
        text = model[len(self.name) + 1 :]
        head, *items = text.split(":")
        sized = None if head in SOLVING else _SIZED.fullmatch(head)
        try:
            named = parse_method(":".join([sized[1] if sized else head, *items]))
            options = dict(named.options)
            if sized:
                options = _at_budget(named, int(sized[2]))
        except ValueError as error:
            raise _unknown(f"The model {model[:100]!r} does not exist: {error}") from error
        return Choice(named.method, options, dict(named.model_options))

    def choose(self, model: str, asked: Fields) -> Choice:
        """What a name and the options of a request stand for together.

        :param Fields asked: the options, ``ppl`` of the request.
        """
        choice = self.find(model)
        method = asked.text("method")
        if method is not None:
            if model != self.name:
                raise bad_value(asked.name("method"), f"the model {model[:100]!r} and {asked.name('method')} both name a method; give one")
            try:
                choice = self.find(f"{self.name}:{method}")
            except ApiError as error:
                raise bad_value(asked.name("method"), error.message.partition(": ")[2] or error.message) from error
        options, model_options = dict(choice.options), dict(choice.model_options)
        fixed = choice is not self.default
        for option in (*choice.method.options, *MODEL_OPTIONS.values()):
            if not asked.has(option.name):
                continue
            into = model_options if option.name in MODEL_OPTIONS else options
            if fixed and option.name in into:
                raise bad_value(asked.name(option.name), f"{asked.name(option.name)} is set by the method's name already; give it once")
            into[option.name] = asked.option(option)
        return Choice(choice.method, options, model_options)

    def check(self, choice: Choice) -> None:
        """
        :raises ApiError: for a method that needs a reward where there is none, or for too many solutions side by side.
        """
        if choice.method.scored and not self._scored:
            raise ApiError(400, f"method {choice.method.name} needs a reward model, and this server has none", param="model")
        sizes = {o.name: choice.options.get(o.name, o.default) for o in choice.method.options if o.side_by_side}
        total = 1
        for size in sizes.values():
            total *= size or 1
        if total > self._particles:
            names = " x ".join(sizes)
            raise bad_value(f"ppl.{next(iter(sizes))}", f"{names} must be at most {self._particles} here, got {total}")


def _at_budget(named: ChosenMethod, budget: int) -> dict[str, Any]:
    """Options of a method of ``solve`` with so many complete solutions."""
    method = named.method
    if method.budget is None:
        raise ValueError(f"{method.name} has no budget; give its options after colons: {', '.join(o.name for o in method.options)}")
    # Of several shares of the same samples evaluations need no options, so that their free ones are none.
    budgeted = BudgetedMethod(named.name, method, named.options, {})
    if budget < budgeted.least:
        raise ValueError(f"{method.name} needs a budget of at least {budgeted.least}, got {budget}")
    sizes = budgeted.sized(budget)
    for name, value in named.options.items():
        if sizes[name] != value:
            raise ValueError(f"{name} follows from the budget {budget}; leave one of them out")
    return {option.name: sizes[option.name] for option in method.options if sizes[option.name] is not None}


def _unknown(message: str) -> ApiError:
    return ApiError(404, message, param="model", code="model_not_found")
