"""A reasoning model under Pyro's own particle filter."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer import SMCFilter
from pyro.infer.smcfilter import SMCState

from ..context import Context
from ..inference.posterior.discrete_marginal import DiscreteMarginal
from ..inference.util.checked import checked
from .models import ReasoningModel

_PARTICLE = "particle"


class SMCFilterAdapter:
    """The two methods ``init`` and ``step`` that :class:`pyro.infer.SMCFilter` wants, for a model of :func:`~ppl_llm.reasoning`.

    Pyro's filter permutes tensors and nothing else. The state is therefore one integer per particle, the row of its context in a batch that
    stays outside; a step looks the rows up and writes the next batch. Steps are proposed from the language model::

        adapter = SMCFilterAdapter(reasoning(lm, prm))
        smc = pyro.infer.SMCFilter(adapter, adapter.guide, num_particles=64, max_plate_nesting=0)
        smc.init(problem)
        while not adapter.done:
            smc.step()
        adapter.answers(smc)

    For comparison and for programs that have such a filter already: it gives no evidence, no trajectories and no ancestors, and keeps its
    weights on torch's default device. :class:`~ppl_llm.SMC` runs the same model with all of them.

    :param ReasoningModel model: of one problem at a time.

    :ivar guide: proposes nothing, so that steps come from the model.
    """

    @checked
    def __init__(self, model: ReasoningModel) -> None:
        self.model = model
        self.guide = _Bootstrap()
        self._context: Context | None = None
        self._step = 0

    def init(self, state: SMCState, problem: Any) -> None:
        """Start a problem.

        :raises ValueError: for a list of problems, which Pyro's filter would resample together.
        """
        context = self.model.lm.start(problem)
        if context.batch_shape:
            raise ValueError(
                f"SMCFilter takes one problem at a time, got {len(context)}; it sums weights over plates. SMC has a posterior for each"
            )
        self._context, self._step = context, 0
        state.clear()

    def step(self, state: SMCState) -> None:
        """One reasoning step for every particle.

        :raises ValueError: before ``init``, and after ``max_steps`` steps.
        """
        if self._context is None:
            raise ValueError("there is no problem yet; call init(problem) on the filter before step()")
        if self._step == self.model.max_steps:
            raise ValueError(f"all {self.model.max_steps} steps are done; stop where adapter.done is true, or raise max_steps")
        context = self.model.step(self.context(state), self._step)
        self._context, self._step = context, self._step + 1
        state[_PARTICLE] = torch.arange(len(context))

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do: every particle has finished, or ``max_steps`` are reached."""
        return self._context is not None and (self._step == self.model.max_steps or bool(self._context.done.all()))

    def context(self, state: SMCState) -> Context:
        """The contexts of the particles as they are now, ``[N]``; one context before the first step.

        :param SMCState state: the filter's ``smc.state``.
        """
        if self._context is None:
            raise ValueError("there is no problem yet; call init(problem) on the filter")
        return self._context.reorder(state[_PARTICLE].to(self._context.done.device)) if _PARTICLE in state else self._context

    def answers(self, smc: SMCFilter) -> DiscreteMarginal:
        """The posterior over answers."""
        if _PARTICLE not in smc.state:
            raise ValueError("there are no answers before the first step")
        assert self._context is not None
        rows = smc.get_empirical()[_PARTICLE]
        given = self._context.answers()
        return DiscreteMarginal((given[int(row)], float(rows.log_prob(row).exp())) for row in smc.state[_PARTICLE].unique())


class _Bootstrap:
    """A guide without sites."""

    def init(self, state: SMCState, *args: Any, **kwargs: Any) -> None:
        pass

    def step(self, state: SMCState, *args: Any, **kwargs: Any) -> None:
        pass
