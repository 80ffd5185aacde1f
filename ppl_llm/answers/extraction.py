"""Answers in the text of solutions. Every search is linear in the length of the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from .code_block import last_code_block
from .reading import read_answer, read_before, read_short, tidied

_END_OF_THOUGHT = "</think>"
_END_OF_TURN = re.compile(
    r"</s>|<eos>|<end_of_turn>|<[|｜](?:im_end|eot_id|eom_id|end_of_text|endoftext|end|return|end[▁_ ]of[▁_ ]sentence)[|｜]>"
)
_SPECIAL = re.compile(r"<[|｜][A-Za-z0-9_▁ -]{1,40}[|｜]>|<(?:s|bos|start_of_turn)>|\[/?INST\]")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_WORD = re.compile(r"(?:\s{1,8}|(?=\d))([^\s$]{1,80})")
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_MARKUP = re.compile(
    r"<(b|strong|i|em|u|mark|code|tt|kbd|span|p|div|center|big|small|font|h[1-6])(?:\s[^<>]{0,100})?>"
    r"((?:[^<]|<(?![/A-Za-z])){1,200})</\1>",
    re.IGNORECASE,
)
_LINE_BREAK = re.compile(r"<br\s?/?>", re.IGNORECASE)
_NESTED = 3
"""Depth to which marks of HTML are dropped."""
_ANSWER = re.compile(r"(?<![A-Za-z])(?:answers?|((?:correct|right|best)\s{1,4}(?:option|choice|letter)))(?![A-Za-z])|答案", re.IGNORECASE)
_IS_THE = re.compile(r"\s(?:is|are)\s{1,4}(?:the|our|my)\s{1,4}(?:(?:final|correct|right|only|best)\s{1,4}){0,2}\Z", re.IGNORECASE)
_CONCLUDED = re.compile(
    r"(?:\s{1,4}to\s{1,4}(?:the|this|our)\s{1,4}(?:\w{1,12}\s{1,4})?(?:question|problem))?"
    r"[*_]{0,3}(?:[.!][*_]{0,3}(?=\s|\Z)|[ \t]{0,4}(?:\n|\Z)|,?\s{1,4}(?:because|since|as)(?![A-Za-z]))",
    re.IGNORECASE,
)
_CORRECT = re.compile(
    r"(?<![A-Za-z])(?:option|choice|answer)\s{1,4}(?:\(([A-J])\)|([A-J]))\s{1,4}is\s{1,4}(?:the\s{1,4})?(?:correct|right|best)"
    r"(?:\s{1,4}(?:one|option|choice))?(?=[*_]{0,3}[.!\n]|[*_ ]{0,3}\Z|,?\s{1,4}(?:because|since|as)(?![A-Za-z]))",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"[*_`'\")\]]{0,6}"
    r"(?:,\s[^.:=,\n]{1,60},|\s{1,8}\([^()\n]{1,60}\)|\s{1,8}(?:to|for|of|in|choice|option|letter|value|number|here)(?![A-Za-z])[^.:=\n]{0,60}?)?"
    r"(?:\s{1,8}(?:is|are|was|were|becomes?|equals?|(?:would|will|should|must|can|could)\s{1,4}(?:\w{1,12}\s{1,4})?be)(?![A-Za-z])"
    r"|\s{0,8}(?:[:=：]|是|为|為))",
    re.IGNORECASE,
)
_ARTICLES = {"the", "the final", "the correct", "final", "so the", "and the", "my", "my final", "thus the", "hence the", "therefore the"}
"""What stands between two phrases that say nothing."""
_HEADING_BEFORE = re.compile(r"[ \t]{0,8}(?:[#>*_-]{1,8}[ \t]{0,4}){0,2}(?:the[ \t]{1,4})?(?:final[ \t]{1,4})?\Z", re.IGNORECASE)
_HEADING_AFTER = re.compile(r"[ \t*_#:：]{0,12}(?:\n|\Z)")
_LONE_LETTER = re.compile(r"(?:(?i:option|choice)\s{1,4})?(?:\(([A-Ja-j])\)|([A-E]))[.:]?")
_FONT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")


def _boxed(text: str) -> str | None:
    closing = _closing_braces(text)
    for box in reversed(list(_BOX.finditer(text))):
        start = box.end()
        while start < len(text) and start - box.end() < 8 and text[start].isspace():
            start += 1
        if text.startswith("{", start):
            content = text[start + 1 : closing[start]] if start in closing else None
        else:
            word = _BARE_WORD.match(text, box.end())
            content = word[1] if word else None
        answer = None if content is None else tidied(content)
        if answer is not None:
            return answer
    return None


def _closing_braces(text: str) -> dict[int, int]:
    """Where the brace that opens at an index is closed; ``-1`` leads to a closing brace that nothing in the text opens, the first one."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}":
            closing.setdefault(opened.pop() if opened else -1, brace.start())
    return closing


def _prefilled(text: str) -> str | None:
    """A text that begins inside a box: its first closing brace without an opening one ends the answer."""
    end = _closing_braces(text).get(-1)
    if end is None or end > 200 or "\n" in text[:end].strip():
        return None
    return tidied(text[:end])


def _tagged(text: str) -> str | None:
    tags = list(_TAG.finditer(text))
    for opening, closing in zip(reversed(tags[:-1]), reversed(tags[1:]), strict=True):
        if not opening[1] and closing[1]:
            content = text[opening.end() : closing.start()]
            answer = _phrase(content) or tidied(content)
            if answer is not None:
                return answer
    return None


def _hash(text: str) -> str | None:
    last = text.rstrip().rpartition("\n")[2].strip()
    if not last.startswith("####") or last.startswith("#####"):
        return None
    return _phrase(last) or tidied(last[4:])


class _Lead(NamedTuple):
    """What announces an answer.

    :ivar int start: where it begins.
    :ivar int end: where the answer begins.
    :ivar str answer: the answer itself, where it comes before: "5 is the answer".
    :ivar bool short: whether only a letter, a formula or a number counts.
    """

    start: int
    end: int
    answer: str | None = None
    short: bool = False


def _phrase(text: str) -> str | None:
    end = len(text)
    # Each phrase is read up to the next one only: what was read is never read again.
    for lead in sorted(_leads(text), reverse=True):
        rest, end = text[lead.end : end], lead.start
        if lead.answer is not None:
            return lead.answer
        box = _BOX.search(rest)
        if box is not None:
            rest = rest[: box.start()]
            if not rest.strip("*_:$ \n"):
                return None  # a box that is empty or not complete is no answer
        answer = read_short(rest) if lead.short else read_answer(rest)
        if answer is not None and answer.lower() not in _ARTICLES:
            return answer
    return None


def _leads(text: str) -> Iterator[_Lead]:
    """Every phrase or heading that announces an answer, or says that something is one."""
    for word in _ANSWER.finditer(text):
        short = word[1] is not None
        after = _AFTER.match(text, word.end())
        if after is not None:
            yield _Lead(word.start(), after.end(), short=short)
            continue
        is_the = _IS_THE.search(text, max(0, word.start() - 40), word.start())
        if is_the is not None and _CONCLUDED.match(text, word.end()):
            before = read_before(text[max(0, is_the.start() - 120) : is_the.start()])
            if before is not None:
                yield _Lead(is_the.start(), word.end(), before)
        elif not short:
            line = text[max(0, word.start() - 32) : word.start()].rpartition("\n")
            begins = bool(line[1]) or word.start() < 32
            heading = _HEADING_AFTER.match(text, word.end()) if begins and _HEADING_BEFORE.match(line[2]) else None
            if heading is not None:
                yield _Lead(word.start(), heading.end())
    for found in _CORRECT.finditer(text):
        yield _Lead(found.start(), found.end(), (found[1] or found[2]).upper())


def _choice(text: str) -> str | None:
    last = text.strip().rpartition("\n")[2].strip("*_$ ")
    letter = _LONE_LETTER.fullmatch(_FONT.sub(r"\1", last).strip()) if len(last) < 80 else None
    return (letter[1] or letter[2]).upper() if letter else None


_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]{0,60}(?:\.\d{1,60})?(?![\w])")


def _last_number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return found[-1].rstrip(",") if found else None


def _whole_text(text: str) -> str | None:
    return text.strip() or None


CODE = "code"
"""The last code block, and nothing else: the text of a program may hold any other form."""

FALLBACKS: dict[str, Callable[[str], str | None]] = {"last-number": _last_number, "text": _whole_text, CODE: last_code_block}
"""Made only where they are asked for by name: guesses where no form is found, and ``code``."""

FORMS: dict[str, Callable[[str], str | None]] = {
    "boxed": _boxed,
    "prefilled": _prefilled,
    "tag": _tagged,
    "hash": _hash,
    "phrase": _phrase,
    "choice": _choice,
}
"""Ways to write an answer, in the order in which they are looked for."""


def answer_forms(fallback: str | None) -> tuple[str, ...]:
    """The forms to look for with a fallback: all, and then the fallback; for ``code`` that alone."""
    return tuple(FORMS) if fallback is None else (CODE,) if fallback == CODE else (*FORMS, fallback)


def extract_answer(text: str, forms: Collection[str] = tuple(FORMS)) -> str | None:
    r"""The answer that a solution gives, in the first of these forms that it has:

    - ``boxed``: the last complete ``\boxed{...}``, ``\fbox{...}`` or ``\framebox{...}`` that is not empty (braces nest; ``\boxed 7``
      without braces is read up to a space or ``$``);
    - ``prefilled``: up to a closing brace that nothing opens, where the text continues a box that the prompt has opened;
    - ``tag``: the last ``<answer>...</answer>``;
    - ``hash``: ``#### 7`` in the last line;
    - ``phrase``: after the last "the final answer is", "answer is", "answer:" or a heading such as ``**Final Answer**``: the formula, the
      choice letter, the number or the rest of the sentence; after "the correct option is" one of the first three; in "5 is the answer"
      and "option B is correct" what comes before;
    - ``choice``: a last line that is a letter, such as ``(B)``.

    White space at both ends, a final full stop, marks of emphasis and code of Markdown and HTML and enclosing ``$`` signs are dropped.
    What says nothing is no answer: ``\boxed{}``, ``\boxed{...}``, "my answer is clear and concise". The text ends
    where a turn of the chat ends, should the model have written ``</s>`` or ``<|im_end|>``. Where it has a ``</think>``, what comes after
    the last one is looked at first.

    The time is linear in the length of the text.

    :param str text: of a solution.
    :param forms: the forms to look for. ``last-number``, the last number of a text that has none of the others, and ``text``, the
        text as a whole, are guesses and must be asked for: ``forms=(*FORMS, "last-number")``; so must ``code``, what the last complete
        code block of Markdown holds.
    :returns: ``None`` where there is none of them.
    :raises ValueError: for a form that does not exist.
    """
    unknown = [form for form in forms if form not in FORMS and form not in FALLBACKS]
    if unknown:
        raise ValueError(f"unknown form of answers {unknown[0]!r}; known: {', '.join((*FORMS, *FALLBACKS))}")
    parts = [text.rpartition(_END_OF_THOUGHT)[2], text] if _END_OF_THOUGHT in text else [text]
    for part in parts:
        turn = _first_turn(part)
        plain = _without_markup(turn)
        for form, find in (*FORMS.items(), *FALLBACKS.items()):
            # A program may write what ends a turn, and a text that is the answer as a whole may hold marks.
            answer = find(plain if form in FORMS else part if form == CODE else turn) if form in forms else None
            if answer is not None:
                return answer
    return None


def _first_turn(text: str) -> str:
    """The text up to the first end of a turn that has something before it, without special tokens that are written out."""
    start = 0
    for end in _END_OF_TURN.finditer(text):
        if not text[start : end.start()].isspace() and end.start() > start:
            return _SPECIAL.sub(" ", text[start : end.start()])
        start = end.end()
    return _SPECIAL.sub(" ", text[start:])


def _without_markup(text: str) -> str:
    """The text without marks of HTML around something, and with line breaks for its line breaks."""
    if "<" not in text:
        return text
    for _ in range(_NESTED):
        text, marks = _MARKUP.subn(r"\2", text)
        if not marks:
            break
    return _LINE_BREAK.sub("\n", text)
