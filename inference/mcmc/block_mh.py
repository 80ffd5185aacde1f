"""Metropolis-Hastings block by block."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import SMCFailed
from ..handlers.filter_options import FilterOptions
from ..handlers.proposal_messenger import Proposals
from ..handlers.rejuvenate_messenger import RejuvenateMessenger
from ..handlers.sweep import sweep
from ..particles.trajectory import Trajectory
from ..util.checked import checked
from ..util.validation import check_count
from .replicate import replica_kernel
from .suffix_mh import SuffixMH


class BlockMessenger(RejuvenateMessenger):
    """A single execution that grows by a block, is moved, and grows again, until a block has finished it and its moves are made."""

    def staying(self, state: Any) -> Tensor:
        lost, before = self.system.weights.log_weights == -torch.inf, self.system.done
        return lost if before is None else lost | before.to(lost.device)

    def trajectories(self, state: Any, staying: Tensor) -> Trajectory:
        found = super().trajectories(state, staying)
        found.unfinished = False
        return found

    def kept(self, before: Trajectory, moved: Trajectory, picked: bool) -> Trajectory:
        moved.complete(before)
        moved.staying = before.staying
        return moved

    def check_alive(self) -> None:
        """The first state of a chain may be impossible."""
        with suppress(SMCFailed):
            super().check_alive()


class BlockMH(SuffixMH):
    """The block Metropolis of [1] (Algorithm 1): a chain that begins with a solution grown block by block.

    Its first state is grown: a block is drawn from the proposals, then the execution so far is moved ``moves`` times by the kernel of
    :class:`SuffixMH` for the target up to this block, that of ``until(model, t)``. Then the chain continues with the same kernel for the
    whole target, which it leaves invariant. Blocks are the segments between barriers, e.g.
    those of ``reasoning(lm, None, power=4.0, tokens_per_step=64)``, and so are the places where moves cut.

    Other than [1], moves weigh the ratio of lengths, without which the chain is not reversible, and proposals are not truncated, which
    would change the target.

    Example::

        BlockMH(power(model, 4.0), moves=4, proposals=StepProposal(temperature=0.25)).run(20, problem)

    :param model: as for :class:`SMC`.
    :param int moves: behind each block.
    :param proposals: per-site proposals; the prior where there is none.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has its own chain.
    :raises ValueError: for arguments out of range.

    References

    [1] *Reasoning with Sampling: Your Base Model is Smarter Than You Think*, Aayush Karan, Yilun Du (2025), Algorithm 1.
    """

    @checked
    def __init__(
        self, model: Callable[..., Any], *, moves: int = 4, proposals: Proposals | None = None, max_plate_nesting: int = 0
    ) -> None:
        super().__init__(model, proposals=proposals, max_plate_nesting=max_plate_nesting)
        check_count("moves", moves, 0)
        self.moves = moves

    def first_state(self, *args: Any, **kwargs: Any) -> Trajectory:
        """Grown block by block; perhaps of posterior density zero."""
        options = FilterOptions(1, self.max_plate_nesting, ess_threshold=0.0, proposals=self.proposals)
        kernel = partial(replica_kernel, self.mover, num_replicas=1, max_plate_nesting=self.max_plate_nesting)
        program = self.model, args, kwargs
        return sweep(self.model, BlockMessenger(options, kernel=kernel, moves=self.moves, every=1, program=program), args, kwargs).draw(
            dead=True
        )

    def mover(self, model: Callable[..., Any], max_plate_nesting: int) -> SuffixMH:
        """The kernel that moves the beginnings of an execution."""
        return SuffixMH(model, proposals=self.proposals, max_plate_nesting=max_plate_nesting)
