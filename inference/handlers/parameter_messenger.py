"""Particle filters whose particles share the values of some continuous sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributions import biject_to

from ..particles.site_util import draw, read_site
from .filter_options import FilterOptions
from .particle_messenger import ParticleMessenger
from .reference_messenger import ReferenceMessenger


class ParameterMessenger(ParticleMessenger):
    """A particle filter given parameters: all N particles of a population have the same values there.

    Its mean weight estimates ``p(theta) p(y | theta) |d theta / d u|`` with u the parameters in unconstrained space, so that it is their
    density, up to a constant, as particle Metropolis-Hastings needs it. Without parameters it is an ordinary filter.

    :param FilterOptions options: of the filter.
    :param tuple parameters: names of continuous latent sites before the first barrier.
    :param dict unconstrained: ``{name: [*plates, *event]}`` values in unconstrained space; a parameter without one is drawn from its prior
        (by a conditional filter: taken from the reference).
    :ivar dict unconstrained: of all parameters, once the filter has run.
    :raises ValueError: for a parameter that is no continuous latent site before the first barrier.
    """

    def __init__(
        self,
        options: FilterOptions,
        *,
        parameters: tuple[str, ...] = (),
        unconstrained: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(options, **kwargs)
        self.parameters = parameters
        self.given = dict(unconstrained or {})

    def __enter__(self) -> ParameterMessenger:
        self.unconstrained: dict[str, Tensor] = {}
        self._log_jacobian: dict[str, Tensor] = {}
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and msg["name"] in self.parameters:
            raise ValueError(f"parameter {msg['name']!r} is observed; parameters are latent sites, so leave out its obs")
        super()._pyro_sample(msg)

    def propose(self, msg: Any) -> None:
        """``theta = T(u)``, the same in all particles."""
        if msg["name"] not in self.parameters:
            super().propose(msg)
            return
        name, fn = msg["name"], msg["fn"]
        if fn.support.is_discrete:
            raise ValueError(
                f"parameter {name!r} is discrete ({type(fn).__name__}); parameters move by a random walk, so they must be continuous"
            )
        transform = biject_to(fn.support)
        shape = fn.shape()
        if name in self.given:
            u = self.given[name].expand(self.options.num_particles, *self.given[name].shape)
            value = transform(u).expand(shape)
        else:
            super().propose(msg)
            drawn = draw(msg) if msg["value"] is None else msg["value"].expand(shape)
            value = drawn[:1].expand(shape)  # a reference starts in the first particle
            u = transform.inv(value)
        log_jacobian = transform.log_abs_det_jacobian(u, value)
        self._log_jacobian[name] = log_jacobian.reshape(*log_jacobian.shape[: 1 + self.options.max_plate_nesting], -1).sum(-1)
        self.unconstrained[name] = u[0]
        msg["value"] = value.clone()

    def _needs_log_prob(self, msg: Any) -> bool:
        return msg["name"] in self.parameters or super()._needs_log_prob(msg)

    def reweight(self, msg: Any, log_prob: Tensor) -> None:
        """``w <- w p(theta)^scale |d theta / d u|`` at a parameter, with power 1 where it is masked."""
        if msg["name"] not in self.parameters:
            super().reweight(msg, log_prob)
            return
        log_jacobian = self._log_jacobian[msg["name"]].expand_as(log_prob)
        masked = read_site(msg).log_probs(msg["value"])[1]
        self.system.add(msg["name"], log_prob * msg["scale"] + log_jacobian + (0.0 if masked is None else masked))

    def _pyro_barrier(self, msg: Any) -> None:
        if not self.system.records:
            self.check_parameters()
        super()._pyro_barrier(msg)

    def check_parameters(self) -> None:
        """
        :raises ValueError: if a parameter has not been met so far.
        """
        missing = [name for name in self.parameters if name not in self.unconstrained]
        if missing:
            met = ", ".join(repr(site.name) for site in self.system.sites if site.value is not None) or "none"
            raise ValueError(f"parameter {missing[0]!r} is no latent site before the first barrier; the latent sites there are {met}")


class ParameterReferenceMessenger(ParameterMessenger, ReferenceMessenger):
    """The conditional form: the reference's parameters, and its trajectory among the particles."""
