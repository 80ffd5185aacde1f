r"""One way of writing an answer: plain mathematics and Unicode as LaTeX, without what does not change its value.

Every pattern is linear in the length of the text: none begins with a repetition that is not anchored.
"""

from __future__ import annotations

import re
import unicodedata

_SYMBOLS = {
    "−": "-", "–": "-", "‐": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∙": "\\cdot ", "÷": "/", "∕": "/", "⁄": "/",
    "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∞": "\\infty ", "∅": "\\emptyset ", "°": "^\\circ ", "º": "^\\circ ",
    "±": "\\pm ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "⟨": "(", "⟩": ")",
    "“": '"', "”": '"', "’": "'", "‘": "'", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "\ufeff": "", "∠": "\\angle ",
}  # fmt: skip
_GREEK = {"π": "pi", "θ": "theta", "α": "alpha", "β": "beta", "γ": "gamma", "λ": "lambda", "φ": "phi", "ω": "omega", "σ": "sigma"}
_GREEK_LETTER = re.compile(f"(?<![\u0370-\u03ff])[{''.join(_GREEK)}](?![\u0370-\u03ff])")
_FRACTIONS = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5", "⅙": "1/6", "⅚": "5/6",
    "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
_SUPERSCRIPTS = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SUPERSCRIPT_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_SUBSCRIPT_DIGITS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_ROOT = re.compile(r"√\s{0,3}(\d+(?:\.\d+)?|[A-Za-z])")
_ROOT_GROUP = re.compile(r"√\s{0,3}\(([^()]*)\)")

_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox|emph|bf|rm|boxed|fbox|operatorname)(?![A-Za-z])"
    r"\s{0,3}\{([^{}]*)\}"
)
_SPACING = re.compile(
    r"\\(?:[ ,;:!]|(?:quad|qquad|left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?|limits|thinspace|enspace)(?![A-Za-z]))|~"
)
_PAIRS = (("$$", "$$"), ("$", "$"), ("\\[", "\\]"), ("\\(", "\\)"), ("**", "**"), ("`", "`"))
_ENVIRONMENT = re.compile(
    r"\\begin\{(?:equation|align|gather|displaymath|math)\*?\}(.*)\\end\{(?:equation|align|gather|displaymath|math)\*?\}", re.DOTALL
)
NUMBER = r"(?:\d(?:[\d,]*\d)?(?:\.\d+)?|\.\d+)"
_IN_PARENTHESES = re.compile(r"\(\s{0,3}([-+]?(?:\d+(?:\.\d+)?|\.\d+))\s{0,3}\)")
_GROUPED = re.compile(r"(?<![\d.,])(\d{1,3})((?:(?:\{,\}|,?\\!| )\s?\d{3})+)(?!\d)")
_THOUSANDS = re.compile(r"[^\d]+")

_NAMES = re.compile(
    r"(?<![\\A-Za-z])(pi|theta|alpha|beta|gamma|lambda|phi|omega|sigma|mu|infinity|inf|oo|arcsin|arccos|arctan|asin|acos|atan|sinh|cosh|tanh"
    r"|sin|cos|tan|cot|sec|csc|ln|log)(?![A-Za-z])"
)
_MATHEMATICAL = re.compile(
    r"[\d\\^*/+=<>|]|(?<![A-Za-z])(?:arc|a)?(?:sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt)\s?\("
    r"|(?<![A-Za-z])[A-Za-z]\s?-\s?[A-Za-z](?![A-Za-z])|(?<![^\s(])-\s?[A-Za-z](?![A-Za-z])"
)
_RENAMED = {"infinity": "infty", "inf": "infty", "oo": "infty", "asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_EXP = re.compile(r"(?<![\\A-Za-z])\\?exp\s{0,3}[({]([^(){}]*)[)}]")
_SQRT_GROUP = re.compile(r"(?<![\\A-Za-z])\\?sqrt\s{0,3}\(([^()]*)\)")
_SQRT = re.compile(r"(?<![\\A-Za-z])\\?sqrt\s{0,3}(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z]))|\\sqrt\s{0,3}(\d+)")
_POWER = re.compile(r"\^\s{0,3}(-?\d{2,}|[-]\d+|-[a-z])(?![\d.])")
_POWER_GROUP = re.compile(r"\^\s{0,3}\(([^()]*)\)")
_STAR = re.compile(r"\s{0,3}\*\s{0,3}")
_SCIENTIFIC = re.compile(rf"(?<![\dA-Za-z.\\])({NUMBER})[eE]([-+]?\d{{1,9}})(?![\dA-Za-z.])")
_CIRCLE = r"\s{0,3}\^\s{0,3}(?:\\circ(?![A-Za-z])|\{\s{0,3}\\circ\s{0,3}\})"
_DEGREES = re.compile(rf"\\(sin|cos|tan|cot|sec|csc)\s{{0,3}}(?:\(\s{{0,3}})?({NUMBER}){_CIRCLE}(?:\s{{0,3}}\))?")
_PERIODIC = re.compile(r"(?<![\d.])(\d{0,30})\.(\d{0,30})\\overline\s?\{(\d{1,30})\}")
_ORDER = re.compile(r"\\(le|ge|ne)q(?:slant)?(?![A-Za-z])")
_LIST = re.compile(r"(?<=[\dA-Za-z})\]]) (?:and|or) (?=[\d\\(\[{+-]|[a-z]\s{0,3}=)")
_MIXED = re.compile(
    r"(-?)(\d{1,9})\s{0,3}(?:(?<=\s)(\d{1,9})/(\d{1,9})|(?:\+\s?)?\\[dt]?frac\s?(?:\{(\d{1,9})\}\s?\{(\d{1,9})\}|(\d)(\d)))"
    r"((?: [A-Za-z]{1,20}){0,4})"
)
_NEEDLESS_SPACE = re.compile(r" (?![A-Za-z])|(?<![A-Za-z]) ")


def normalized(text: str) -> str:
    r"""An answer without white space and a final full stop, without enclosing ``$``, ``\( \)``, ``\[ \]``, ``\text{}``, without parentheses
    around a number and a leading equals sign; Unicode and plain mathematics as LaTeX (``π/2``, ``pi/2``: ``\pi /2``)."""
    text = _unwrapped(_from_unicode(text))
    mixed = _MIXED.fullmatch(text)
    if mixed:
        sign, whole, *parts, unit = (part for part in mixed.groups() if part is not None)
        return f"{sign}\\frac{{{int(whole) * int(parts[1]) + int(parts[0])}}}{{{parts[1]}}}{unit}" if int(parts[1]) else text
    return _latex(text) if looks_mathematical(text) else text


def looks_mathematical(text: str) -> bool:
    """Whether there is anything in a text that words do not have."""
    return _MATHEMATICAL.search(text) is not None or _NAMES.fullmatch(text.lstrip("-+ ")) is not None


def _from_unicode(text: str) -> str:
    for character, plain in _SYMBOLS.items():
        text = text.replace(character, plain)
    for character, plain in _FRACTIONS.items():
        if character in text:
            numerator, denominator = plain.split("/")
            text = text.replace(character, f"\\frac{{{numerator}}}{{{denominator}}}")
    text = _GREEK_LETTER.sub(lambda m: f"\\{_GREEK[m[0]]} ", text)
    text = _SUPERSCRIPTS.sub(lambda m: f"^{{{m[0].translate(_SUPERSCRIPT_DIGITS)}}}", text)
    text = _SUBSCRIPTS.sub(lambda m: f"_{{{m[0].translate(_SUBSCRIPT_DIGITS)}}}", text)
    text = _ROOT_GROUP.sub(r"\\sqrt{\1}", _ROOT.sub(r"\\sqrt{\1}", text))
    text = unicodedata.normalize("NFKC", text)
    return "".join(str(unicodedata.digit(c)) if not c.isascii() and c.isdigit() else c for c in text)


def _unwrapped(text: str) -> str:
    while True:
        before = text
        text = text.strip().removesuffix(".").strip()
        for opening, closing in _PAIRS:
            inner = text[len(opening) : -len(closing)]
            if (
                len(text) > len(opening) + len(closing) - 1
                and text.startswith(opening)
                and text.endswith(closing)
                and opening not in inner.replace("\\$", "")
            ):
                text = inner if not inner.endswith("\\") else text
        text = text.removeprefix("$").removeprefix("\\$").strip() if text.count("$") == 1 else text
        text = text[1:] if text.startswith("=") and not text.startswith("==") else text
        wrapped = _WRAPPER.fullmatch(text) or _IN_PARENTHESES.fullmatch(text) or _ENVIRONMENT.fullmatch(text)
        if wrapped:
            text = wrapped[1]
        if text == before:
            break
    text = _SPACING.sub(" ", _GROUPED.sub(lambda m: m[1] + _THOUSANDS.sub("", m[2]), text))
    text = _GROUPED.sub(lambda m: m[1] + _THOUSANDS.sub("", m[2]), text)
    for _ in range(3):
        text = _WRAPPER.sub(r" \1 ", text)
    return " ".join(text.split()).replace(" ^", "^")


def _latex(text: str) -> str:
    text = _ORDER.sub(lambda m: f"\\{m[1]} ", _LIST.sub(", ", text))
    text = text.replace("**", "^").replace("\\langle", "(").replace("\\rangle", ")").replace("\\varnothing", "\\emptyset")
    text = text.replace("\\log_{e}", "\\ln ").replace("\\log_e", "\\ln ").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _SCIENTIFIC.sub(r"\1\\times 10^{\2}", _PERIODIC.sub(_fraction, text))
    text = _EXP.sub(r"e^{\1}", text)
    text = _SQRT_GROUP.sub(r"\\sqrt{\1}", text)
    text = _SQRT.sub(lambda m: f"\\sqrt{{{m[1] or m[2]}}}", text)
    text = _POWER.sub(r"^{\1}", _POWER_GROUP.sub(r"^{\1}", text))
    text = _NAMES.sub(lambda m: f"\\{_RENAMED.get(m[1], m[1])} ", text)
    text = _STAR.sub(r"\\cdot ", text)
    text = _DEGREES.sub(r"\\\1(\\frac{\2 \\pi}{180})", text)
    return " ".join(text.split())


def _fraction(periodic: re.Match[str]) -> str:
    whole, before, period = periodic.groups()
    numerator = int(whole + before + period) - int(whole + before or 0)
    return f"\\frac{{{numerator}}}{{{10 ** len(before) * (10 ** len(period) - 1)}}}"


def squeezed(text: str) -> str:
    """Without the spaces that separate no letters."""
    return _NEEDLESS_SPACE.sub("", text)
