"""Direction-oriented resource allocation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..handlers.filter_options import FilterOptions
from ..particles.pytree import map_leaves
from ..posterior.particle_posterior import ParticlePosterior
from ..util.checked import checked
from ..util.validation import check_positive
from .rebase import REBASE, RebaseMessenger

_ROUNDING = 1e-9
"""Of logs of shares: equal ones are equal, whatever the order in which their neighbours are summed."""
Embed = Callable[[Any], Tensor]
"""From what the model passes to a barrier to ``[N, *batch, D]``."""


class DoraMessenger(RebaseMessenger):
    """Shares of REBASE times the share that each particle has in its own direction."""

    def __init__(self, options: FilterOptions, temperature: float, diversity_temperature: float, embed: Embed) -> None:
        super().__init__(options, temperature)
        self.method = "DORA"
        self.diversity_temperature, self.embed = diversity_temperature, embed

    def __enter__(self) -> DoraMessenger:
        self.state: Any = None
        super().__enter__()
        return self

    def resample(self, state: Any, ess: Tensor) -> Any:
        self.state = state
        try:
            return super().resample(state, ess)
        finally:
            self.state = None

    def widths(self, log_weights: Tensor, active: Tensor, left: Tensor) -> Tensor:
        return super().widths(log_weights, self.worth_a_place(log_weights, active, left), left)

    def worth_a_place(self, log_weights: Tensor, active: Tensor, left: Tensor) -> Tensor:
        """``[N, *plates]``: particles to which scores alone give more than half a place: a direction of its own is no merit by itself."""
        by_score = torch.where(active, super().log_shares(log_weights, active), -torch.inf).softmax(0)
        return active & (left * by_score > 0.5 + _ROUNDING)

    def log_shares(self, log_weights: Tensor, active: Tensor) -> Tensor:
        return super().log_shares(log_weights, active) + self.log_distinct(log_weights, active)

    def rank_by(self, log_weights: Tensor, shares: Tensor) -> Tensor:
        return (shares / _ROUNDING).round()

    def log_distinct(self, like: Tensor, active: Tensor) -> Tensor:
        """``[N, *plates]``: ``-log sum_j exp((cos(e_i, e_j) - 1) / T_d)`` over active j, 0 for one that is like no other."""
        if self.state is None:  # after the last step nothing is continued
            return torch.zeros_like(like)
        directions = normalize(self._embeddings(like), dim=-1)
        cosines = torch.einsum("i...d,j...d->ij...", directions, directions)
        others = torch.where(active, (cosines - 1.0) / self.diversity_temperature, -torch.inf)
        return torch.where(active, -others.logsumexp(1), 0.0)

    def _embeddings(self, like: Tensor) -> Tensor:
        """``[N, *plates, D]`` in float64, where particles are directions of all that one population holds.

        :raises ValueError: for an embedding of another shape, or with a nan.
        """
        found = self.embed(self.state)
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        batch = found.shape[: like.dim()] if isinstance(found, Tensor) and found.dim() > like.dim() else (0,) * like.dim()
        fits = all(b in (1, p) or p == 1 for b, p in zip(batch[1:], like.shape[1:], strict=True))
        if batch[0] != like.shape[0] or not fits:
            raise ValueError(
                f"embed must give a tensor with a vector for each particle, [{', '.join(map(str, like.shape))}, D], got {shape}"
            )
        if bool(found.isnan().any()):
            raise ValueError("embed gave a nan")
        found = found.to(like.device, torch.float64)
        for dim in range(1, like.dim()):
            if like.shape[dim] == 1 and found.shape[dim] > 1:
                found = found.movedim(dim, -1).flatten(-2).unsqueeze(dim)
        return found.expand(*like.shape, found.shape[-1])


class DORA(REBASE):
    """Direction-oriented resource allocation: REBASE, with fewer continuations for prefixes that go the same way as others.

    At each barrier the unfinished particles to which scores alone, exp(s_i / T) / sum_j exp(s_j / T), give more than half of a place share
    the places that finished ones have left in proportion to::

        exp(s_i / T)  *  exp(cos(e_i, e_i) / T_d) / sum_j exp(cos(e_i, e_j) / T_d)

    with s the score of a prefix, as for :class:`REBASE`, and e its embedding, both sums over these particles: k prefixes in the same
    direction share what one would have. Widths are rounded up one after the other from the greatest share to the smallest, as those of
    :class:`REBASE` are; the released code rounds them to the nearest. Everything else is as for :class:`REBASE`.

    The number of prefixes in a direction also says how probable the language model finds it, and a small T_d forgets that. The paper has
    T = .1 and T_d = .01, for embeddings of the whole text by a model that was trained for similarity. Hidden states differ by more, and by
    other amounts in every model; at T_d = 1, of the size of a cosine, a direction gets at most a few times what it has for its scores.

    :param model: as for :class:`SMC`.
    :param int num_particles: N.
    :param embed: from what the model passes to ``barrier`` to a vector for each particle ``[N, *plates, D]``. By default the method
        ``embedding()`` of the object that it passes: of a :class:`~ppl_llm.Context` the language model's mean hidden state over the last
        step, which is one forward pass over its tokens.
    :param float temperature: T.
    :param float diversity_temperature: T_d; small values tell directions apart that are nearly the same, large ones give :class:`REBASE`
        without the prefixes that are worth less than half of a place.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has widths of its own.
    :param bool audit: as for :class:`SMC`.
    :param callback: called with the posterior of the present particles after each barrier.
    :raises ValueError: for arguments out of range; from :meth:`run` for a state without an embedding, or one of another shape.

    References

    [1] *Every Rollout Counts: Optimal Resource Allocation for Efficient Test-Time Scaling*, Xinglin Wang et al. (2025).
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        embed: Embed | None = None,
        temperature: float = 0.2,
        diversity_temperature: float = 1.0,
        max_plate_nesting: int = 0,
        audit: bool = False,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        check_positive("diversity_temperature", diversity_temperature)
        keywords = {"max_plate_nesting": max_plate_nesting, "audit": audit, "callback": callback}
        super().__init__(model, num_particles, temperature=temperature, **keywords)  # type: ignore[arg-type]
        self.embed, self.diversity_temperature = embed, diversity_temperature

    def messenger(self) -> DoraMessenger:
        return DoraMessenger(self.options, self.temperature, self.diversity_temperature, self.embed or embedding_of)


def embedding_of(state: Any) -> Tensor:
    """The ``embedding()`` of the first object in a state that has one.

    :raises ValueError: if none has.
    """
    found: list[Any] = []

    def note(item: Any) -> Any:
        if callable(getattr(item, "embedding", None)):
            found.append(item)
        return item

    map_leaves(state, note, lambda tensor: tensor)
    if not found:
        raise ValueError(
            "DORA needs a vector for each prefix, and what the model passes to barrier has no embedding(): give embed=, a function of that "
            f"{type(state).__name__}"
        )
    embedding: Tensor = found[0].embedding()
    return embedding
