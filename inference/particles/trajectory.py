"""The state of a Markov chain over program executions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .pytree import concatenate, permute, take
from .run_scope import RunScope


@dataclass(frozen=True)
class ChainRecord:
    """What a Markov chain knows besides its present execution. It travels with the state, and every step makes a new one.

    :ivar int warmup_steps: steps at the beginning that are not kept.
    :ivar int num_steps: steps so far, those of the warm-up included.
    :ivar Tensor acceptance_rate: mean acceptance probability since the warm-up, during it since the start; ``None`` before the first step,
        and for kernels that accept always.
    :ivar float step_size_scale: what an adaptation multiplies step sizes by.
    :ivar RunScope scope: what all executions of the model have in common.
    """

    warmup_steps: int = 0
    num_steps: int = 0
    acceptance_rate: Tensor | None = None
    step_size_scale: float = 1.0
    scope: RunScope | None = None

    def after(self, acceptance: Tensor | None) -> ChainRecord:
        """After one more step, which was accepted with probability ``acceptance``; ``None`` for a kernel that accepts always."""
        num_steps = self.num_steps + 1
        averaged = num_steps - self.warmup_steps if num_steps > self.warmup_steps else num_steps
        if acceptance is not None and self.acceptance_rate is not None and averaged > 1:
            acceptance = self.acceptance_rate + (acceptance - self.acceptance_rate) / averaged
        return replace(self, num_steps=num_steps, acceptance_rate=acceptance)


class Trajectory(dict[str, Tensor]):
    """One execution of a model per population: its latent sites, and what an algorithm keeps beside them.

    An execution that was done before a site lacks it; such a site has only one possible value.

    :param values: ``{name: [*plates, *event]}``.
    :ivar Tensor length: ``[*plates]`` steps taken, i.e. segments between barriers with a latent site, until done; ``None`` if not known.
    :ivar Tensor log_likelihood: ``[*plates]`` log-probability of the observed sites, not tempered; ``None`` if not known.
    :ivar Tensor log_bridged: ``[*plates]`` of the latent sites on a bridge of powers, at their full power; ``None`` if not known.
    :ivar dict scores: ``{name: [*plates]}`` that observed sites have, for display.
    :ivar Tensor staying: ``[*plates]`` populations that a kernel need not move; ``None`` to move all.
    :ivar bool unfinished: whether a move that finishes an execution is to be rejected.
    :ivar value: what the model returned.
    :ivar filter: the particle filter among whose particles it was drawn, for kernels whose state that is; else ``None``.
    :ivar ChainRecord chain: of the chain that it is a state of.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        *,
        length: Tensor | None = None,
        log_likelihood: Tensor | None = None,
        value: Any = None,
    ) -> None:
        super().__init__(values)
        self.length, self.log_likelihood, self.value = length, log_likelihood, value
        self.log_bridged: Tensor | None = None
        self.scores: dict[str, Tensor] = {}
        self.staying: Tensor | None = None
        self.unfinished = False
        self.filter: Any = None
        self.chain = ChainRecord()

    @classmethod
    def concatenate(cls, first: Trajectory, second: Trajectory) -> Trajectory:
        """The populations of both, along the leftmost plate; both with the same sites, and all of them known."""

        def joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else torch.cat([a, b])

        both = cls(
            {name: torch.cat([value, second[name]]) for name, value in first.items()},
            length=joined(first.length, second.length),
            log_likelihood=joined(first.log_likelihood, second.log_likelihood),
            value=concatenate([first.value, second.value]),
        )
        both.log_bridged = joined(first.log_bridged, second.log_bridged)
        both.scores = {name: torch.cat([score, second.scores[name]]) for name, score in first.scores.items() if name in second.scores}
        return both

    def reorder(self, index: Tensor) -> Trajectory:
        """Trajectories of several populations in another order.

        :param Tensor index: ``[K, *plates]``, or ``[K]`` for all plates alike: population ``k`` gets the trajectory of population
            ``index[k]`` of the leftmost plate.
        :raises ValueError: for an index of other plates.
        """
        if self.length is not None:
            own = self.length.shape
            index = index.reshape(*index.shape, *(1 for _ in own[index.dim() :]))
            if index.dim() != len(own) or any(i not in (1, size) and size != 1 for i, size in zip(index.shape[1:], own[1:], strict=True)):
                raise ValueError(f"index has shape {tuple(index.shape)}, the trajectories' populations have {tuple(own)}")

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else take(tensor, index)

        taken = Trajectory(
            {name: take(value, index) for name, value in self.items()},
            length=moved(self.length),
            log_likelihood=moved(self.log_likelihood),
            value=permute(self.value, index),
        )
        taken.log_bridged, taken.scores = moved(self.log_bridged), {name: take(score, index) for name, score in self.scores.items()}
        return taken

    def complete(self, before: Trajectory) -> None:
        """Take over what the executions before a move had and these lack: the run ended before such a site, as every execution had."""
        for name in before.keys() - self.keys():
            self[name] = before[name]

    def differs(self, other: Trajectory) -> Tensor:
        """``[*plates]``: where two executions are not the same. Their lengths must be known."""
        assert self.length is not None and other.length is not None
        different = self.length != other.length
        for name in self.keys() & other.keys():
            unequal = (self[name] != other[name]).reshape(*self[name].shape[: different.dim()], -1).any(-1)
            for dim, size in enumerate(different.shape):
                if size < unequal.shape[dim]:
                    unequal = unequal.any(dim, keepdim=True)
            different = different | unequal
        return different
