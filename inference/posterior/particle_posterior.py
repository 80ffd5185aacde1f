"""What a particle algorithm returns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from ..particles.checkpoint import Checkpoint
from ..particles.history import History
from ..particles.pytree import particle as particle_of
from ..particles.pytree import pick, take, take_one, view
from ..particles.snapshot import Snapshot
from ..particles.trajectory import Trajectory
from ..particles.weighted_particles import WeightedParticles
from ..particles.weights import Weights
from .audit_report import AuditReport
from .marginals import PosteriorMarginals
from .pyro_compat import PyroTraces
from .views import PosteriorViews


class ParticlePosterior(PosteriorMarginals, PyroTraces, PosteriorViews):
    """Weighted particles with their genealogy.

    N particles, P the model's independent plates (often none), T barriers. Attributes with a particle dimension follow *surviving*
    lineages: particle ``n`` of :attr:`sites`, :attr:`value` and :attr:`log_weights` is one trajectory. Works with Pyro's
    ``EmpiricalMarginal`` where the model has no independent plates.

    :param WeightedParticles particles: what is known of them.
    :ivar WeightedParticles particles: the same with every level of ``max_plate_nesting``.
    :ivar dict cost: work done, by counter (tokens, forward passes, seconds).
    :ivar AuditReport audit: the replay audit's report, where one was asked for.
    :ivar bool complete: whether the model came to its end, not stopped at a barrier before; ``exact``: whether weights are exact.
    :ivar list parts: posteriors whose particles this one pools, each of which is a ``part_name`` and found at the attribute ``parts_at``;
        ``unbiased`` tells whether the mean weight of a part estimates the evidence.
    :ivar list iterations: of a Markov chain.
    :ivar str no_evidence: why :attr:`log_evidence` is refused; ``None`` where the mean weight estimates the evidence.
    :cvar bool estimates_posterior: whether weights estimate the model's posterior; those of a search are votes.
    :cvar str unit: what :meth:`diagnostics` lists ``ess`` and ``resampled`` over: ``step``, ``batch``, ``iteration`` or ``stage``.
    """

    complete: bool = True
    exact: bool = False
    estimates_posterior: ClassVar[bool] = True
    unit: ClassVar[str] = "step"
    parts: Sequence[ParticlePosterior] = ()
    iterations: Sequence[ParticlePosterior] = ()
    part_name: ClassVar[str] = "part"
    parts_at: ClassVar[str] = "parts"
    unbiased: ClassVar[bool] = True
    checkpoint: Checkpoint | None = None
    no_evidence: str | None = None

    def __init__(self, particles: WeightedParticles) -> None:
        weights, lengths, log_likelihood = particles.weights, particles.lengths, particles.log_likelihood
        if lengths is not None and lengths.shape != weights.log_weights.shape:  # where no site has weighed a plate's populations yet
            weights = Weights(torch.broadcast_tensors(weights.log_weights, lengths)[0])
        like = weights.log_weights
        self.particles = particles._replace(
            weights=weights,
            lengths=None if lengths is None else lengths.expand_as(like),
            log_likelihood=None if log_likelihood is None else log_likelihood.expand_as(like),
        )
        self.cost: dict[str, float] = {}
        self.audit: AuditReport | None = None

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot) -> ParticlePosterior:
        """Of the particles of a sweep at a barrier, or at its end."""
        return ParticlePosterior(
            WeightedParticles(
                weights=snapshot.weights,
                plate_dims=tuple(sorted(frame.dim for frame in snapshot.plates)),
                sites=tuple(snapshot.all_sites[: snapshot.num_sites]),
                records=tuple(snapshot.all_records[: snapshot.num_records]),
                value=snapshot.value,
                lengths=snapshot.lengths,
                log_likelihood=snapshot.log_likelihood,
                log_bridged=snapshot.log_bridged,
            )
        )

    def reweighted(self, weights: Weights) -> ParticlePosterior:
        """The same particles with other weights ``[N, *plates]``."""
        return ParticlePosterior(self.particles._replace(weights=weights))

    @property
    def value(self) -> Any:
        """What the model returned."""
        return self.particles.value

    @property
    def num_particles(self) -> int:
        """N."""
        return self.particles.weights.num_particles

    @property
    def num_barriers(self) -> int:
        """T, the number of barriers so far."""
        return len(self.particles.records)

    def save(self, path: str | Path, *, caches: bool = True) -> None:
        """Write what :meth:`SMC.resume` needs to continue from here; an existing file is replaced as a whole.

        :param bool caches: also write what the model's state keeps to save work (keys and values of language models), without which a
            resumed run is the same up to rounding only, and does that work again.
        :raises ValueError: if this posterior is not one of :class:`SMC`.
        """
        if self.checkpoint is None:
            raise ValueError(f"this {type(self).__name__} cannot be saved; states of SMC.run, SMC.iterate and its callback can")
        self.checkpoint.save(Path(path), caches)

    @property
    def log_weights(self) -> Tensor:
        """``[N, *P]`` float64, unnormalised; their log mean is :attr:`log_evidence`."""
        return self.particles.weights.log_weights[self.particles.public]

    @property
    def weights(self) -> Tensor:
        """``[N, *P]`` float64, normalised over particles."""
        return self.particles.weights.normalized[self.particles.public]

    @property
    def dead(self) -> Tensor:
        """``[*P]``: populations whose every particle has weight zero. Their evidence is estimated as zero (``log_evidence`` is -inf), their
        weights and ESS are 0, and their :meth:`answers` are empty; they count in every mean of evidences, which is what makes it unbiased.
        """
        return self.particles.weights.dead[self.particles.public]

    @property
    def log_evidence(self) -> Tensor:
        """``[*P]``: log of the unbiased estimate of the evidence.

        :raises ValueError: if the algorithm gives none, with the reason.
        """
        if self.no_evidence is not None:
            raise ValueError(self.no_evidence)
        return self.particles.weights.log_mean[self.particles.public]

    @property
    def ess(self) -> Tensor:
        """``[T, *P]``: effective sample size at each barrier, before resampling."""
        return self._stacked([step.ess[self.particles.public] for step in self.particles.records], self.log_weights[0])

    @property
    def ancestors(self) -> Tensor:
        """``[T, N, *P]``: parent of each particle at each barrier; the particle itself where it was not resampled."""
        return self._stacked([step.ancestors[self.particles.public] for step in self.particles.records], self.log_weights.long())

    @property
    def resampled(self) -> Tensor:
        """``[T, *P]``: whether each barrier resampled."""
        return self._stacked([step.resampled[self.particles.public] for step in self.particles.records], self.log_weights[0].bool())

    @staticmethod
    def _stacked(tensors: list[Tensor], like: Tensor) -> Tensor:
        """:param Tensor like: shape and number format of each, where there is none."""
        return torch.stack(tensors) if tensors else torch.zeros_like(like[None][:0])

    @cached_property
    def sites(self) -> dict[str, Tensor]:
        """``{name: [N, *P, *event]}``: latent (and deterministic) sites along the surviving lineages."""
        lineages = self.particles.lineages()
        return {site.name: view(site.value, lineages[site.barriers]) for site in self.particles.sites if site.value is not None}

    @cached_property
    def site_log_probs(self) -> dict[str, Tensor]:
        """``{name: [N, *P]}`` along the surviving lineages; only where they were recorded (``record_log_probs``)."""
        lineages = self.particles.lineages()
        return {site.name: take(site.log_prob, lineages[site.barriers]) for site in self.particles.sites if site.log_prob is not None}

    @cached_property
    def site_scores(self) -> dict[str, Tensor]:
        """``{name: [N, *P]}`` along the surviving lineages: scores of observed sites whose distribution has them (``StepReward``)."""
        lineages = self.particles.lineages()
        return {site.name: take(site.score, lineages[site.barriers]) for site in self.particles.sites if site.score is not None}

    @cached_property
    def history(self) -> History:
        """All particles of the run, those that died included, and where the particles of this posterior come from."""
        return History.of(self.particles.sites, self.particles.records, self.particles.weights.log_weights)

    def particle(self, index: tuple[int, ...]) -> Any:
        """What the model returned for one particle.

        :param tuple index: particle, then an index for each level of ``max_plate_nesting``.
        """
        return particle_of(self.value, index)

    @property
    def lengths(self) -> Tensor:
        """``[N, *P]``: steps that each particle took, i.e. segments between barriers with a latent site, until it was done."""
        return self._known("lengths", self.particles.lengths)

    @property
    def log_likelihood(self) -> Tensor:
        """``[N, *P]`` float64: log-probability of the observed sites of each particle, not tempered."""
        return self._known("log_likelihood", self.particles.log_likelihood)

    def _known(self, name: str, tensor: Tensor | None) -> Tensor:
        if tensor is None:
            raise ValueError(f"this {type(self).__name__} does not know {name}, which only algorithms that run and score particles do")
        return tensor[self.particles.public]

    def draw(self, *, dead: bool = False) -> Trajectory:
        """One trajectory by weight, for each plate index on its own: ``{name: [*plates, *event]}``.

        :param bool dead: give the last particle of a dead population, a trajectory of density zero from which a chain may start.
        :raises ValueError: for a dead population unless ``dead``.
        """
        weights = self.particles.weights
        if not weights.alive and not dead:
            self.require_alive()
        drawn = dist.Categorical(logits=weights.to_draw_by.movedim(0, -1)).sample()
        return self.take(drawn if weights.alive else torch.where(weights.dead, self.num_particles - 1, drawn))

    def require_alive(self) -> None:
        """
        :raises ValueError: if a population is dead, naming it: there is nothing to draw from.
        """
        if not bool(self.dead.any()):
            return
        index = self.dead.nonzero()[0].tolist()
        where = f" of problem {index[0] if len(index) == 1 else tuple(index)}" if index else ""
        raise ValueError(
            f"every particle{where} has weight zero, so there is nothing to draw: select the populations that live by ~posterior.dead, "
            "or run the algorithm with more particles"
        )

    def take(self, particles: Tensor) -> Trajectory:
        """The trajectories of given particles.

        :param Tensor particles: ``[*plates]`` with every level of ``max_plate_nesting``, of size 1 where a level is no independent plate.
        """
        picked, known = particles[None], self.particles
        tensors = (known.lengths, known.log_likelihood, known.log_bridged)
        length, log_likelihood, log_bridged = (None if tensor is None else take_one(tensor, picked) for tensor in tensors)
        taken = Trajectory(
            {name: take_one(value, picked) for name, value in self.sites.items()},
            length=length,
            log_likelihood=log_likelihood,
            value=pick(self.value, picked),
        )
        taken.log_bridged, taken.scores = log_bridged, {name: take_one(score, picked) for name, score in self.site_scores.items()}
        return taken

    @property
    def part_numbers(self) -> list[int]:
        """A number for each part."""
        return list(range(len(self.parts)))

    def diagnostics(self) -> dict[str, Any]:
        """Named figures of the run, as plain numbers, texts and lists; a list has a nested list for each independent plate.

        Every posterior has

        - ``num_particles``: N, over all parts;
        - ``ess``: effective sample size before each barrier (of a chain of each iteration, of a ladder of each stage; see :attr:`unit`);
        - ``resampled``: for each of them, whether any population was resampled;
        - ``complete``: whether the model came to its end;
        - ``dead``: whether every particle has weight zero;
        - ``log_evidence``, or ``no_evidence``: why there is none.

        Others add what their algorithm tells of itself; see there.
        """
        found: dict[str, Any] = {
            "num_particles": self.num_particles,
            **self._by_unit(),
            "complete": self.complete,
            "dead": self.dead.tolist(),
        }
        try:
            found["log_evidence"] = self.log_evidence.tolist()
        except ValueError as error:
            found["no_evidence"] = str(error)
        return found

    def _by_unit(self) -> dict[str, list[Any]]:
        """``ess`` and ``resampled``."""
        return {"ess": self.ess.tolist(), "resampled": [bool(record.resampled.any()) for record in self.particles.records]}

    def __repr__(self) -> str:
        plates = tuple(self.log_weights.shape[1:])
        try:
            log_evidence = self.log_evidence
            evidence = f"log evidence {log_evidence.item():.4g}" if not plates else f"log evidence {plates}, mean {log_evidence.mean():.4g}"
        except ValueError:
            evidence = "no evidence"
        now = self.particles.weights.ess[self.particles.public]
        ess = f"{now.item():.1f}" if not plates else f"{now.min().item():.1f} to {now.max().item():.1f}"
        return (
            f"ParticlePosterior({self.num_particles} particles, {len(self.particles.records)} barriers, "
            f"{sum(int(step.resampled.any()) for step in self.particles.records)} resampled, {evidence}, ESS {ess})"
        )
