"""What Metropolis-Hastings over whole particle filters has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import SMCFailed
from ..handlers.filter_options import FilterOptions
from ..handlers.parameter_messenger import ParameterMessenger, ParameterReferenceMessenger
from ..handlers.proposal_messenger import Proposals
from ..handlers.replay_messenger import KnownValue, ReplayMessenger
from ..handlers.sweep import sweep
from ..particles.trajectory import ChainRecord, Trajectory
from ..particles.weights import Weights
from ..posterior.particle_posterior import ParticlePosterior
from ..resampling import Resampler, get_resampler
from ..util.checked import checked
from .trajectory_kernel import TrajectoryKernel


class FilterState(NamedTuple):
    """A particle filter, as the state of a Markov chain.

    :ivar ParticlePosterior posterior: its particles; the log mean weight is the log-density of the state, up to a constant.
    :ivar dict unconstrained: ``{name: [*plates, *event]}`` parameters in unconstrained space.
    """

    posterior: ParticlePosterior
    unconstrained: dict[str, Tensor]

    @property
    def log_density(self) -> Tensor:
        """``[*plates]``."""
        return self.posterior.particles.weights.log_mean


class ParticleMH(TrajectoryKernel):
    """A Markov chain whose state is a particle filter; a proposal is another filter (Andrieu, Doucet & Holenstein, 2010).

    Filter and parameters are accepted with ``min(1, density' / density)``, the estimates of :class:`ParameterMessenger`, for each
    independent population on its own. Each iteration gives all N particles of the filter that it ends with, with their weights: its
    trajectory is drawn among them (Rao-Blackwellised).

    :param model: as for :class:`SMC`.
    :param int num_particles: N.
    :param tuple parameters: sites that a proposal moves; none for the independent sampler.
    :param resampler: as for :class:`SMC`.
    :param float ess_threshold: as for :class:`SMC`.
    :param proposals: per-site proposals; the prior where there is none.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has its own chain.
    """

    extended_state: ClassVar[bool] = True
    scores_its_state: ClassVar[bool] = False  # a filter keeps its weights
    messengers: ClassVar[tuple[type[ParameterMessenger], type[ParameterMessenger]]] = ParameterMessenger, ParameterReferenceMessenger
    """Of a filter, and of a conditional one."""

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        num_particles: int,
        *,
        parameters: tuple[str, ...] = (),
        resampler: str | Resampler = "systematic",
        ess_threshold: float = 0.5,
        proposals: Proposals | None = None,
        max_plate_nesting: int = 0,
    ) -> None:
        super().__init__(model, proposals=proposals, max_plate_nesting=max_plate_nesting)
        self.parameters = parameters
        self.options = FilterOptions(num_particles, max_plate_nesting, get_resampler(resampler), ess_threshold, proposals)

    def first_state(self, *args: Any, **kwargs: Any) -> Trajectory:
        """A first filter, its parameters drawn from their prior.

        :raises SMCFailed: if all particles of all populations have weight zero.
        """
        return self._state(self.filter(None, args, kwargs))

    @torch.no_grad()
    def sweep(self, reference: Trajectory, *args: Any, **kwargs: Any) -> ParticlePosterior:
        """The particles of the filter after one iteration."""
        return self._renew(reference, args, kwargs)[0].posterior

    def transition(self, state: Trajectory, *args: Any, **kwargs: Any) -> tuple[ParticlePosterior, Trajectory]:
        after, acceptance = self._renew(state, args, kwargs)
        moved = self._state(after)
        moved.chain = self.adapted(state.chain.after(acceptance), acceptance)
        return after.posterior, moved

    def propose(self, present: FilterState, chain: ChainRecord) -> Mapping[str, Tensor]:
        """Parameters of the next filter in unconstrained space, by a symmetric random walk."""
        return {}

    def adapted(self, chain: ChainRecord, acceptance: Tensor) -> ChainRecord:
        """The record with which the chain goes to its next step.

        :param Tensor acceptance: ``[*plates]`` acceptance probabilities of the last step.
        """
        return chain

    def accept(self, present: FilterState, proposed: FilterState) -> Tensor:
        """``[*plates]``: probability of accepting the proposed filter."""
        log_ratio = proposed.log_density - present.log_density
        # A dead filter is never accepted, not even in the place of a dead one.
        return torch.where(proposed.log_density == -torch.inf, 0.0, log_ratio.clamp(max=0.0).exp())

    def filter(self, unconstrained: Mapping[str, Tensor] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FilterState:
        """One filter with given parameters, or with parameters from their prior."""
        messenger = self.messengers[0](self.options, parameters=self.parameters, unconstrained=unconstrained)
        return self._run(messenger, args, kwargs)

    def condition(self, reference: Trajectory, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FilterState:
        """The filter of a trajectory that came without one, drawn given that trajectory: a conditional filter.

        :raises ValueError: if the resampler has no conditional form.
        """
        messenger = self.messengers[1](self.options, parameters=self.parameters, reference=reference)
        return self._run(messenger, args, kwargs)

    def _run(self, messenger: ParameterMessenger, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FilterState:
        posterior = sweep(self.model, messenger, args, kwargs)
        messenger.check_parameters()
        return FilterState(posterior, messenger.unconstrained)

    def _renew(self, state: Trajectory, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[FilterState, Tensor]:
        """Propose, accept or reject: the next filter, and the probability ``[*plates]`` with which it was the proposed one."""
        present = state.filter if isinstance(state.filter, FilterState) else self.condition(state, args, kwargs)
        try:
            proposed = self.filter(self.propose(present, state.chain), args, kwargs)
        except SMCFailed:
            return present, torch.zeros_like(present.log_density)
        probability = self.accept(present, proposed)
        accepted = self.draw_accepted(probability)
        if bool(accepted.all()):
            return proposed, probability
        return (self._merge(present, proposed, accepted, args, kwargs) if bool(accepted.any()) else present), probability

    def draw_accepted(self, probability: Tensor) -> Tensor:
        return torch.rand(probability.shape, dtype=probability.dtype, device=probability.device) < probability

    def _merge(
        self, present: FilterState, proposed: FilterState, accepted: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> FilterState:
        """The populations ``accepted [*plates]`` of one filter and the others of another.

        One filter may have sites that the other reached done, so the model is run again along the trajectories of both; nothing is drawn
        or scored.
        """
        old, new = present.posterior, proposed.posterior

        def chosen(a: Tensor, b: Tensor) -> Tensor:
            where = accepted.reshape(*accepted.shape, *(1,) * (a.dim() - self.max_plate_nesting - 1))
            return torch.where(where, b, a)

        values = {}
        for name, either in (old.sites | new.sites).items():
            value = chosen(old.sites.get(name, either), new.sites.get(name, either))
            known = (accepted & (name in new.sites)) | (~accepted & (name in old.sites))
            values[name] = KnownValue(value, known.expand(old.num_particles, *known.shape))
        messenger = ReplayMessenger(old.num_particles, self.max_plate_nesting, values)
        replayed = sweep(self.model, messenger, args, kwargs).particles
        a, b = old.particles, new.particles
        assert a.lengths is not None and a.log_likelihood is not None
        assert b.lengths is not None and b.log_likelihood is not None
        posterior = ParticlePosterior(
            replayed._replace(
                weights=Weights(chosen(a.weights.log_weights, b.weights.log_weights)),
                plate_dims=a.plate_dims,
                records=tuple(record.bare for record in replayed.records),  # a replay weighs nothing
                lengths=chosen(a.lengths, b.lengths),
                log_likelihood=chosen(a.log_likelihood, b.log_likelihood),
            )
        )
        unconstrained = {
            name: torch.where(accepted.reshape(*accepted.shape, *(1,) * (u.dim() - accepted.dim())), proposed.unconstrained[name], u)
            for name, u in present.unconstrained.items()
        }
        return FilterState(posterior, unconstrained)

    @staticmethod
    def _state(filter: FilterState) -> Trajectory:
        state = filter.posterior.draw(dead=True)
        state.filter = filter
        return state
