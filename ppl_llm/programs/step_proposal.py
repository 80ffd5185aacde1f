"""Steps proposed by another language model, at another temperature or after another prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..context import PAD, Context
from ..distributions import LLMStep
from ..lm.base import LanguageModel, language_model


class StepProposal:
    """A proposal for every :class:`LLMStep` of a model; particles are weighed with ``p / q``, so that the target stays the model's own::

        SMC(model, 16, proposals=StepProposal(temperature=1.3)).run(problem)
        SMC(model, 16, proposals=StepProposal(lm=draft)).run(problem)
        SMC(model, 16, proposals=StepProposal(prompt=lambda problem: problem + " Check every step.")).run(problem)

    A proposal is never truncated (``top_p``, ``top_k``), whatever the model's steps are: it must be able to write all that they can. The
    weights p / q correct for the difference exactly, at a price: steps that are rare under q and common under p get large weights, so q
    should be the broader one.

    :param LanguageModel lm: another language model with the same tokens.
    :param float temperature: of the proposed steps; the model's own by default.
    :param prompt: from a problem to what the proposing model is given in its place. Caches are not kept from step to step then.
    :raises ValueError: if nothing is different, or for a language model with other tokens.
    """

    def __init__(
        self,
        lm: LanguageModel | None = None,
        *,
        temperature: float | None = None,
        prompt: Callable[[str], Any] | None = None,
    ) -> None:
        if lm is None and temperature is None and prompt is None:
            raise ValueError("StepProposal needs another lm, temperature or prompt; without one the proposal is the model itself")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        self.lm, self.temperature, self.prompt = lm, temperature, prompt
        self._roots: dict[tuple[LanguageModel, tuple[str, ...]], Context] = {}

    def __call__(self, site: Any) -> LLMStep | None:
        prior = site["fn"]
        if not isinstance(prior, LLMStep):
            return None
        o = prior.options
        temperature = o.temperature if self.temperature is None else self.temperature
        return LLMStep(self.context(prior.context), o.stop, o.max_tokens, temperature)

    def context(self, context: Context) -> Context:
        """What the proposing model reads in place of ``context``."""
        lm = language_model(context) if self.lm is None else self.lm
        if lm.vocab_size != context.lm.vocab_size or lm.eos_ids.tolist() != context.lm.eos_ids.tolist():
            raise ValueError(
                f"the proposing language model must have the same tokens as the model's: {lm.vocab_size} tokens and end-of-text "
                f"{lm.eos_ids.tolist()}, here {context.lm.vocab_size} and {context.lm.eos_ids.tolist()}"
            )
        if self.prompt is None:
            # The same cache entries: each language model finds its own among them.
            return replace(context, lm=lm) if lm is not context.lm else context
        key = (lm, context.problems)
        if key not in self._roots:
            self._roots[key] = lm.start([self.prompt(problem) for problem in context.problems])
        return moved(context, self._roots[key])


def moved(context: Context, root: Context) -> Context:
    """The steps of a context after other prompts.

    :param Context root: the prompts, one sequence for each problem of the context.
    """
    prompt_lengths = root.prompt_lengths[context.problem_index]
    shift = prompt_lengths - context.prompt_lengths
    lengths = context.lengths + shift
    position = torch.arange(int(lengths.max()), device=lengths.device).expand(*context.batch_shape, -1)

    def at(tokens: Tensor, place: Tensor) -> Tensor:
        return tokens.gather(-1, place.clamp(0, tokens.shape[-1] - 1))

    written = torch.where(
        position < prompt_lengths[..., None],
        at(root.tokens[context.problem_index], position),
        at(context.tokens, position - shift[..., None]),
    )
    return replace(
        context,
        lm=root.lm,
        problems=root.problems,
        tokens=torch.where(position < lengths[..., None], written, PAD),
        lengths=lengths,
        prompt_lengths=prompt_lengths,
        ends=context.ends + shift[..., None],
        cache_entries={},
    )
