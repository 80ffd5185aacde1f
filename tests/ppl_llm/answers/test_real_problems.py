"""Real problems: MATH, AIME and AMC with their gold answers, where the folder with them lies beside the repository."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ppl_llm import Problem, extract_answer, load_problems
from ppl_llm.answers.equivalence import MathEquivalence, decide
from ppl_llm.answers.normalization import normalized
from ppl_llm.lm.prompts import PromptBuilder
from tests.helpers.architectures import FORMATS, tokenizer

DATA = Path(__file__).parents[4] / "shared" / "data"
SIZES = {"math100": 100, "aime2024": 30, "amc2023": 40}

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the folder shared/data with MATH, AIME and AMC is not beside the repository")

NOT_EXTRACTED: dict[str, str] = {}
"""Problems of MATH whose gold solution does not yield the gold answer, each with the reason: none."""

SAME_GOLD = {("55^\\circ", "55"), ("145^\\circ", "145")}
"""Gold answers of different problems that are written differently and count as the same."""


@pytest.fixture(scope="module")
def equivalent() -> MathEquivalence:
    pytest.importorskip("math_verify", reason="math-verify is not installed (extra: math)")
    return MathEquivalence(timeout=60)


def problems(name: str) -> list[Problem]:
    return list(load_problems(DATA / f"{name}.jsonl"))


@pytest.mark.parametrize("name", SIZES)
def test_loading(name: str) -> None:
    loaded = problems(name)
    assert len(loaded) == SIZES[name]
    assert all(problem.text and problem.answer for problem in loaded)
    if name == "math100":
        assert {problem.metadata["level"] for problem in loaded} == {1, 2, 3, 4, 5}
    else:
        assert {"27", "36", "45", "204"} & {problem.answer for problem in loaded}  # AMC writes 27.0


def test_gold_solutions_of_math_give_the_gold_answers(equivalent: MathEquivalence) -> None:
    wrong = {
        problem.id: extract_answer(problem.metadata["solution"])
        for problem in problems("math100")
        if not equivalent(extract_answer(problem.metadata["solution"]), problem.answer)
    }
    assert wrong.keys() == NOT_EXTRACTED.keys(), wrong
    # The same answer in another dress, through the comparison itself.
    for problem in problems("math100"):
        gold = str(problem.answer)
        dressed = gold.replace("\\frac", "\\dfrac").replace("(", "\\left(").replace(")", "\\right)").replace("\\left\\left", "\\left")
        dressed = dressed.replace("\\right\\right", "\\right")
        assert equivalent(f"$ {dressed} $.", gold), gold
        assert equivalent(f"{dressed} + 0", gold) or not gold.lstrip("-").isdigit(), gold
    assert equivalent.timeouts == 0


def test_different_gold_answers_are_different(equivalent: MathEquivalence) -> None:
    golds = sorted({str(problem.answer) for problem in problems("math100")})
    same = {(a, b) for a, b in itertools.combinations(golds, 2) if equivalent(a, b)}
    assert {frozenset(pair) for pair in same} <= {frozenset(pair) for pair in SAME_GOLD}, same
    assert equivalent.timeouts == 0


def test_gold_solutions_of_aime() -> None:
    """Solutions by several authors in one text, which write ``\\textbf{(113) }`` and ``25`` for ``025``; the last of them counts."""
    for problem in problems("aime2024"):
        found, gold = normalized(str(extract_answer(problem.metadata["solution"]))), str(problem.answer)
        assert found == gold or decide(found, gold), (problem.id, found, gold)


@pytest.mark.parametrize("chat", FORMATS)
def test_prompts(chat: str) -> None:
    for kind in ("byte-level", "sentencepiece"):
        builder = PromptBuilder(tokenizer(kind, chat), system_prompt="Reason step by step, and put the answer within \\boxed{}.")
        for name in SIZES:
            for problem in problems(name):
                text, ids, _ = builder(problem.text)
                assert text == problem.text
                decoded = builder.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
                assert problem.text.strip() in decoded and decoded.count("Reason step by step") == 1
                expected = FORMATS[chat].prompt
                assert decoded.startswith(expected[: expected.index("S")]) and decoded.endswith(expected[expected.index("U") + 1 :])
