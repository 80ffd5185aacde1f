"""A reasoning step restricted by a constraint, as a proposal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..constraints.base import Constraint
from ..context import Context
from ..lm.base import StepOptions, constrainable, language_model
from .llm_step import LLMStep


class ConstrainedStep(LLMStep):
    """Proposes the steps of a language model restricted by a constraint; :class:`~ppl_llm.StepProposal` makes it.

    With x drawn here and p the unrestricted model, ``log p(x) - log_prob(x)`` is the log of the product of the masses of what may follow,
    so that particles weighed with p / q have the target p(x) 1[x in L]. A step after which nothing may follow has p(x) = 0.

    :param Context context: where the step starts.
    :param StepOptions options: of the unrestricted model.
    :param LLMStep prior: the unrestricted step if it has the same context and options: it is told its log-probability of what is drawn,
        which saves a forward pass.
    :raises TypeError: for a language model that does not tell the mass of what a constraint allows.
    """

    def __init__(self, context: Context, options: StepOptions, constraint: Constraint, prior: LLMStep | None = None) -> None:
        constrainable(language_model(context))
        o = options
        super().__init__(context, o.stop, o.max_tokens, o.temperature, o.top_p, o.top_k, constraint=constraint)
        self._prior = prior

    def expand(self, batch_shape: torch.Size | list[int], _instance: Any = None) -> ConstrainedStep:
        new = ConstrainedStep.__new__(ConstrainedStep)
        new._init(self.context, self.options, torch.Size(batch_shape))
        new._prior = self._prior
        return new

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = torch.Size()) -> Tensor:
        batch_shape = torch.Size(sample_shape) + self.batch_shape
        lm = constrainable(language_model(self.context))
        tokens, log_probs, log_masses = lm.sample_constrained(self.context, batch_shape, self.options)
        self._drawn = tokens, log_probs
        if self._prior is not None:
            self._prior._drawn = tokens, log_probs + log_masses
        return tokens

    def log_prob(self, value: Tensor) -> Tensor:
        """
        :raises NotImplementedError: for another value than the one drawn, with a constraint that is asked token by token: the weights are
            estimates then, and belong to the draw.
        """
        drawn = self._drawn is not None and value is self._drawn[0]
        if not drawn and self.options.constraint is not None and self.options.constraint.asks:
            raise NotImplementedError(
                f"{self.options.constraint!r} gives estimated weights, which belong to a draw and not to a step: it works with SMC, not "
                "with ParticleGibbs and others that keep a trajectory; use Choices, Regex, JsonSchema or Lark there"
            )
        return super().log_prob(value)
