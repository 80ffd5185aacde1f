"""One name for one thing: words that were given up do not come back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("inference", "distributions", "ppl_llm", "tests", "docs", "notebooks", "benchmarks")
KINDS = (".py", ".md", ".js", ".css", ".html", ".toml", ".ipynb", ".jsonl", ".svg")


class Word(NamedTuple):
    """A word that is no name here.

    :ivar str pattern: regular expression; letters of either case.
    :ivar str instead: what to say.
    :ivar tuple only_in: folders to which the rule is confined; everywhere by default.
    :ivar dict allowed: path or folder to the reason why the word is right there.
    """

    pattern: str
    instead: str
    only_in: tuple[str, ...] = ("",)
    allowed: dict[str, str] = {}  # noqa: RUF012 - never changed


MODELS = ("ppl_llm/lm", "ppl_llm/kv_cache", "ppl_llm/reward", "ppl_llm/context.py", "ppl_llm/context_cache.py")
WORDS = {
    "lane": Word(r"(?<![a-z])lanes?(?![a-z])", "particle in inference, sequence in language models"),
    "slot": Word(
        r"(?<![a-z])(?<!__)slots?(?![a-z])(?!__)", "sequence", MODELS
    ),  # in inference: the index of the particle that holds the reference
    "slab": Word(r"(?<![a-z])slabs?(?![a-z])", "KV cache"),
    "seat": Word(r"(?<![a-z])(seats?|seating)(?![a-z])", "cache lookup", allowed={"tests/ppl_llm/answers/equivalence.jsonl": "an answer"}),
    "note": Word(r"(?<![a-z])notes(?![a-z])", "cache entries", MODELS),
    "memo": Word(
        r"(?<![a-z])memos?(?![a-z])",
        "cache entry, or cache",
        allowed={"tests/ppl_llm/lm/decoding/test_joint_decoding.py": "the argument of __deepcopy__"},
    ),
    "move": Word(r"(?<![a-z])(moves|move_\w+|\w+_moves?)(?![a-z])", "decode request", ("ppl_llm/lm", "ppl_llm/kv_cache")),
    "round": Word(
        r"\b(a|the|each|every|last|next|first|per|several|whole|many|number of|of) rounds?\b|(?<=_)rounds?\b|\brounds?(?=_)",
        "step, barrier or iteration",
        allowed={
            "docs/comparison.md": "libraries run in turn, a round of all of them after the other",
            **dict.fromkeys(
                (
                    "docs/turns.md",
                    "ppl_llm/programs/aggregate.py",
                    "ppl_llm/programs/revision.py",
                    "ppl_llm/programs/turns.py",
                    "tests/ppl_llm/programs/test_aggregate.py",
                    "tests/ppl_llm/programs/test_feedback.py",
                    "tests/ppl_llm/programs/test_revision.py",
                ),
                "rounds of revision and aggregation, as the papers have them",
            ),
        },
    ),
    "segment": Word(
        r"(?<![a-z])segments?(?![a-z])",
        "step",
        ("ppl_llm", "distributions", "docs", "notebooks", "README.md"),
        {"ppl_llm/kv_cache": "tokens of one sequence in a packed pass"},  # in inference: the program between two barriers
    ),
    "generation": Word(
        r"(?<!add_)(?<!step_)(?<![a-z])generations?(?![a-z_])(?! config)", "completion; barriers or resampling record in inference"
    ),
    "law": Word(
        r"(?<!power )(?<!power_)(?<!inference scaling )(?<![a-z])laws?(?![a-z])", "distribution"
    ),  # "Inference Scaling Laws" is the title of the paper on REBASE; power laws are functions
    "honest": Word(r"honest", "calibrated"),
    "pretended": Word(r"pretend", "fake"),
    "stem": Word(r"(?<![a-z.])stems?(?![a-z])", "shared prompt"),
    "anew": Word(r"(?<![a-z])anew(?![a-z])", "again"),
    "go on": Word(r"\b(go|goes|went|going)[ _]on\b", "continue"),
    "what it takes": Word(r"\bwhat it takes\b", "what it needs"),
    "whoever": Word(r"\bwhoever\b|\bwho asks\b", "name who it is"),
    "in whose hands": Word(r"\bin whose hands\b", "name who it is"),
}
SKIPPED = {
    "tests/test_vocabulary.py": "this table",
    "CHANGELOG.md": "says what was renamed",
    "docs/study/outcomes.jsonl.gz": "data",
}


def text_of(path: Path) -> str:
    """Without the pictures of a notebook, in whose characters any word may turn up."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    parts = []
    for cell in json.loads(text)["cells"]:
        parts.append("".join(cell["source"]))
        for output in cell.get("outputs", []):
            data = {**output.get("data", {}), "stream": output.get("text", "")}
            parts += ["".join(value) for kind, value in data.items() if kind in ("stream", "text/plain", "text/markdown")]
    return "\n".join(parts)


def texts() -> Iterator[tuple[str, str]]:
    """Path and text of the files that people read or write; links to folders are followed once, by their own names."""
    found = [path for path in ROOT.iterdir() if path.suffix in KINDS or path.name == "Makefile"]
    for folder in FOLDERS:
        found += [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in KINDS]
    for path in found:
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and name not in SKIPPED and "/_build/" not in name:
            yield name, text_of(path)


@pytest.fixture(scope="module")
def everything() -> dict[str, str]:
    return dict(texts())


def uses(word: Word, files: dict[str, str]) -> list[str]:
    """``path:line: text`` of each use that nothing allows."""
    pattern = re.compile(word.pattern, re.IGNORECASE)
    found = []
    for name, text in files.items():
        if not name.startswith(word.only_in) or name.startswith(tuple(word.allowed) or "\0"):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                found.append(f"{name}:{number}: {line.strip()[:120]}")
    return found


@pytest.mark.parametrize("name", WORDS)
def test_old_words_do_not_come_back(name: str, everything: dict[str, str]) -> None:
    found = uses(WORDS[name], everything)
    assert not found, f"say {WORDS[name].instead!r}:\n" + "\n".join(found)


@pytest.mark.parametrize("name", WORDS)
def test_exceptions_are_used(name: str, everything: dict[str, str]) -> None:
    """A reason without a use is dropped."""
    word = WORDS[name]
    without = word._replace(allowed={}, only_in=("",))
    for place in word.allowed:
        files = {path: text for path, text in everything.items() if path.startswith(place)}
        assert uses(without, files), f"{place} does not say {name!r} any more"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("lane", "num_lanes = 3"),
        ("lane", "Lanes that died"),
        ("slot", "the slots of the batch"),
        ("round", "in the last round"),
        ("round", "last_round: bool"),
        ("generation", "a budget of 32 generations"),
        ("law", "the law of a step"),
        ("law", "scaling laws"),
        ("go on", "def go_on(self)"),
    ],
)
def test_a_use_is_found(name: str, line: str) -> None:
    assert uses(WORDS[name], {f"{WORDS[name].only_in[0]}/some.py".lstrip("/"): f"x\n{line}\n"})


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("lane", "independent planes"),
        ("slot", "__slots__ = ()"),
        ("round", "round(x, 3), and the other way round"),
        ("generation", "add_generation_prompt, generation_config, ForConditionalGeneration"),
        ("law", "a power law, flaws, the power_law of coverage"),
        ("law", "*Inference Scaling Laws: An Empirical Analysis"),
        ("stem", "path.stem"),
    ],
)
def test_other_words_are_left_alone(name: str, line: str) -> None:
    assert not uses(WORDS[name], {f"{WORDS[name].only_in[0]}/some.py".lstrip("/"): line})
