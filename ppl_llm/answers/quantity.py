"""Plain numbers with units, compared exactly."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from .normalization import NUMBER

_UNITS = {
    "km": "kilometer", "cm": "centimeter", "mm": "millimeter", "m": "meter", "kg": "kilogram", "g": "gram", "mg": "milligram",
    "h": "hour", "hr": "hour", "hrs": "hour", "min": "minute", "mins": "minute", "s": "second", "sec": "second", "secs": "second",
    "l": "liter", "ml": "milliliter", "ft": "foot", "feet": "foot", "in": "inch", "inches": "inch", "yd": "yard", "mi": "mile",
    "lb": "pound", "lbs": "pound", "oz": "ounce", "metre": "meter", "metres": "meter", "kilometre": "kilometer", "kilometres": "kilometer",
    "centimetre": "centimeter", "centimetres": "centimeter", "litre": "liter", "litres": "liter", "usd": "dollar", "eur": "euro",
    "gbp": "pound", "mph": "mile per hour", "kmh": "kilometer per hour", "kph": "kilometer per hour", "deg": "degree", "people": "person",
    "children": "child", "men": "man", "women": "woman", "mice": "mouse", "c": "celsius", "f": "fahrenheit", "sq": "square", "units": "",
    "unit": "", "cents": "cent", "pence": "penny",
}  # fmt: skip
_NO_UNIT = {
    "and", "or", "to", "mod", "times", "plus", "minus", "choose", "over", "divided", "by", "remainder", "if", "when", "for", "where",
    "million", "billion", "trillion", "thousand", "hundred", "dozen", "squared", "cubed", "factorial", "than", "less", "more", "not", "is",
    "are", "am", "pm", "bc", "ad", "st", "nd", "rd", "th", "percent", "a", "b", "d", "e", "i", "k", "n", "p", "q", "r", "t", "x", "y", "z",
}  # fmt: skip
_QUANTITY = re.compile(
    rf"(?P<sign>[-+]?)\s{{0,3}}(?P<money>\\?\$|€|£|¥|USD(?=\s)|EUR(?=\s))?\s{{0,3}}(?P<sign2>[-+]?)(?P<number>{NUMBER})"
    r"(?:\s{0,3}(?:\\times|\\cdot|x|\*)\s{0,3}10\s{0,3}\^\s{0,3}(?:\{\s{0,3}(?P<braced>[-+]?\d{1,9})\s{0,3}\}|(?P<bare>[-+]?\d{1,9})))?"
    r"\s{0,3}(?P<percent>\\?%|percent(?![A-Za-z])|per cent(?![A-Za-z]))?(?P<rest>.*)",
    re.DOTALL,
)
_POWER_OF_TEN = re.compile(r"(?P<sign>[-+]?)10\s{0,3}\^\s{0,3}(?:\{\s{0,3}(?P<braced>[-+]?\d{1,9})\s{0,3}\}|(?P<bare>[-+]?\d{1,9}))")
_DEGREE_SIGN = re.compile(r"\s{0,3}\^\s{0,3}(?:\\circ(?![A-Za-z])|\{\s{0,3}\\circ\s{0,3}\})\s{0,3}([CFcf](?![A-Za-z]))?")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf"\s{{0,3}}({'|'.join(_SCALES)})(?![A-Za-z])", re.IGNORECASE)
_UNIT_WORDS = re.compile(r"[A-Za-z]{1,20}(?:\^\{?[23]\}?)?\.?(?:(?:\s{1,3}|\s{0,3}/\s{0,3})[A-Za-z]{1,20}(?:\^\{?[23]\}?)?\.?){0,5}")
_TAIL_WORDS = re.compile(r"(?<=[\d})]) ?" + _UNIT_WORDS.pattern)
_UNIT_WORD = re.compile(r"([A-Za-z]+)(?:\^\{?([23])\}?)?|/")


class Quantity(NamedTuple):
    """A plain number, perhaps with a unit.

    :ivar Decimal value: exact.
    :ivar bool percent: whether it is followed by a per cent sign.
    :ivar str unit: in the singular, ``None`` without one.
    """

    value: Decimal
    percent: bool
    unit: str | None

    @classmethod
    def read(cls, text: str) -> Quantity | None:
        """Of a normalized answer; ``None`` for one that is more than a number and a unit."""
        found = _POWER_OF_TEN.fullmatch(text)
        if found:
            return cls(Decimal(f"{found['sign']}1e{found['braced'] or found['bare']}"), False, None)
        found = _QUANTITY.fullmatch(text)
        if found is None or not _well_grouped(found["number"]) or (found["sign"] and found["sign2"]):
            return None
        scale = _SCALE.match(found["rest"])
        unit = _unit(found["rest"][scale.end() :] if scale else found["rest"])
        if unit is None or (found["percent"] and unit):
            return None
        number = found["number"].replace(",", "")
        exponent = int(found["braced"] or found["bare"] or 0) + (_SCALES[scale[1].lower()] if scale else 0)
        value = _decimal(f"{found['sign']}{found['sign2']}{number}e{exponent}")
        if value is None:
            return None
        money = {"$": "dollar", "\\$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "USD": "dollar", "EUR": "euro", None: ""}[
            found["money"]
        ]
        return cls(value, bool(found["percent"]), (unit if unit else money) or None)

    def same(self, other: Quantity) -> bool:
        """Whether the numbers are equal; units count where both have one. 50% is 50 as well as 0.5."""
        if self.unit and other.unit and self.unit != other.unit:
            return False
        if self.percent != other.percent:
            share, number = (self, other) if self.percent else (other, self)
            sign, digits, exponent = share.value.as_tuple()
            return number.value in (share.value, Decimal((sign, digits, int(exponent) - 2)))
        return self.value == other.value


def without_unit(text: str) -> str:
    """A normalized answer without a unit at its end, which must be a word of at least three letters or a known one."""
    tail = text[-80:]
    for words in _TAIL_WORDS.finditer(tail):
        unit = _unit(" " + words[0]) if words.end() == len(tail) else None
        if unit and len(words[0].strip()) > 2:
            return text[: len(text) - len(tail) + words.start()].rstrip()
    return text


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


def _well_grouped(number: str) -> bool:
    whole, _, _ = number.partition(".")
    groups = whole.split(",")
    return len(groups) == 1 or (1 <= len(groups[0]) <= 3 and all(len(group) == 3 for group in groups[1:]))


def _unit(rest: str) -> str | None:
    """The unit in what follows a number, in the singular; empty for nothing, ``None`` for what is no unit."""
    degree = _DEGREE_SIGN.fullmatch(rest)
    if degree:
        return "degree"
    words = rest.strip()
    if not words:
        return ""
    if len(words) > 80 or not _UNIT_WORDS.fullmatch(words) or (re.match(r"[A-Za-z](?![A-Za-z])", rest) is not None):
        return None  # 5m is a product, 5 m a length
    parts = []
    for word in _UNIT_WORD.finditer(words.lower()):
        if word[0] == "/":
            parts.append("per")
            continue
        name = word[1]
        if name in _NO_UNIT or (len(name) < 3 and name not in _UNITS):
            return None
        name = _UNITS.get(name, name)
        name = name[:-1] if len(name) > 3 and name.endswith("s") and not name.endswith("ss") and name != "celsius" else name
        parts += {None: [name], "2": ["square", name], "3": ["cubic", name]}[word[2]]
    unit = " ".join(part for part in parts if part)
    return {"degree celsius": "degree", "degree fahrenheit": "degree", "celsius": "degree"}.get(unit, unit) or ""
