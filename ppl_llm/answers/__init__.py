"""Answers in the texts of solutions: finding them, comparing them, voting on them."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .equivalence import MathEquivalence
    from .extraction import FORMS, extract_answer
    from .voting import Answer, argmax, majority, weighted_majority

_MODULES = {
    "FORMS": "extraction",
    "Answer": "voting",
    "MathEquivalence": "equivalence",
    "argmax": "voting",
    "extract_answer": "extraction",
    "majority": "voting",
    "weighted_majority": "voting",
}

__all__ = [
    "FORMS",
    "Answer",
    "MathEquivalence",
    "argmax",
    "extract_answer",
    "majority",
    "weighted_majority",
]

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
