"""One reasoning step as a distribution, and restricted by a constraint as a proposal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ..constraints.base import Constraint
from ..context import DEFAULT_STOP, PAD, Context
from ..inference.util.checked import checked
from ..lm.base import StepOptions, constrainable, language_model, step_limits, step_shape
from ..lm.token_figures import log_prob_figure, want
from .rounding import TOLERATED, rounding_unit

_COLD = 1e-4
"""A temperature at which logits that differ at all do so by many nats."""


class LLMStep(TorchDistribution):
    """The next step of a context: tokens from a language model up to a delimiter, the end of the text or ``max_tokens``.

    A value is a long tensor ``[*batch_shape, max_tokens]`` padded with -1. A sequence that is done emits only padding, with log-probability
    exactly 0. :meth:`log_prob` is that of the warped distribution that :meth:`sample` draws from, the end of the step included. The
    constructor does no work and :meth:`expand` is O(1).

    :param Context context: where the step starts; ``batch_shape`` is its own until a plate expands it.
    :param stop: delimiter string(s), or ``markdown`` for a blank line outside of code fences and display mathematics; the delimiter
        belongs to the step. Give the same to :meth:`Context.extend`.
    :param int max_tokens: longest step; a longer one continues in the next step.
    :param temperature: divides the logits: a number, or a tensor with one for each particle, ``[N]``, or ``[N, 1]`` inside of a plate of
        problems; the batch shape of the step is then that of context and temperature together. It may be the value of a latent site.
    :param float top_p: nucleus sampling, after ``top_k``.
    :param int top_k: sampling from the most probable tokens only.
    :param int tokens_per_step: steps of so many tokens each, in place of ``stop`` and ``max_tokens``: no delimiter ends them earlier,
        only the end of the text or of the model's context. Extend the context with ``stop=()``.
    :param Constraint constraint: on what follows the prompt (:mod:`ppl_llm.constraints`), this step and the steps before it. The
        distribution is the language model's renormalised at each token over what may follow: a distribution of its own, not the language
        model given that the text is in the language. For that, give the algorithm ``proposals=constraint``. Where nothing may follow, the
        step ends.
    :raises ValueError: for options out of range, or a temperature of another shape.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    @checked
    def __init__(
        self,
        context: Context,
        stop: str | tuple[str, ...] = DEFAULT_STOP,
        max_tokens: int = 256,
        temperature: float | Tensor = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        tokens_per_step: int | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        stop, max_tokens = step_limits(stop, max_tokens, tokens_per_step)
        batch_shape = step_shape(context.batch_shape, temperature)
        self._init(context, StepOptions(stop, max_tokens, temperature, top_p, top_k, constraint), batch_shape)

    def _init(self, context: Context, options: StepOptions, batch_shape: torch.Size) -> None:
        self.context, self.options = context, options
        self._drawn: tuple[Tensor, Tensor | None] | None = None
        super().__init__(batch_shape, torch.Size([options.max_tokens]), validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(PAD, self.context.lm.vocab_size - 1), 1)

    @property
    def has_enumerate_support(self) -> bool:
        return language_model(self.context).enumerable

    def expand(self, batch_shape: torch.Size | list[int], _instance: Any = None) -> LLMStep:
        new = LLMStep.__new__(LLMStep)
        new._init(self.context, self.options, torch.Size(batch_shape))
        return new

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = torch.Size()) -> Tensor:
        batch_shape = torch.Size(sample_shape) + self.batch_shape
        tokens, log_probs = language_model(self.context).sample_step(self.context, batch_shape, self.options)
        self._drawn = tokens, log_probs
        return tokens

    def sample_where(self, chosen: Tensor) -> Tensor:
        """A step where ``chosen [*batch_shape]``; the other sequences cost nothing and get padding."""
        context = self.context.expand(torch.broadcast_shapes(self.batch_shape, self.context.batch_shape))
        skipping = replace(context, done=context.done | ~chosen.to(context.done.device).expand_as(context.done))
        return language_model(context).sample_step(skipping, self.batch_shape, self.options).tokens

    def restricted_to(self, constraint: Constraint) -> ConstrainedStep:
        """Proposes this step restricted to a language, and under the constraint of its own if it has one."""
        o, own = self.options, self.options.constraint
        if own is None:
            return ConstrainedStep(self.context, o, constraint, self)
        return ConstrainedStep(self.context, StepOptions(o.stop, o.max_tokens, o.temperature), own & constraint)

    def proposed_by(self, proposal: Any) -> None:
        """A value is about to be drawn from ``proposal`` and scored here: where both read the same logits, one pass is enough for both."""
        figure = log_prob_figure(self.options)
        if figure is None or not isinstance(proposal, LLMStep) or proposal.options.constraint is not None:
            return
        if proposal.context is self.context:
            want(self.context, figure, once=True)

    @property
    def mode(self) -> Tensor:
        """The greedy step: at each place the most probable token, under a constraint of those that may follow. It knows no temperature."""
        if self.options.constraint is None:
            options = replace(self.options, temperature=1.0, top_p=1.0, top_k=1)
        else:  # of which the most probable token of all may be none
            options = replace(self.options, temperature=_COLD, top_p=1.0, top_k=None)
        return language_model(self.context).sample_step(self.context, self.batch_shape, options).tokens

    def log_prob(self, value: Tensor) -> Tensor:
        if self._drawn is not None and value is self._drawn[0] and self._drawn[1] is not None:
            return self._drawn[1]
        batch_shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return language_model(self.context).step_log_prob(self.context, value.expand(*batch_shape, value.shape[-1]), self.options)

    def rounding(self, value: Tensor) -> float:
        """By how many nats two evaluations of :meth:`log_prob` may differ, given the number format of the language model."""
        longest = int((value != PAD).sum(-1).max()) if value.numel() else 0
        return TOLERATED * rounding_unit(self.context.lm) * longest

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Every step that is possible for some sequence: ``[K, *batch_shape or 1s, max_tokens]``; for enumerable models only."""
        lm = language_model(self.context)
        if not lm.enumerable:
            raise NotImplementedError(f"the steps of {type(lm).__name__} cannot be listed; use a TabularLM for exact enumeration")
        values = lm.enumerate_steps(self.context, self.options)  # type: ignore[attr-defined]
        values = values.view(-1, *(1,) * len(self.batch_shape), self.options.max_tokens)
        return values.expand(-1, *self.batch_shape, -1) if expand else values


class ConstrainedStep(LLMStep):
    """Proposes the steps of a language model restricted by a constraint: what ``proposals=constraint`` makes of an :class:`LLMStep`, and
    :class:`~ppl_llm.StepProposal` of another language model's.

    With x drawn here and p the unrestricted model, ``log p(x) - log_prob(x)`` is the log of the product of the masses of what may follow,
    so that particles weighed with p / q have the target p(x) 1[x in L]. A step after which nothing may follow has p(x) = 0.

    :param Context context: where the step starts.
    :param StepOptions options: of the unrestricted model.
    :param LLMStep prior: the unrestricted step if it has the same context and options: it is told its log-probability of what is drawn,
        which saves a forward pass.
    :raises TypeError: for a language model that does not tell the mass of what a constraint allows.
    :raises ValueError: for a context with a thinking budget.
    """

    def __init__(self, context: Context, options: StepOptions, constraint: Constraint, prior: LLMStep | None = None) -> None:
        constrainable(language_model(context))
        if context.thinking is not None:
            raise ValueError(
                f"a constraint and a thinking budget do not go together: what is written in place of {context.thinking.close!r} need not "
                "be in its language; leave out the constraint, or waits, close and max_thinking"
            )
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
