"""Deliberately wrong weights and states of constrained steps: more of the table of tests/helpers/mutants.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ppl_llm.constraints import Constraint, ConstraintStates, Product, Vocabulary
from ppl_llm.constraints.base import ProductStates
from ppl_llm.context import Context
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding.constrained_sampler import ConstrainedSampler, RestrictedDraw, exact_masks, generated
from ppl_llm.lm.decoding.decoder import StepTask
from tests.helpers.mutants import mutant

STEPS = "tests/ppl_llm/constraints/test_global.py::test_rejects_wrong_constrained_steps"
LANGUAGES = "tests/ppl_llm/constraints/test_global.py::test_rejects_wrong_languages"
REJECTION = "tests/ppl_llm/constraints/test_rejection.py::test_rejects_other_weights"


# Weights of restricted draws
@mutant("no mass of what may follow", STEPS)
class NoMass(ConstrainedSampler):
    """The renormalised model taken for the model given the language: local semantics under the global name."""

    def _draw(self, *args: Any) -> RestrictedDraw:
        draw = super()._draw(*args)
        return draw._replace(log_masses=torch.where(draw.log_masses == -torch.inf, -torch.inf, 0.0).double())


@mutant("masses of the unwarped model", STEPS)
class UnwarpedMass(ConstrainedSampler):
    """The masses from before ``top_p``, while tokens are drawn after it."""

    def _draw(self, logits: Tensor, options: StepOptions, states: ConstraintStates, u: Tensor) -> RestrictedDraw:
        kept = logits.log_softmax(-1).masked_fill(~exact_masks(states, self._vocabulary), -torch.inf)
        draw = super()._draw(logits, options, states, u)
        return draw._replace(log_masses=torch.where(draw.log_masses == -torch.inf, -torch.inf, kept.logsumexp(-1).double()))


# States
@mutant("states of before the resampling", STEPS)
class StaleStates(ConstrainedSampler):
    """States that stay in their place while resampling moves the particles."""

    written: ClassVar[WeakKeyDictionary[Vocabulary, Context]] = WeakKeyDictionary()
    """What each sequence had written at the end of the step before."""

    def sample(self, task: StepTask, constraint: Constraint, log_masses: Tensor) -> None:
        super().sample(task, constraint, log_masses)
        self.written[self._vocabulary] = task.context.extend(task.tokens.view(*task.context.batch_shape, -1), stop=task.options.stop)

    def _states(self, task: StepTask, constraint: Constraint, sequences: Tensor) -> ConstraintStates:
        before = self.written.get(self._vocabulary, task.context)
        return constraint.states(self._vocabulary, generated(before, sequences))


WRONG_SAMPLERS: dict[str, tuple[type[ConstrainedSampler], dict[str, Any]]] = {
    "no mass": (NoMass, {}),
    "unwarped mass": (UnwarpedMass, {"top_p": 0.87}),
    "stale states": (StaleStates, {}),
}
"""With the options of the model that show the bug."""


@mutant("the end of a text wherever it comes", LANGUAGES)
class EndsAnywhere(Product):
    """May-end ignored: the end of the text is never masked."""

    def states(self, vocabulary: Vocabulary, tokens: Tensor) -> ProductStates:
        class States(ProductStates):
            def may_end(self) -> Tensor:
                return torch.ones_like(super().may_end())

            def select(self, rows: Tensor) -> ProductStates:
                return States([part.select(rows) for part in self._parts])

        return States([constraint.states(vocabulary, tokens) for constraint in self.constraints])


WRONG_LANGUAGES: dict[str, type[Product]] = {"ends anywhere": EndsAnywhere}


# Weights of rejection
@mutant("one over the draws until the first that is accepted", REJECTION)
def first_draw_only(masses: Tensor, accepts: Callable[[int], bool], draw: Callable[[Tensor], int]) -> tuple[int, float]:
    """As if nothing were removed, and biased even then."""
    draws = 0
    while float(masses.sum()) > 0:
        token, draws = draw(masses), draws + 1
        if accepts(token):
            return token, 1.0 / draws
        masses[token] = 0.0
    return 0, 0.0


@mutant("one over the draws but one until the second that is accepted", REJECTION)
def without_removal(masses: Tensor, accepts: Callable[[int], bool], draw: Callable[[Tensor], int]) -> tuple[int, float]:
    """Right if nothing were removed."""
    draws, first = 0, -1
    while float(masses.sum()) > 0:
        token, draws = draw(masses), draws + 1
        if accepts(token):
            if first >= 0:
                return first, 1.0 / (draws - 1)
            first = token
        else:
            masses[token] = 0.0
    return 0, 0.0


@mutant("one, as with a mask", REJECTION)
def certain(masses: Tensor, accepts: Callable[[int], bool], draw: Callable[[Tensor], int]) -> tuple[int, float]:
    """Rejection until acceptance with no weight: the renormalised model."""
    while float(masses.sum()) > 0:
        if accepts(token := draw(masses)):
            return token, 1.0
        masses[token] = 0.0
    return 0, 0.0


WRONG_ADAPTIVE_REJECTIONS = [first_draw_only, without_removal, certain]


# Semantic potentials
@mutant("a critic that reads on behind its position", "tests/ppl_llm/programs/test_every.py::test_rejects_critics_that_read_on")
def whole_text(pattern: Any, text: str) -> str:
    """The beginning of the next word judged as if it were one, in the place of the text up to the last whole word."""
    return text


WRONG_CUTS = [whole_text]
