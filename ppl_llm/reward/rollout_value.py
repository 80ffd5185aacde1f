"""The value of an unfinished solution: how many of its continuations turn out right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..context import Context
from ..inference.util.checked import checked
from ..inference.util.validation import check_count
from ..lm.autoregressive import AutoregressiveLM
from ..lm.base import LanguageModel, StepOptions
from .base import RewardModel, step_scores
from .keyed_uniforms import keyed_uniforms, keys_of
from .score_cache import ScoreCache, repeat_last
from .twist import Twist


class RolloutValue(Twist):
    """V_t from complete continuations of the prefix, and the verifier at the end: a :class:`~ppl_llm.Twist`.

    ``V = (r + prior) / (rollouts + 2 prior)``, where the verifier accepts r of the ``rollouts`` continuations, or gives r in sum. With the
    potential ``difference`` the target is p(x) tau(x) for any number of rollouts. The draws of a rollout follow from the seed and the
    prefix, so that a prefix has the same value whenever it is scored, and nothing is drawn from the generators of the run. The cost is
    ``rollouts`` solutions for every step of every distinct particle.

    :param LanguageModel lm: writes the continuations, a local one; as a rule the model's own.
    :param verifier: a reward of finished answers, or the function of one: called with the problem's and the answer's text, it gives a bool
        or a probability.
    :param int rollouts: continuations of each prefix.
    :param StepOptions options: how their steps are drawn, as in the model.
    :param int max_steps: steps of the model; what is unfinished then is wrong.
    :param str finish: regular expression that finishes a solution, as in the model.
    :param float prior: right and wrong continuations that are added to those seen; above 0, as a prefix of value 0 would be lost for good.
    :param int seed: of the draws.
    :raises ValueError: for arguments out of range, or a language model whose draws cannot be fixed.

    Example::

        value = RolloutValue(lm, lambda problem, text: extract_answer(text) == "42", rollouts=4)
        SMC(reasoning(lm, value, preset="twisted"), 16).run("What is 6 * 7?")
    """

    @checked
    def __init__(
        self,
        lm: LanguageModel,
        verifier: RewardModel | Callable[[str, str], Any],
        rollouts: int = 4,
        *,
        options: StepOptions | None = None,
        max_steps: int = 40,
        finish: str | None = None,
        prior: float = 0.5,
        seed: int = 0,
    ) -> None:
        check_count("rollouts", rollouts)
        check_count("seed", seed, 0)
        check_count("max_steps", max_steps)
        check_count("seed", seed, 0)
        if not 0 < prior < float("inf"):
            raise ValueError(f"prior must be positive, got {prior!r}: a prefix of value 0 would be lost for good")
        if not isinstance(lm, AutoregressiveLM):
            raise ValueError(f"RolloutValue needs a local language model, whose draws it can fix; {type(lm).__name__} is none")
        options = options if options is not None else StepOptions()
        if options.constraint is not None:
            raise ValueError("RolloutValue draws its continuations without a constraint; give options without one")
        self.lm, self.rollouts, self.options, self.max_steps = lm, rollouts, options, max_steps
        self.finish, self.prior, self.seed = finish, prior, seed
        super().__init__(_Values(self), verifier)

    def sums(self, context: Context) -> Tensor:
        """``[A]``: what the verifier gives to the continuations of sequences ``[A]``, in sum; unfinished ones get nothing."""
        keys = keys_of(context.tokens, self.seed)
        shape = torch.Size([self.rollouts, *context.batch_shape])
        entries = {key: entry.map(lambda t: t.expand(self.rollouts, *t.shape)) for key, entry in context.cache_entries.items()}
        rolled = replace(replace(context, cache_entries={}).expand(shape), cache_entries=entries, lm=self.lm)
        options = self.options
        while rolled.num_steps < self.max_steps and not bool(rolled.done.all()):
            uniforms = keyed_uniforms(keys, self.rollouts, options.max_tokens, rolled.num_steps)
            step = self.lm.sample_step(rolled, shape, options, uniforms=uniforms).tokens
            rolled = rolled.extend(step, stop=options.stop, finish=self.finish)
        verdicts = step_scores(self.verifier, rolled, last_step=True)[..., -1].sigmoid()
        return torch.where(rolled.finished.to(verdicts.device), verdicts, 0.0).sum(0)


class _Values:
    """Log-odds of the values (a :class:`~ppl_llm.reward.base.RewardModel`); of finished sequences they are 0."""

    def __init__(self, rollouts: RolloutValue) -> None:
        self._rollouts, self._cache = rollouts, ScoreCache()

    def step_log_odds(self, context: Context) -> Tensor:
        scores = self._cache.get(context)
        for step in range(scores.shape[-1], context.num_steps):
            taken = context.ends[..., step] > context.step_starts[..., step]
            prefix = context if step + 1 == context.num_steps else context.before(step + 1)
            scores = repeat_last(scores, self._log_odds(prefix, taken)[..., None], taken[..., None])
        return self._cache.put(context, scores, type(self._rollouts).__name__)

    def _log_odds(self, prefix: Context, taken: Tensor) -> Tensor:
        """``[*batch]``; equal prefixes are continued once."""
        found = torch.zeros(prefix.lengths.numel(), device=prefix.tokens.device)
        open_ = (taken & ~prefix.done).flatten().nonzero()[:, 0]
        if len(open_) == 0:
            return found.view(prefix.batch_shape)
        told = torch.cat([prefix.problem_index.reshape(-1, 1), prefix.tokens.reshape(len(found), -1)], -1)[open_]
        distinct, group = torch.unique(told, dim=0, return_inverse=True)
        order = torch.arange(len(open_), device=found.device)
        first = order.new_full((len(distinct),), len(open_)).scatter_reduce(0, group, order, "amin")
        rollouts, prior = self._rollouts.rollouts, self._rollouts.prior
        right = self._rollouts.sums(prefix.flat(open_[first])).to(found)
        found[open_] = ((right + prior).log() - (rollouts - right + prior).log())[group]
        return found.view(prefix.batch_shape)
