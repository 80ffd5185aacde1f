"""Wrong twists and wrong readers of hidden states; the table of tests/helpers/mutants.py holds them, too."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_llm import Context, HiddenStateReward, RolloutValue, Twist
from tests.helpers.mutants import mutant

TWISTS = "tests/ppl_llm/reward/test_twists.py"
HIDDEN = "tests/ppl_llm/reward/test_hidden_state_reward.py"


@mutant("the value at the end in place of the verifier", f"{TWISTS}::test_rejects_twists_that_are_not_unbiased")
class WithoutVerifier(Twist):
    """V_T is the value's guess, so that the target is p V."""

    def _scores(self, context: Context, over: Tensor, last_step: bool) -> Tensor:
        return super()._scores(context, torch.zeros_like(over), last_step)


@mutant("a value of zero on the way", f"{TWISTS}::test_rejects_twists_that_are_not_unbiased")
class ZeroValues(Twist):
    """A prefix none of whose rollouts was right gets weight zero for good."""

    def _scores(self, context: Context, over: Tensor, last_step: bool) -> Tensor:
        scores = super()._scores(context, over, last_step)
        return torch.where(~over & (scores < 0), -torch.inf, scores)


@mutant("unfinished solutions keep their value at the last step", f"{TWISTS}::test_rejects_twists_that_are_not_unbiased")
class NeverConcluded(Twist):
    """A solution that is cut off is not judged."""

    def concluded_log_odds(self, context: Context) -> Tensor:
        return self.step_log_odds(context)


@mutant("rollouts drawn again whenever a prefix is scored", f"{TWISTS}::test_rejects_values_that_change")
class FreshRollouts(RolloutValue):
    """The next factor divides by another V than the last one multiplied by."""

    def sums(self, context: Context) -> Tensor:
        self.seed += 1
        return super().sums(context)


@mutant("rollouts of the first particle for all", f"{TWISTS}::test_rejects_wrong_rollouts")
class OneRolloutForAll(RolloutValue):
    """Values that do not depend on the prefix leave every estimate unbiased and are worth nothing."""

    def sums(self, context: Context) -> Tensor:
        return super().sums(context)[:1].expand(context.batch_shape)


@mutant("the head of the step before", f"{HIDDEN}::test_rejects_wrong_states")
class StepBefore(HiddenStateReward):
    """States at the beginnings of steps."""

    def states(self, context: Context, start: int = 0) -> Tensor:
        begins, ends = context.step_starts[..., start:], context.ends[..., start:]
        return self.lm.hidden_states(context, torch.where(ends > begins, begins - 1, -1))


@mutant("hidden states that stay where they were when particles are resampled", f"{HIDDEN}::test_rejects_stale_states")
class StaleScores(HiddenStateReward):
    """Scores are kept by slot, and resampling leaves them there."""

    _scores: Tensor | None = None

    def step_log_odds(self, context: Context) -> Tensor:
        scores = super().step_log_odds(context)
        kept = self._scores
        if kept is not None and kept.shape[-1] <= scores.shape[-1]:
            scores = torch.cat([kept, scores[..., kept.shape[-1] :]], -1)
        self._scores = scores
        return scores
