"""What a sample site contributes to the weights, and which site spoiled them.

A mask takes a site out of the target wherever it is false: an observation there contributes nothing, and a latent value there keeps its
prior, whatever powers and proposals the site has, so that it integrates to one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Independent

from ..errors import SMCFailed
from .categorical import draw_categorical, is_categorical
from .weights import Weights


def scaled(log_prob: Tensor, scale: Any) -> Tensor:
    """``log_prob * scale``, with 0 for a factor of probability zero to the power of 0."""
    if isinstance(scale, Tensor):
        scale = scale.to(log_prob.device)
        return torch.where(scale == 0, 0.0, log_prob * scale)
    if scale == 1:
        return log_prob
    return log_prob * scale if scale != 0 else torch.zeros_like(log_prob)


class SiteParts(NamedTuple):
    """The distribution, mask and scale of a site, whichever way the mask came.

    :ivar fn: the distribution without masks.
    :ivar elements: the same before its last ``num_event_dims`` event dimensions were made such by ``to_event``, where a mask lies inside.
    :ivar int num_event_dims: event dimensions that the mask has.
    :ivar Tensor mask: ``[*batch, *event]``, what belongs to the target; ``None`` without a mask.
    :ivar scale: power of what belongs to the target.
    """

    fn: Any
    elements: Any
    num_event_dims: int
    mask: Tensor | None
    scale: Any

    def log_probs(self, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities ``[*batch]`` of what belongs to the target, and of what is masked; impossible values have -inf, never nan."""
        log_prob = self.elements.log_prob(value)
        if log_prob.isnan().any():  # outside the support, where a distribution does not validate its values
            log_prob = torch.where(self.elements.support.check(value), log_prob, -torch.inf)
        if self.mask is None:
            return log_prob, None
        dims = list(range(-self.num_event_dims, 0))
        included, masked = torch.where(self.mask, log_prob, 0.0), torch.where(self.mask, 0.0, log_prob)
        return (included.sum(dims), masked.sum(dims)) if dims else (included, masked)

    def log_density(self, value: Tensor) -> Tensor:
        """``[*batch]``: ``log p^scale`` of a latent value, with power 1 where it is masked; -inf of an impossible value for every power."""
        included, masked = self.log_probs(value)
        density = torch.where(included == -torch.inf, -torch.inf, scaled(included, self.scale))
        return density if masked is None else density + masked

    def mask_of_events(self, name: str) -> Tensor | None:
        """``[*batch]``: the mask of whole events.

        :raises ValueError: if a mask differs within an event.
        """
        mask = self.mask
        if mask is None or not self.num_event_dims:
            return mask
        events = mask.reshape(*mask.shape[: mask.dim() - self.num_event_dims], -1)
        if bool((events.any(-1) != events.all(-1)).any()):
            raise ValueError(
                f"site {name!r} has a proposal and a mask that differs within an event; mask whole events, as in "
                "fn.to_event(1).mask(m), or leave out the proposal"
            )
        return events.all(-1)


def read_site(msg: Any) -> SiteParts:
    """The message of a site taken apart: masks of the distribution, of ``poutine.mask`` and of plates are one.

    :raises ValueError: for a mask inside of a distribution that hides it.
    """
    fn, elements, num_event_dims, mask = _unmasked(msg["fn"], msg["name"])
    return SiteParts(fn, elements, num_event_dims, _both(mask, msg["mask"], num_event_dims), msg["scale"])


def _unmasked(fn: Any, name: str) -> tuple[Any, Any, int, Tensor | None]:
    if isinstance(fn, MaskedDistribution):
        base, elements, num_event_dims, mask = _unmasked(fn.base_dist, name)
        return base, elements, num_event_dims, _both(mask, fn._mask, num_event_dims)
    inside = getattr(fn, "base_dist", None)
    if inside is None:
        return fn, fn, 0, None
    base, elements, num_event_dims, mask = _unmasked(inside, name)
    if mask is None and base is inside:
        return fn, fn, 0, None
    if not isinstance(fn, Independent):
        raise ValueError(f"the mask of site {name!r} lies inside of its {type(fn).__name__}; mask the whole distribution: fn.mask(m)")
    count = fn.reinterpreted_batch_ndims
    return base.to_event(count), elements, num_event_dims + count, mask


def is_masked(fn: Any) -> bool:
    """Whether a distribution has a mask, at whatever depth."""
    return isinstance(fn, MaskedDistribution) or (hasattr(fn, "base_dist") and is_masked(fn.base_dist))


def _both(inner: Tensor | None, outer: Tensor | bool | None, num_event_dims: int) -> Tensor | None:
    """Two masks as one: the outer one is that of whole events."""
    if outer is None or outer is True:
        return inner
    outer = torch.as_tensor(outer, dtype=torch.bool)
    outer = outer.reshape(outer.shape + (1,) * num_event_dims)
    return outer if inner is None else inner & outer.to(inner.device)


def draw_where(fn: Any, particles: Tensor) -> Tensor:
    """A sample of which only ``particles [*batch]`` are used; a distribution with ``sample_where(particles)`` draws only those."""
    value: Tensor = fn.sample_where(particles) if callable(getattr(fn, "sample_where", None)) else sample(fn)
    return value


def sample(fn: Any) -> Tensor:
    """``[*batch, *event]``."""
    value: Tensor = draw_categorical(fn) if is_categorical(fn) else fn.sample()
    return value


def select(particles: Tensor, value: Tensor, other: Tensor, event_dim: int) -> Tensor:
    """``value`` where ``particles [*batch]``, ``other`` elsewhere."""
    return torch.where(particles.reshape(*particles.shape, *(1,) * event_dim), value, other.to(value))


def draw(msg: Any, particles: Tensor | None = None) -> Tensor:
    """A value ``[*batch, *event]`` of a latent site: from its proposal where it has one and is not masked, from its prior elsewhere.

    :param Tensor particles: ``[*batch]``, where the value is used; everywhere without it.
    """
    proposal = msg["infer"].get("proposal")
    parts = read_site(msg)
    mask = None if proposal is None else parts.mask_of_events(msg["name"])
    fn = parts.fn if proposal is None else proposal
    if mask is not None:
        mask = mask.expand(parts.fn.batch_shape)
        if not bool(mask.all()):
            wanted = torch.ones_like(mask) if particles is None else particles
            return select(mask, draw_where(fn, mask & wanted), draw_where(parts.fn, ~mask & wanted), len(parts.fn.event_shape))
    return sample(fn) if particles is None else draw_where(fn, particles)


def give(msg: Any) -> None:
    """A latent site that a handler of the model has done with (``poutine.replay``): its value is given, and has no density.

    Pyro does not expand such a site to its plates.
    """
    fn, value = msg["fn"], msg["value"]
    sizes = {frame.dim: frame.size for frame in msg["cond_indep_stack"] if frame.vectorized}
    plates = [sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0)]
    batch = torch.broadcast_shapes(fn.batch_shape, plates)
    msg["fn"], msg["value"] = fn.expand(batch), value.expand(*batch, *fn.event_shape).clone()
    msg["infer"] = {**msg["infer"], "given": True}


def is_given(msg: Any) -> bool:
    return "given" in msg["infer"]


def base_name(name: str) -> str:
    """A site's name without a number at its end."""
    return name.rstrip("0123456789").rstrip("_") or name


def is_one(scale: Any) -> bool:
    return not isinstance(scale, Tensor) and scale == 1


def is_deterministic(msg: Any) -> bool:
    return bool(msg["infer"].get("_deterministic", False))


def raise_for_dead(factors: list[tuple[str, Weights]], may_die: bool = False) -> None:
    """
    :param list factors: sites in order, each with the weights after it.
    :param bool may_die: whether all populations may be dead.
    :raises SMCFailed: if they are and may not be, naming the site that killed the last of them.
    :raises ValueError: for a nan or infinite weight, naming the site.
    """
    for site, weights in factors:
        log_mean = weights.log_mean
        if torch.isnan(log_mean).any():
            raise ValueError(f"site {site!r} gave a nan log-probability; check the parameters of its distribution (e.g. nan log-odds)")
        if (log_mean == torch.inf).any():
            raise ValueError(
                f"site {site!r} gave an infinite log-weight: a factor must be below +inf, and a proposal must be able to draw every value "
                "that a trajectory has. One under a constraint is for SMC and the chains, without ancestor sampling"
            )
        if not may_die and (log_mean == -torch.inf).all():
            raise SMCFailed(site, weights.num_particles, log_mean.numel())
