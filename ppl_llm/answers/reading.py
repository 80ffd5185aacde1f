"""Reading an answer from the words that follow "the answer is". Every pattern is linear in the length of the text."""

from __future__ import annotations

import re

_NOTHING = re.compile(r"(?:[\s.:;?$~{}…_]|\\[ ,:;!]|\\(?:quad|qquad|ldots|dots|cdots|square|Box|text|mathrm)(?![A-Za-z]))*")
"""What an empty answer consists of."""
_PLACEHOLDER = re.compile(r"(?:\\text\s?)?\{?\s?(?:(?:your|the|final)\s)?(?:final\s)?answer(?:\s(?:here|goes here))?\s?\}?", re.IGNORECASE)
_PAIRS = (("**", "**"), ("__", "__"), ("`", "`"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"), ('"', '"'), ("“", "”"), ("'", "'"))
_TRAILING = "*_` \t\r\n"
_FENCE = re.compile(r"```[A-Za-z]{0,12}[ \t]{0,8}\n")
_DISPLAY = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}
_COMMAND = re.compile(r"\\[A-Za-z]+\s?(?:\{[^{}]*\})?")
_PROSE = re.compile(r"[A-Za-z]{2,}")
_BETWEEN = re.compile(r"[*_]{0,3}\s{0,4}(=|,?\s{1,4}(?:and|or)\s{1,4}|,)\s{0,4}")
_RULER = re.compile(r"[-=]{3,}(?=\s)")
_ARITHMETIC = re.compile(r"[\d\s.,+\-*/×÷·()$^−–%=]+")
_SCALE = re.compile(r"\s?(\\?%|percent|thousand|million|billion|trillion|hundred|dozen)(?![A-Za-z])")
_SKIPPED = re.compile(
    r"(?:that|simply|therefore|thus|then|hence|clearly|indeed|just|now|exactly|approximately|about|roughly|again|also|equal to|given by"
    r"|as follows|the following|still|actually|definitely|option|choice|letter)(?![A-Za-z])[\s*_:,]{0,8}"
    r"|(?:very\s|quite\s)?(?:clear|simple|obvious|straightforward|easy|short)\s{0,4}:",
    re.IGNORECASE,
)
_ADJECTIVE = (
    r"(?:clear|concise|simple|obvious|straightforward|easy|short|brief|precise|complete|detailed|thorough|accurate|consistent|reasonable"
    r"|plausible|logical|helpful)(?![A-Za-z])"
)
_PRAISED = re.compile(
    rf"(?:(?:very|quite|rather|fairly|pretty|both)\s{{1,4}}{_ADJECTIVE}|{_ADJECTIVE}(?:,?\s{{1,4}}(?:and|but|yet|enough|from|to|that|as|with|when"
    rf"|if|because|since|given|here|now)(?![A-Za-z])|,\s{{1,4}}{_ADJECTIVE}))",
    re.IGNORECASE,
)
"""What is said about an answer and not in its place."""
_REFUSED = re.compile(
    r"(?:not|what|in|given in|shown|found|displayed|unclear|unknown|correct|wrong|incorrect|right|no longer)(?![A-Za-z])(?!\s*[.!]?\s*\Z)",
    re.IGNORECASE,
)
_CONNECTIVE = r"(?:because|since|as|which|where|for|due|given|based|so|with|that|it|not|and\s+not|hence|therefore|thus|wait|but)"
_LETTER = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf)\s?\{)?"
    r"(?:\(([A-Ja-j])\)|([A-J])(?=[).:;!?}*]|,?\s{1,4}" + _CONNECTIVE + r"(?![A-Za-z])|\s{1,4}[(–—]|\s{0,8}\Z|[ \t]{0,8}\n))"
)
_SENTENCE_END = re.compile(r"(?<![ap]\.m)(?<![DMSJ]r)(?<!Mrs)(?<!Ms)(?<!St)(?<!Prof)[.!?](?=[\s*_`)\"']|\Z)|[。\n]")
_CLAUSE = re.compile(
    r"\s{0,4}[,;(]?\s(?=(?:because|since)(?![A-Za-z]))|[,;]\s{0,4}(?=(?:so|which|where|wait|but|hence|therefore|thus|as|not)(?![A-Za-z]))",
    re.IGNORECASE,
)
_QUANTITY = re.compile(r"[-+−]?\s?[$€£]?\s?[-+−]?(?:\d(?:[\d,]*\d)?(?:\.\d+)?|\.\d+)")
_AFTER_QUANTITY = re.compile(
    r"\s{1,4}(?:(?:and|or)\s{1,4}(?![-+−$€£\d\\\s])|\((?=[A-Za-z]{3}|in\s|or\s|i\.e)(?!mod|sqrt|sin|cos|log|exp)|[–—]\s{1,4}(?=[A-Za-z]{2})"
    r"|(?:so|which|where|wait|but|as|if|when|after|because|since|for|in)(?![A-Za-z])|of\s(?:the|an?|his|her|their|its|all)\s)",
    re.IGNORECASE,
)

_SHORT_WORD = re.compile(r"(?:\(([A-Ja-j])\)|([A-J])[).:]?)|[-+−]?[$€£]?[-+−]?\d[\d,]{0,40}(?:\.\d{1,40})?(?:/\d{1,40})?\\?%?")
_LAST_WORD = re.compile(r"(?<![A-Za-z\d])([A-Za-z]{1,20}),?\Z")
_JOINING = {"and", "or", "nor", "plus", "minus", "times", "by", "of", "over", "than", "not", "if", "whether", "both", "either", "neither"}


def tidied(text: str) -> str | None:
    """Without white space, a final full stop, what encloses all of it and a calculation before it; ``None`` for what says nothing."""
    text = text.strip().removesuffix(".").rstrip()
    while True:
        before = text
        for opening, closing in _PAIRS:
            inner = text[len(opening) : -len(closing)]
            if len(text) >= len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing) and opening not in inner:
                text = inner.strip().removesuffix(".").rstrip() if not inner.endswith("\\") else text
        if text.count("$") == 1 and not text.endswith("\\$"):  # of a price, or of a formula whose other half was lost
            text = text.strip("$").strip().removesuffix(".")
        if text == before:
            break
    left, equals, right = text.rpartition("=")
    if equals and right.strip(" $") and any(map(str.isdigit, left)) and _ARITHMETIC.fullmatch(left):  # 10 + 5 = 15
        return tidied(right)
    if _NOTHING.fullmatch(text) or (len(text) < 40 and _PLACEHOLDER.fullmatch(text)):
        return None
    return text


def read_answer(rest: str) -> str | None:
    """The answer at the beginning of what follows "the answer is": a formula, a choice letter, a quantity, or the sentence."""
    rest = _skipped(rest)
    if _REFUSED.match(rest) or _PRAISED.match(rest):
        return None
    fence = _FENCE.match(rest)
    if fence:
        return tidied(rest[fence.end() :].partition("```")[0])
    if rest.startswith("`"):
        return tidied(rest[1:].partition("`")[0])
    formulas = _formulas(rest)
    if formulas is not None:
        return tidied(", ".join(formulas)) if formulas else None
    letter = _LETTER.match(rest)
    if letter:
        return (letter[1] or letter[2]).upper()
    return tidied(_sentence(rest).strip(_TRAILING))


def read_short(rest: str) -> str | None:
    """As :func:`read_answer`, but only a formula, a choice letter or a quantity: "the correct option is to wait" has none."""
    begin = _skipped(rest)
    is_short = _LETTER.match(begin) or _QUANTITY.match(begin) or begin.startswith(("$", "\\(", "\\["))
    return read_answer(begin) if is_short else None


def read_before(text: str) -> str | None:
    """The formula, choice letter or number at the end of what comes before "is the answer"; part of a calculation or a list is none."""
    text = text.rstrip()
    bare = text.rstrip(_TRAILING)
    marks = text[len(bare) :].strip()
    text = bare
    for opening, closing in (("$", "$"), ("\\(", "\\)")):
        start = text.rfind(opening, 0, -len(closing)) if text.endswith(closing) else -1
        if start >= 0:
            found = tidied(text[start:])
            break
    else:
        start = max(map(text.rfind, " \t\n$*_`=")) + 1
        start -= text[start - 1 : start] == "$"  # of a price
        word = _SHORT_WORD.fullmatch(text, start)
        found = None if word is None else (word[1] or word[2] or "").upper() or tidied(word[0])
    if found is None or not text[:start].endswith(marks):
        return None
    before = text[:start].removesuffix(marks)
    lead = before.rstrip()
    if not lead or "\n" in before[len(lead) :] or lead[-1] in ".:;=":
        return found
    said = _LAST_WORD.search(lead, max(0, len(lead) - 24))
    return found if said is not None and said[1].lower() not in _JOINING else None


def _skipped(rest: str) -> str:
    """Without decorations, colons and adverbs before the answer."""
    start = 0
    while True:
        before = start
        while start < len(rest) and rest[start] in "*_: \t\r\n：=":
            start += 1
        ruler = _RULER.match(rest, start)
        start = ruler.end() if ruler else start
        if rest[start - 1 : start + 2] in ("\n- ", "\n• "):
            start += 2
        word = _SKIPPED.match(rest, start)
        start = word.end() if word else start
        if start == before:
            return rest[start:]


def _formulas(rest: str) -> list[str] | None:
    """Formulas between mathematical delimiters, the last of a chain of equations; ``None`` if the text does not begin with one.

    A formula that is opened and not closed gives an empty list.
    """
    found: list[str] = []
    position = 0
    while True:
        content, end = _formula(rest, position)
        if content is None:
            return found if found or end < 0 else None
        scale = _SCALE.match(rest, end)
        found.append(content if scale is None else f"{content} {scale[1]}")
        between = _BETWEEN.match(rest, end)
        if between is None:
            return found
        follows = _formula(rest, between.end())[0]
        if between[1] == "=":
            number = _QUANTITY.match(rest, between.end())
            if follows is None:
                return [*found[:-1], number[0]] if number else found
            found.pop()
        elif follows is None:
            return found
        position = between.end()


def _formula(rest: str, start: int) -> tuple[str | None, int]:
    """Content and end of a formula that begins here; an end of -1 says that it is not closed."""
    for opening, closing in _DISPLAY.items():
        if rest.startswith(opening, start):
            end = rest.find(closing, start + 2)
            return (None, -1) if end < 0 else (rest[start + 2 : end].strip(), end + 2)
    if not rest.startswith("$", start):
        return None, 0
    end = start + 1
    while True:  # the next dollar sign that is not escaped
        end = rest.find("$", end)
        if end < 0:
            return (None, 0 if _QUANTITY.match(rest, start) else -1)
        if rest[end - 1] != "\\":
            break
        end += 1
    content = rest[start + 1 : end]
    money = bool(content[:1].isdigit() or content[:1] == ".") and bool(_PROSE.search(_COMMAND.sub(" ", content)))
    return (None, 0) if money or not content.strip() else (content.strip(), end + 1)


def _sentence(rest: str) -> str:
    """Up to the end of the sentence, the line, or the clause."""
    quantity = _QUANTITY.match(rest)
    start = quantity.end() if quantity else 0
    end = _SENTENCE_END.search(rest, start)
    sentence = rest[: end.start()] if end else rest
    for pattern in (_AFTER_QUANTITY, _CLAUSE) if quantity else (_CLAUSE,):
        clause = pattern.search(sentence, start)
        sentence = sentence[: clause.start()] if clause else sentence
    return sentence.rstrip(",;: ")
