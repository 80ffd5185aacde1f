"""Steps proposed by another language model, at another temperature or after another prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..constraints.base import Constraint
from ..context import PAD, Context
from ..context_cache import label_of
from ..distributions import ConstrainedStep, LLMStep
from ..inference.util.checked import checked
from ..lm.base import LanguageModel, StepOptions, language_model


class StepProposal:
    """A proposal for every :class:`LLMStep` of a model; particles are weighed with ``p / q``, so that the target stays the model's own::

        SMC(model, 16, proposals=StepProposal(temperature=1.3)).run(problem)
        SMC(model, 16, proposals=StepProposal(lm=draft)).run(problem)
        SMC(model, 16, proposals=StepProposal(prompt=lambda problem: problem + " Check every step.")).run(problem)
        SMC(model, 16, proposals=StepProposal(temperature=1.3, constraint=Regex("[0-9]+"))).run(problem)

    A proposal is never truncated (``top_p``, ``top_k``), whatever the model's steps are: it must be able to write all that they can. The
    weights p / q correct for the difference exactly, at a price: steps that are rare under q and common under p get large weights, so q
    should be the broader one.

    A proposed step must end where the model's own would: both models need the same texts of tokens and, in a context that is nearly full,
    the same room.

    :param LanguageModel lm: another language model with the same tokens.
    :param float temperature: of the proposed steps; the model's own by default.
    :param prompt: from a problem to what the proposing model is given in its place. Caches are not kept from step to step then.
    :param Constraint constraint: every token is drawn from the proposing model restricted to what may follow, with the target of
        ``proposals=constraint``, which is all that is needed where nothing else is different (:class:`~ppl_llm.constraints.Constraint`).
    :raises ValueError: if nothing is different; when run, for a language model with other tokens, or one whose context is full earlier or
        later than the model's.
    """

    @checked
    def __init__(
        self,
        lm: LanguageModel | None = None,
        *,
        temperature: float | None = None,
        prompt: Callable[[str], Any] | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self._same = lm is None and temperature is None and prompt is None
        if self._same and constraint is None:
            raise ValueError("StepProposal needs another lm, temperature or prompt, or a constraint; the proposal is the model itself now")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        self.lm, self.temperature, self.prompt, self.constraint = lm, temperature, prompt, constraint
        self._roots: dict[tuple[LanguageModel, tuple[str, ...]], Context] = {}
        self._same_stops: set[tuple[LanguageModel, LanguageModel, tuple[str, ...]]] = set()

    @property
    def __name__(self) -> str:
        """By which a run that is resumed is told from another; a function cannot be."""
        given = {"lm": self.lm and label_of(self.lm), "temperature": self.temperature, "constraint": self.constraint}
        return f"StepProposal({', '.join(f'{name}={value!r}' for name, value in given.items() if value is not None)})"

    @property
    def restricted(self) -> bool:
        """Whether it cannot draw every step of the model."""
        return self.constraint is not None

    @property
    def estimated(self) -> bool:
        """Whether the density of a step is an estimate that belongs to its draw."""
        return self.constraint is not None and self.constraint.asks

    def __call__(self, site: Any) -> LLMStep | None:
        prior = site["fn"]
        if not isinstance(prior, LLMStep):
            return None
        o = prior.options
        if self._same and self.constraint is not None:
            return prior.restricted_to(self.constraint)
        temperature = o.temperature if self.temperature is None else self.temperature
        context = self.context(prior.context)
        self._check_support(site["name"], prior, context)
        if self.constraint is None:
            return LLMStep(context, o.stop, o.max_tokens, temperature, constraint=o.constraint)
        both = self.constraint if o.constraint is None else o.constraint & self.constraint
        return ConstrainedStep(context, StepOptions(o.stop, o.max_tokens, temperature), both)

    def _check_support(self, name: str, prior: LLMStep, context: Context) -> None:
        """Whether a step ends for the proposing model where it does for the model: else p / q is not defined where only one of them can.

        :raises ValueError: for other stops, or another room.
        """
        p, q, o = language_model(prior.context), language_model(context), prior.options
        key = (p, q, tuple(o.stops))
        if p is not q and key not in self._same_stops:
            if not torch.equal(p.stop_automaton(o.stop).table.cpu(), q.stop_automaton(o.stop).table.cpu()):
                raise ValueError(
                    f"site {name!r}: the proposing language model writes its tokens as other text, so its steps do not end at {o.stops} "
                    "where the model's do; propose with a model that has the same tokenizer"
                )
            self._same_stops.add(key)
        rooms = [(c.lm.max_length - c.lengths).clamp(max=o.max_tokens) for c in (prior.context, context)]
        other = (rooms[0] != rooms[1].to(rooms[0].device)) & ~prior.context.done
        if bool(other.any()):
            room, proposed = (int(each[other.to(each.device)][0]) for each in rooms)
            raise ValueError(
                f"site {name!r}: the model's context has room for {room} more tokens, the proposing model's for {proposed}, so their steps "
                f"would end in different places (max_tokens is {o.max_tokens}). Give both models the same max_length, for another prompt "
                "that of the model and as much more as the prompt is longer, or let executions end earlier: fewer steps, or finish"
            )

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
