"""Answers in texts as models write them."""

from __future__ import annotations

import pytest

from ppl_llm import extract_answer
from ppl_llm.answers.extraction import FORMS


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\framebox{204} minutes", "204"),
        (r"first \boxed{1}, hence \fbox{2}", "2"),
        (r"\boxedanswer{3}", None),
        ("72 / 3 = 24\n#### 24", "24"),
        ("72 / 3 = 24\n####   1,024.  \n", "1,024"),
        ("#### Step 1: add\nthen go on", None),
        ("The final answer is $\\frac{1}{2}$. I hope that this is correct.", r"\frac{1}{2}"),
        ("The answer is \\(x^2 + 1\\).", "x^2 + 1"),
        ("the answer is \\[5\\]", "5"),
        ("The answer is $$5$$.", "5"),
        ("**Final Answer:** 42", "42"),
        ("**Final Answer**: **42**", "42"),
        ("Final answer:\n17", "17"),
        ("answer = -5", "-5"),
        ("The answer is 3.14.", "3.14"),
        ("The answer is 3.14. It was easy.", "3.14"),
        ("The answer is 5.\nNo, the answer is 6.", "6"),
        ("The answer is Evelyn.", "Evelyn"),
        ("The answer is (B) 12", "B"),
        ("Therefore the answer is B.", "B"),
        ("Therefore the answer is (b).", "B"),
        ("The correct answer is option D", "D"),
        ("The answer is Ben", "Ben"),
        ("the answer is x", "x"),
        ("The answer is", None),
        ("The final answer is $\\boxed{4", None),
        ("we look for an answer here", None),
        ("So:\n(B)", "B"),
        ("So:\n**C**", "C"),
        ("So:\n\\textbf{(A)}", "A"),
        ("So:\nI", None),
        ("First: 12 + 5 = 17", None),
        ("<think>\\boxed{3}</think> the answer is 5", "5"),
        ("<think>\\boxed{3}</think> as I said", "3"),
        ("<think>\\boxed{3} and so on", "3"),
        ("#### 7\nThe answer is 8.", "8"),
        ("The answer is 8.\n#### 7", "7"),
        ("\\boxed{6}\nThe answer is 8.\n#### 7", "6"),
    ],
)
def test_forms(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_chosen_forms() -> None:
    text = "\\boxed{6}\n<answer>9</answer> The answer is 8.\n#### 7"
    assert {form: extract_answer(text, [form]) for form in FORMS} == {
        "boxed": "6",
        "prefilled": None,
        "tag": "9",
        "hash": "7",
        "phrase": "8",
        "choice": None,
    }
    assert extract_answer(text, ["phrase", "hash"]) == "7"  # the order is that of FORMS
    assert extract_answer("the answer is 8", ["boxed"]) is None
    with pytest.raises(ValueError, match="unknown form of answers 'box'; known: boxed, prefilled, tag, hash, phrase, choice"):
        extract_answer(text, ["box"])
