"""A constraint from plain values, as the command line has them."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Constraint, Product
from .choices import Choices
from .grammar import TIDY, JsonSchema, Regex


def constraint_of(json_schema: str | None = None, regex: str | None = None, choices: Sequence[str] | None = None) -> Constraint | None:
    """What texts must be, all of what is given at once; ``None`` where nothing is.

    :param str json_schema: a schema as text. Between the parts of a value there is a space at most, or an indented line break: a model that
        knows no JSON would else write spaces without an end.
    :param str regex: that a text matches as a whole.
    :param choices: the texts themselves.
    :raises ValueError: for what cannot be compiled, or where the package llguidance is missing.
    """
    given: list[Constraint] = []
    try:
        if json_schema is not None:
            given.append(JsonSchema(json_schema, whitespace=TIDY))
        if regex is not None:
            given.append(Regex(regex))
    except ImportError as error:
        raise ValueError(str(error)) from error
    if choices is not None:
        given.append(Choices(choices))
    return given[0] if len(given) == 1 else Product(*given) if given else None
