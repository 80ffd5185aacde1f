"""Fields of a JSON object, read with their names at hand."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from ..methods import Option
from .errors import ApiError, bad_value

_LONGEST = 200
"""Characters of an option that is a text; bounds the powers of a ladder, which are chains side by side."""
_MOST = 10_000
"""Of an option that is a number of anything."""


class Fields:
    """An object of a request. ``null`` is as good as no field at all, as OpenAI's clients have it.

    :param values: the object.
    :param str prefix: of the names in messages, such as ``ppl.``.
    :raises ApiError: if it is no object.
    """

    def __init__(self, values: Any, prefix: str = "") -> None:
        if not isinstance(values, dict):
            place = prefix.rstrip(".")
            raise bad_value(place, f"{place or 'the body'} must be a JSON object")
        self._values = {name: value for name, value in values.items() if value is not None}
        self._prefix = prefix
        self._read: set[str] = set()

    def name(self, field: str) -> str:
        return f"{self._prefix}{field}"

    def raw(self, field: str, default: Any = None) -> Any:
        self._read.add(field)
        return self._values.get(field, default)

    def has(self, field: str) -> bool:
        return field in self._values

    def ignore(self, fields: Iterable[str]) -> None:
        """Fields that say nothing about the answer."""
        self._read.update(fields)

    def text(self, field: str) -> str | None:
        value = self.raw(field)
        if value is not None and not isinstance(value, str):
            raise bad_value(self.name(field), f"{self.name(field)} must be a string, got {_kind(value)}")
        return value

    def flag(self, field: str) -> bool:
        value = self.raw(field, False)
        if not isinstance(value, bool):
            raise bad_value(self.name(field), f"{self.name(field)} must be true or false, got {_kind(value)}")
        return value

    def integer(self, field: str, least: int, most: int) -> int | None:
        value = self.raw(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            shown = value if type(value) is int and abs(value) < 10**20 else _kind(value)
            raise bad_value(self.name(field), f"{self.name(field)} must be an integer in {least} .. {most}, got {shown}")
        return value

    def number(self, field: str, least: float, most: float) -> float | None:
        value = self.raw(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            shown = f"{value:g}" if type(value) is float or (type(value) is int and abs(value) < 10**6) else _kind(value)
            raise bad_value(self.name(field), f"{self.name(field)} must be a number in [{least:g}, {most:g}], got {shown}")
        return float(value)

    def option(self, option: Option) -> Any:
        """The value of an option of the registry."""
        name, value = self.name(option.name), self.raw(option.name)
        kinds: dict[type, tuple[Any, str]] = {
            bool: (bool, "true or false"),
            int: (int, "an integer"),
            float: ((int, float), "a number"),
            str: (str, "a string"),
        }
        wanted, words = kinds[option.kind]
        if not isinstance(value, wanted) or (isinstance(value, bool) and option.kind is not bool):
            raise bad_value(name, f"{name} must be {words}, got {_kind(value)}")
        if option.kind is float:
            if not abs(value) <= sys.float_info.max:
                raise bad_value(name, f"{name} must be finite")
            value = float(value)
        if option.kind is int and value > _MOST:
            raise bad_value(name, f"{name} must be at most {_MOST} here")
        if option.kind is str and len(value) > _LONGEST:
            raise bad_value(name, f"{name} must have at most {_LONGEST} characters")
        try:
            option.check(value)
        except ValueError as error:
            raise bad_value(name, str(error)) from error
        return value

    def left(self) -> list[str]:
        """Fields that nobody has read."""
        return [name for name in self._values if name not in self._read]

    def finish(self, known: Iterable[str] = ()) -> None:
        """
        :param known: names of fields that may be there, besides those that were read.
        :raises ApiError: for a field that nobody knows.
        """
        for name in self.left():
            shown, near = self.name(name)[:100], get_close_matches(name[:100], {*self._read, *known}, n=1)
            hint = f"; did you mean {self.name(near[0])}?" if near else ""
            raise ApiError(400, f"Unrecognized request argument supplied: {shown}{hint}", param=shown, code="unknown_parameter")


def _kind(value: Any) -> str:
    """What a value is, without showing it."""
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "null")
