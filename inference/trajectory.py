"""The state of a Markov chain over program executions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class Trajectory(dict[str, Tensor]):
    """One execution of a model per population: its latent sites, and what an algorithm noted beside them.

    A site that an execution lacks is one that it reached done: a model gives such a site one value only.

    :param values: ``{name: [*plates, *event]}``.
    :ivar Tensor length: ``[*plates]`` steps taken, i.e. segments between barriers with a latent site, until done; ``None`` if not known.
    :ivar Tensor log_likelihood: ``[*plates]`` log-probability of the observed sites, not tempered; ``None`` if not known.
    :ivar value: what the model returned.
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
