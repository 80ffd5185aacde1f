"""The state of a Markov chain over program executions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .pytree import permute, take


class Trajectory(dict[str, Tensor]):
    """One execution of a model per population: its latent sites, and what an algorithm noted beside them.

    A site that an execution lacks is one that it reached done: a model gives such a site one value only.

    :param values: ``{name: [*plates, *event]}``.
    :ivar Tensor length: ``[*plates]`` steps taken, i.e. segments between barriers with a latent site, until done; ``None`` if not known.
    :ivar Tensor log_likelihood: ``[*plates]`` log-probability of the observed sites, not tempered; ``None`` if not known.
    :ivar value: what the model returned.
    :ivar system: the particles among which it was drawn, for kernels whose state these are; else ``None``.
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
        self.system: Any = None

    def reorder(self, index: Tensor) -> Trajectory:
        """Trajectories of several populations in another order.

        :param Tensor index: ``[K, *plates]``: population ``k`` gets the trajectory of population ``index[k]`` of the leftmost plate.
        """

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else take(tensor, index)

        return Trajectory(
            {name: take(value, index) for name, value in self.items()},
            length=moved(self.length),
            log_likelihood=moved(self.log_likelihood),
            value=permute(self.value, index),
        )

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
