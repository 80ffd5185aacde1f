"""Which tokens may follow a text: grammars, automata, lists and predicates."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .automaton import Automaton, TokenSet
    from .base import Constraint, ConstraintStates, Product, Vocabulary
    from .choices import Choices
    from .grammar import JsonSchema, Lark, Regex
    from .per_step import PerStep
    from .predicate import Predicate

_MODULES = {
    "Automaton": "automaton",
    "Choices": "choices",
    "Constraint": "base",
    "ConstraintStates": "base",
    "JsonSchema": "grammar",
    "Lark": "grammar",
    "PerStep": "per_step",
    "Predicate": "predicate",
    "Product": "base",
    "Regex": "grammar",
    "TokenSet": "automaton",
    "Vocabulary": "base",
}

__all__ = [
    "Automaton",
    "Choices",
    "Constraint",
    "ConstraintStates",
    "JsonSchema",
    "Lark",
    "PerStep",
    "Predicate",
    "Product",
    "Regex",
    "TokenSet",
    "Vocabulary",
]

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
