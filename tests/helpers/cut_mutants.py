"""Wrong treatments of solutions that are cut before their ends; the table of tests/helpers/mutants.py holds them, too."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ppl_llm import BeamSearch, Context, FunctionReward, StopReason
from ppl_llm.inference.handlers.filter_options import FilterOptions
from ppl_llm.inference.search.beam_search import BeamMessenger
from tests.helpers.mutants import mutant

BOUNDS = "tests/ppl_llm/programs/test_bounds.py"


@mutant("a completion that is full has ended", f"{BOUNDS}::test_rejects_a_full_completion_as_finished")
class FullIsFinished(FunctionReward):
    """What ``max_tokens_completion`` cuts is judged as if it had come to its end."""

    def step_log_odds(self, context: Context) -> Tensor:
        reasons = torch.where(context.reasons == StopReason.CONTEXT_FULL, StopReason.END_OF_TEXT, context.reasons)
        return super().step_log_odds(replace(context, reasons=reasons))


@mutant("the model's last step is no end", f"{BOUNDS}::test_rejects_a_last_step_that_goes_on")
class LastStepGoesOn(FunctionReward):
    """What ``max_steps`` cuts waits for an end that never comes, and counts as certainly right."""

    def concluded_log_odds(self, context: Context) -> Tensor:
        return self.step_log_odds(context)


class _AnyDone(BeamMessenger):
    def select(self, log_weights: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        self.cut = torch.zeros_like(done)
        return super().select(log_weights, done)


@mutant("cut candidates among the finished ones", f"{BOUNDS}::test_rejects_a_beam_search_that_returns_what_is_cut_first")
class CutAmongFinished(BeamSearch):
    """Takes the places of candidates that finish later."""

    def messenger(self) -> BeamMessenger:
        assert isinstance(self.options, FilterOptions)
        return _AnyDone(self.options, self.beam_width, sort_completed=self.sort_completed, filter_duplicates=self.filter_duplicates)
