"""How a particle filter moves its particles."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from ..handlers.filter_options import FilterOptions
from ..handlers.proposal_messenger import are_restricted
from ..handlers.rejuvenate_messenger import Program, RejuvenateMessenger
from ..util.fingerprint import name_of
from ..util.validation import check_count, check_function
from .replicate import Kernel, replica_kernel
from .trajectory_kernel import TrajectoryKernel


@dataclass(frozen=True)
class Rejuvenation:
    """A kernel and a number of moves.

    :ivar kernel: ``kernel(model, max_plate_nesting=...)``.
    :ivar int moves: of each particle each time.
    :ivar int every: barriers from one time to the next.
    """

    kernel: Kernel
    moves: int
    every: int
    handler: ClassVar[type[RejuvenateMessenger]] = RejuvenateMessenger

    @classmethod
    def of(cls, kernel: Kernel | None, moves: int, every: int, model: Callable[..., Any], options: FilterOptions) -> Rejuvenation | None:
        """``None`` without a kernel.

        :raises ValueError: for a kernel that cannot move the particles of this filter, or moves without a kernel.
        """
        check_function("rejuvenate", kernel)
        check_count("moves", moves)
        check_count("move_every", every)
        if kernel is not None:
            return cls(kernel, moves, every)._checked(model, options)
        for name, number in (("moves", moves), ("move_every", every)):
            if number != 1:
                raise ValueError(f"{name}={number} has no effect without a kernel: give rejuvenate= as well, such as SuffixMH")
        return None

    def _checked(self, model: Callable[..., Any], options: FilterOptions) -> Rejuvenation:
        kernel = self._make(options, model)
        if not kernel.reversible:
            raise ValueError(
                f"rejuvenate={self._name}: this kernel is not reversible, so it cannot be kept to unfinished executions, and estimates "
                "would be biased; use SuffixMH, PrefixWalk, or ParticleGibbs without ancestor sampling"
            )
        if kernel.proposals is not options.proposals and (are_restricted(options.proposals) or are_restricted(kernel.proposals)):
            raise ValueError(
                f"rejuvenate={self._name}: proposals under a constraint are a part of the target, and this kernel has others than the "
                "filter, so it would move particles out of the language; use SuffixMH, or ParticleGibbs without ancestor sampling, which "
                "take the filter's proposals if they are given none"
            )
        return self

    def messenger(self, options: FilterOptions, program: Program) -> RejuvenateMessenger:
        """The filter with these moves."""
        return self.handler(options, kernel=partial(self._make, options), moves=self.moves, every=self.every, program=program)

    def _make(self, options: FilterOptions, model: Callable[..., Any]) -> TrajectoryKernel:
        kernel = self.kernel
        takes = inspect.signature(kernel).parameters
        if options.proposals is not None and "proposals" in takes and takes["proposals"].default is None:
            kernel = partial(kernel, proposals=options.proposals)
        return replica_kernel(kernel, model, options.num_particles, options.max_plate_nesting)

    @property
    def described(self) -> str:
        """By which a run that is resumed is told from another."""
        return f"{self.moves} of {self._name} every {self.every}"

    @property
    def _name(self) -> str:
        keywords: dict[str, Any] = getattr(self.kernel, "keywords", {})
        given = [f"{name}={value if isinstance(value, bool | int | float | str) else name_of(value)}" for name, value in keywords.items()]
        return f"{name_of(getattr(self.kernel, 'func', self.kernel))}({', '.join(given)})"
