"""What a judge is asked by default."""

from __future__ import annotations

_TEMPLATE = "Problem:\n{problem}\n\nProposed solution:\n{answer}\n\n{question} {request}"
_STEP_TEMPLATE = "Problem:\n{problem}\n\nSteps so far:\n{before}\n\nNext step:\n{step}\n\n{question} {request}"
_META_TEMPLATE = (
    "Problem:\n{problem}\n\nProposed solution:\n{answer}\n\nCritique of it:\n{critique}\n\n"
    "Is this critique sound: does it find what is wrong, and nothing that is right? Answer with one word, Yes or No."
)
WORD = "Answer with one word, Yes or No."
THINK = "Think it through step by step, then end with '{verdict} Yes' or '{verdict} No'."


def judge_text(problem: str, answer: str, step: str | None, request: str, partial: bool) -> str:
    """The question whether an answer is right.

    :param str step: that is judged, after the beginning ``answer``; ``None`` for the answer itself.
    :param str request: how the judge shall answer.
    :param bool partial: whether the answer may not have come to its end.
    """
    if step is not None:
        question = "Is the next step correct, given the steps so far?"
        before = answer.strip() or "(none)"
        return _STEP_TEMPLATE.format(problem=problem, before=before, step=step.strip(), question=question, request=request)
    question = "Are all steps of the solution so far correct?" if partial else "Is the final answer of the solution correct?"
    return _TEMPLATE.format(problem=problem, answer=answer.strip(), question=question, request=request)


def meta_text(problem: str, answer: str, critique: str) -> str:
    """The question whether a critique of an answer is sound."""
    return _META_TEMPLATE.format(problem=problem, answer=answer.strip(), critique=critique.strip())
