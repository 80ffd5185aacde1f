"""Deliberately wrong bridges of powers, and wrong moves of particle filters; see tests/helpers/mutants.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ppl_llm.inference import BlockMH, RejuvenateMessenger, SuffixMH, Trajectory
from ppl_llm.inference.handlers.until_messenger import Beginning, UntilMessenger
from tests.helpers.mutants import NoLengthRatio, mutant

_POWER = "tests/inference/test_power.py"


@mutant("no bridging term", f"{_POWER}::test_rejects_wrong_moves")
class NoBridgingTerm(RejuvenateMessenger):
    """A step weighs ``p(x_t)^alpha_t / q(x_t)`` alone, and the steps before keep their old powers."""

    def bridge(self, share: float) -> None:
        if share < 1.0:
            super().bridge(share)
        self.system.share = share


@mutant("moves only where the ESS is low", f"{_POWER}::test_rejects_wrong_moves")
class MovesWhereResampled(RejuvenateMessenger):
    """What resample-move filters do as a rule: the kernel is invariant on average over all populations, not over these."""

    def staying(self, state: Any) -> Tensor:
        return (~self.system.records[-1].resampled).expand_as(self.system.weights.log_weights)


@mutant("moves at the whole power", f"{_POWER}::test_rejects_wrong_moves")
class MovesAtTheWholePower(RejuvenateMessenger):
    """Particles that a bridge has at a lower power are moved at the power of the end."""

    def beginning(self) -> Any:
        class WholePower(UntilMessenger):
            def _pyro_sample(self, msg: Any) -> None:
                pass

        return Beginning(self.program[0], lambda: WholePower(len(self.system.records)), "until")


@mutant("density from before the move", f"{_POWER}::test_rejects_wrong_moves")
class DensityFromBeforeTheMove(RejuvenateMessenger):
    """The bridge continues with the density of the execution that the particle was."""

    def move(self, state: Any, staying: Tensor) -> Any:
        before = self.system.log_bridged
        state = super().move(state, staying)
        self.system.log_bridged = before
        return state


@mutant("state from before the move", f"{_POWER}::test_rejects_wrong_moves")
class StateFromBeforeTheMove(RejuvenateMessenger):
    """The model continues with the state that the moved particle had."""

    def move(self, state: Any, staying: Tensor) -> Any:
        super().move(state, staying)
        return state


@mutant("moves that finish executions", f"{_POWER}::test_rejects_wrong_moves")
class MovesThatFinish(RejuvenateMessenger):
    """Finished executions stay, but others may join them and never come back."""

    def trajectories(self, state: Any, staying: Tensor) -> Trajectory:
        found = super().trajectories(state, staying)
        found.unfinished = False
        return found

    def kept(self, before: Trajectory, moved: Trajectory, picked: bool) -> Trajectory:
        moved.staying = before.staying
        return moved


WRONG_MOVES = {
    "no bridging term": NoBridgingTerm,
    "moves only where the ESS is low": MovesWhereResampled,
    "moves at the whole power": MovesAtTheWholePower,
    "density from before the move": DensityFromBeforeTheMove,
    "state from before the move": StateFromBeforeTheMove,
    "moves that finish executions": MovesThatFinish,
}


@mutant("the whole model in the move of a beginning", f"{_POWER}::test_monte_carlo_rejects_moves_for_the_whole_model")
class MovesForTheWholeModel(RejuvenateMessenger):
    """The kernel's target is that of the whole model, not of the filter at its barrier."""

    def beginning(self) -> Any:
        class ToTheEnd(UntilMessenger):
            def _pyro_post_barrier(self, msg: Any) -> None:
                self.count += 1
                if self.count == self.barriers:
                    self.state = [msg["value"]]

        return Beginning(self.program[0], lambda: ToTheEnd(len(self.system.records)), "until")


@mutant("blocks without the ratio of lengths", "tests/inference/mcmc/test_block_mh.py::test_rejects_blocks_without_the_ratio_of_lengths")
class BlocksWithoutLengthRatio(BlockMH):
    """As the code of the power sampling paper: the choice of the cut is not corrected for."""

    def mover(self, model: Callable[..., Any], max_plate_nesting: int) -> SuffixMH:
        return NoLengthRatio(model, proposals=self.proposals, max_plate_nesting=max_plate_nesting)
