"""Marginals of weighted particles: of a function of the return value, of sites, of answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Protocol

from pyro.infer.abstract_infer import EmpiricalMarginal
from torch import Tensor

from ..particles.weighted_particles import WeightedParticles
from .decision import Decision, Utility, decide
from .discrete_marginal import DiscreteMarginal, pool
from .equivalence_classes import Equivalent


class MarginalSource(Protocol):
    """The part of a posterior that :class:`PosteriorMarginals` reads."""

    particles: WeightedParticles

    @property
    def weights(self) -> Tensor: ...

    def particle(self, index: tuple[int, ...]) -> Any: ...

    def marginal(self, fn: Callable[[Any], Hashable] | str | list[str] | None = None) -> Any: ...

    def answers(self, equivalent: Equivalent | None = None) -> Any: ...


class PosteriorMarginals:
    """The marginals of a :class:`ParticlePosterior`. They come before Pyro's, which has a ``marginal`` of its own, among its bases."""

    def marginal(self: MarginalSource, fn: Callable[[Any], Hashable] | str | list[str] | None = None) -> Any:
        """The posterior of a function of the model's return value, or Pyro's marginal of sites.

        :param fn: called with what the model returned for one particle; its values must be hashable. A site name (or list, or ``None`` for
            the return value) gives Pyro's ``EmpiricalMarginal`` instead.
        :returns: a :class:`DiscreteMarginal`; with independent plates, nested lists of them, one per plate index.
        """
        if fn is None or isinstance(fn, str | list):
            return EmpiricalMarginal(self, fn)
        weights = self.weights.cpu()
        plates = weights.shape[1:]
        is_plate = [dim in self.particles.plate_dims for dim in range(1 - self.particles.weights.log_weights.dim(), 0)]

        def one(plate: tuple[int, ...]) -> DiscreteMarginal:
            picked = iter(plate)
            index = tuple(next(picked) if plate_here else 0 for plate_here in is_plate)
            here: tuple[Any, ...] = (slice(None), *plate)
            mass = weights[here].tolist()
            return DiscreteMarginal((fn(self.particle((n, *index))), w) for n, w in enumerate(mass) if w > 0)

        def nest(plate: tuple[int, ...]) -> Any:
            return one(plate) if len(plate) == len(plates) else [nest((*plate, i)) for i in range(plates[len(plate)])]

        return nest(())

    def answers(self: MarginalSource, equivalent: Equivalent | None = None) -> Any:
        """The posterior over answers: :meth:`marginal` of the return value's ``answers()`` method.

        :param equivalent: pools answers that count as the same, e.g. :class:`~ppl_llm.MathEquivalence`; see :func:`representatives`.
        :raises TypeError: if the model returns something else than an object with ``answers()``, such as a ``Context``.
        """
        first = self.particle((0,) * self.particles.weights.log_weights.dim())
        if not callable(getattr(first, "answers", None)):
            raise TypeError(
                f"answers() needs a model that returns its context, this one returned {type(first).__name__}; use marginal(fn) instead"
            )
        return pool(self.marginal(lambda value: value.answers()), equivalent)

    def decide(
        self: MarginalSource,
        utility: Utility | None = None,
        *,
        abstain: float | None = None,
        actions: Iterable[Hashable] | None = None,
        equivalent: Equivalent | None = None,
    ) -> Any:
        """The answer of greatest expected utility ``sum_x W(x) u(a, x)`` under :meth:`answers`, or none (minimum Bayes risk).

        ``posterior.decide(abstain=0.3)`` gives the most probable answer where its probability is at least 0.3. Under a
        :class:`SearchPosterior` W are the votes of a search.

        :param utility: ``utility(action, truth)``; by default 1 for the true answer and 0 for any other.
        :param float abstain: what no answer is worth; by default an answer is always chosen where there is one.
        :param actions: to choose from; by default the answers.
        :param equivalent: pools answers that count as the same, as in :meth:`answers`.
        :returns: a :class:`Decision`; with independent plates, nested lists of them, one per plate index.
        :raises TypeError: if the model returns something without ``answers()``, or ``utility`` is no function.
        :raises ValueError: for an ``abstain`` or a utility that is not finite, or an ``abstain`` that is no probability without a utility.
        """
        choices = None if actions is None else list(actions)

        def of(answers: Any) -> Any | Decision:
            if isinstance(answers, list):
                return [of(each) for each in answers]
            return decide(answers, utility, abstain=abstain, actions=choices)

        return of(self.answers(equivalent))
