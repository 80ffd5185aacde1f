"""Turns: a solution is written again from the one before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..context import Context
from ..inference import barrier
from ..inference.util.checked import checked
from ..inference.util.validation import check_count
from .models import ReasoningModel
from .plain import check_plain
from .turns import flat, next_turn, restarted

Prompt = Callable[[str, str], Any]
"""``prompt(problem, draft)``: what ``lm.start`` takes for the next round, a text or chat messages."""


def ask_again(problem: str | list[dict[str, str]], draft: str) -> list[dict[str, str]]:
    """The problem, the draft as the assistant's answer, and a request for a better one."""
    request = "Check this solution step by step. If it is wrong, correct it; then give the whole solution again with its final answer."
    return next_turn(problem, draft, request)


class RevisionModel(ReasoningModel):
    """A reasoning model that writes drafts before its solution; :func:`revise` makes it."""

    def __init__(self, model: ReasoningModel, rounds: int, prompt: Prompt) -> None:
        check_plain(model, "revise")
        vars(self).update(vars(model))
        self.rounds, self.prompt = rounds, prompt

    @property
    def settings(self) -> dict[str, Any]:
        """Those of a turn, how many there are, and what stands between them."""
        return {**super().settings, "prompt": getattr(self.prompt, "__name__", type(self.prompt).__name__)}

    def around(self, model: ReasoningModel) -> RevisionModel:
        """The same turns of another model."""
        return RevisionModel(model, self.rounds, self.prompt)

    def _solve(self, ctx: Context) -> Context:
        for r in range(self.rounds - 1):
            # One barrier a draft: no factor weighs its steps, and how many it takes is nobody else's affair. The prompt comes after it, so
            # that drafts are kept where a critic fails.
            ctx = self.next_round(ctx, barrier(self.draft(ctx, r)))
        return super()._solve(ctx)

    def draft(self, ctx: Context, r: int) -> Context:
        """A solution without a score: sites ``draft_r_step_t``."""
        for t in range(self.max_steps):
            ctx = self.written(ctx, f"draft_{r}_step_{t}")
            if self.early_exit and ctx.done.all():
                break
        return ctx

    def next_round(self, ctx: Context, draft: Context) -> Context:
        """The contexts of the next round, one for each draft."""
        pairs = list(zip(flat(draft.problem), flat(draft.solution), strict=True))
        if callable(prepare := getattr(self.prompt, "prepare", None)):
            prepare(pairs)
        return restarted(draft, [self.prompt(problem, text) for problem, text in pairs])


@checked
def revise(model: ReasoningModel, rounds: int = 2, prompt: Prompt = ask_again) -> RevisionModel:
    """Self-refinement as a Pyro program: ``x^r ~ p(. | prompt(problem, x^{r-1}))`` for each round r, the reward on the last (Madaan et al.,
    *Self-Refine*, 2023; sequential revisions of Snell et al., 2024).

    Each round starts from a prompt of its own, made from the problem and the particle's own draft without its thinking. Steps of drafts are
    latent sites ``draft_r_step_t``; there is a barrier after each draft and after each step of the last round. Any algorithm runs it;
    answers, scores and :meth:`~ReasoningModel.choose` are about the last round.

    Feedback is what ``prompt`` puts in: :class:`~ppl_llm.Feedback` has the message of a verifier, or a critique by a judge. ``prompt``
    must be a function of its arguments: what it draws at random would be no site of the model. Where it has a method ``prepare``, that is
    called with all pairs of problem and draft first.

    :param ReasoningModel model: of one round, from :func:`reasoning`.
    :param int rounds: solutions written, the last included; 1 is the model itself.
    :param prompt: ``prompt(problem, draft)``, by default :func:`ask_again`. It gives a text or chat messages.
    :raises ValueError: for ``rounds`` below 1, a ``prompt`` that is no function, or a model that is not one of :func:`reasoning` itself.
    """
    check_count("rounds", rounds)
    return RevisionModel(model, rounds, prompt)
