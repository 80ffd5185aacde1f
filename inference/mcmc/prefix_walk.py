"""A random walk on the tree of prefixes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..handlers.prefix_messenger import Extension, Prefixes, PrefixMessenger, extend
from ..handlers.replay_messenger import KnownValue
from ..handlers.sweep import sweep
from ..particles.pytree import take
from ..particles.trajectory import Trajectory
from ..particles.weights import Weights
from ..posterior.particle_posterior import ParticlePosterior
from ..util.checked import checked
from ..util.validation import check_count
from .trajectory_kernel import TrajectoryKernel


class _Walk:
    """Two walks of each population that begin at the same leaf; all tensors are ``[2, *plates]``.

    :ivar Tensor log_v: ``[D, 2, *plates]``, product of the factors of the present node's ancestors and its own, by depth.
    :ivar Tensor log_scale: ``[D', *plates]``, what inner nodes have besides, by depth.
    :ivar Tensor slot: the visit that a walk at a leaf is in.
    :ivar list visits: the prefixes as they were whenever some walk came to a leaf.
    """

    def __init__(self, start: Extension, log_scale: Tensor) -> None:
        log_weights, done = start.log_weights, start.done
        depth = 1 + done.to(torch.uint8).argmax(0)  # of the first segment that completes it
        self.at = Prefixes(start.values, start.barriers, depth)
        self.log_v, self.log_scale = torch.cat([torch.zeros_like(log_weights[:1]), log_weights]), log_scale
        self.leaf = torch.ones_like(done[0])
        self.slot = torch.zeros_like(depth)
        self.visits, self.visit_log_v = [self.at], [self.factors()]
        self.drawn: Extension | None = None
        self.fresh = torch.zeros_like(self.leaf)  # whether what was drawn behind the present node has not been proposed yet

    def factors(self) -> Tensor:
        """Of the present node."""
        return self.log_v.gather(0, self.at.depth[None])[0]

    def here(self) -> Tensor:
        """log V."""
        return self.factors() + torch.where(self.leaf, 0.0, self.scale(self.at.depth))

    def parent(self) -> Tensor:
        depth = (self.at.depth - 1).clamp(min=0)
        return self.log_v.gather(0, depth[None])[0] + self.scale(depth)

    def scale(self, depth: Tensor) -> Tensor:
        return self.log_scale.gather(0, depth.clamp(max=len(self.log_scale) - 1))

    def lacks(self, up: Tensor) -> Tensor:
        """Walks that go up and have nothing drawn to go to."""
        drawn_to = 0 if self.drawn is None else len(self.drawn.done)
        return up & ~(self.fresh & (self.at.depth < drawn_to))

    def take_draws(self, extension: Extension) -> None:
        self.drawn, self.fresh = extension, torch.ones_like(self.fresh)

    def child(self) -> Tensor:
        """log V of what was drawn next; a walk without a draw gets one that it does not use."""
        factors, done = self.drawn_next()
        return factors + torch.where(done, 0.0, self.scale(self.at.depth + 1))

    def drawn_next(self) -> tuple[Tensor, Tensor]:
        """Factors up to the segment that was drawn next, and whether it completes the execution."""
        assert self.drawn is not None
        return self.drawn.log_weights.gather(0, self._next())[0], self.drawn.done.gather(0, self._next())[0]

    def _next(self) -> Tensor:
        assert self.drawn is not None
        return self.at.depth.clamp(max=len(self.drawn.done) - 1)[None]

    def move(self, up: Tensor, down: Tensor, proposed: Tensor) -> None:
        """Go up to the child, or down to the parent; ``proposed`` are walks that have used their draw."""
        if bool(up.any()):
            assert self.drawn is not None
            index, (log_v, done) = self._next(), self.drawn_next()
            self.at = self.at.with_segment(self.drawn, up)
            deeper = int(self.at.depth.max()) + 1 - len(self.log_v)
            if deeper > 0:
                self.log_v = torch.cat([self.log_v, torch.full_like(self.log_v[:1], -torch.inf).expand(deeper, *log_v.shape)])
            above = (index + 1).clamp(max=len(self.log_v) - 1)
            self.log_v = self.log_v.scatter(0, above, torch.where(up, log_v, self.log_v.gather(0, above)[0])[None])
            arrived = up & done
            if bool(arrived.any()):
                self.slot = torch.where(arrived, len(self.visits), self.slot)
                self.visits.append(self.at)
                self.visit_log_v.append(self.factors())
            self.leaf = self.leaf | arrived
        self.at = self.at._replace(depth=self.at.depth - down.long())
        self.leaf = self.leaf & ~down
        self.fresh = self.fresh & ~down & (~proposed | up)


class PrefixWalk(TrajectoryKernel):
    """Backtracking: a walk on the tree of prefixes that writes a step, or takes one back.

    The nodes are the prefixes y of executions, up to a barrier, with the weight ``p(y) V(y)`` where V(y) is the product of the factors so
    far, times a constant c_t at inner nodes of depth t; at a leaf, a complete execution, ``p(y) V(y)`` is the target. From y the walk
    proposes with probability 1/2 each a child drawn from the model, and its parent, and goes there with probability
    ``min(1, V(there) / V(y))``. Its leaves have the posterior whatever positive values inner nodes have: a reward model that errs makes
    the walk slow, and not wrong. The constants give every depth about the mass of all leaves, so that the walk is at a leaf once in T
    steps; each iteration estimates them from a ``pilot`` of executions of its own.

    This is the walk of [1] in the form of Metropolis and Hastings, which needs one draw of a child where [1] needs the sum over all
    children. (To take a drawn child with probability V(child) instead, without the ratio, gives the prior.)

    An iteration is a window of ``steps`` steps of the walk around the present execution: a uniform number of them backward from it, the
    others forward. All leaves in the window are the iteration's weighted executions, each with the number of steps spent there, and one
    of them drawn by weight is the next state: exact for any number of steps. A step up writes one reasoning step.

    An execution that is done is complete: nothing that the model does afterwards may change its weight.

    :param model: as for :class:`SMC`.
    :param int steps: of the walk in an iteration.
    :param int pilot: executions that set the constants; with 0 all constants are 1.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has a walk of its own.
    :raises ValueError: for arguments out of range, or a model that scores executions after they are done.

    References

    [1] *Taming Imperfect Process Verifiers: A Sampling Perspective on Backtracking*, Dhruv Rohatgi et al. (2025).
    """

    @checked
    def __init__(self, model: Callable[..., Any], *, steps: int = 64, pilot: int = 8, max_plate_nesting: int = 0) -> None:
        check_count("steps", steps)
        check_count("pilot", pilot, 0)
        super().__init__(model, max_plate_nesting=max_plate_nesting)
        self.steps, self.pilot = steps, pilot

    def sweep(self, reference: Trajectory, *args: Any, **kwargs: Any) -> ParticlePosterior:
        walk = self.begin(reference, args, kwargs)
        backward = self.draw_split(walk.leaf.shape[1:], walk.log_v.device)
        steps = torch.stack([backward, self.steps - backward])
        where = [torch.stack([torch.zeros_like(backward), torch.full_like(backward, -1)])]  # the visit after each step, -1 elsewhere
        for step in range(int(steps.max())):
            walking = step < steps
            self.walk(walk, walking, args, kwargs)
            where.append(torch.where(walking & walk.leaf, walk.slot, -1))
        spent = torch.stack([(torch.stack(where) == visit).sum(0) for visit in range(len(walk.visits))])  # [S, 2, *plates]
        spent[0] = torch.stack([spent[0].sum(0), torch.zeros_like(backward)])  # both begin at the same leaf
        return self.found(walk, self.visit_weights(spent), args, kwargs)

    def begin(self, reference: Trajectory, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Walk:
        """Two walks at the present execution."""
        everywhere = torch.ones((2,) + (1,) * self.max_plate_nesting, dtype=torch.bool)
        known = {name: KnownValue(value.expand(2, *value.shape), everywhere.to(value.device)) for name, value in reference.items()}
        extension = extend(self.model, known, 2, self.max_plate_nesting, args, kwargs)
        return _Walk(extension, self.draw_scale(args, kwargs) if self.pilot else torch.zeros_like(extension.log_weights[:1, 0]))

    def draw_scale(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """``[D, *plates]``: log-factors of inner nodes by depth that give every depth the mass of all leaves, as the pilot estimates it."""
        drawn = extend(self.model, {}, self.pilot, self.max_plate_nesting, args, kwargs)
        inner = torch.where(drawn.done, -torch.inf, drawn.log_weights).logsumexp(1)
        inner = torch.cat([torch.full_like(inner[:1], math.log(self.pilot)), inner])  # the root has V = 1
        scale = drawn.log_weights[-1].logsumexp(0) - inner
        scale[0] = torch.where(scale[0].isfinite(), scale[0], 0.0)
        for depth in range(1, len(scale)):
            scale[depth] = torch.where(scale[depth].isfinite(), scale[depth], scale[depth - 1])
        return scale

    def walk(self, walk: _Walk, walking: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """One step of the walks ``walking [2, *plates]``."""
        upward = self.decide(torch.full(walking.shape, 0.5, dtype=torch.float64, device=walk.log_v.device))
        up = walking & upward & ~walk.leaf
        down = walking & ~upward & (walk.at.depth > 0)
        lacks = walk.lacks(up)
        if bool(lacks.any()):
            until = int(torch.where(up, walk.at.depth, 0).max()) + 1
            walk.take_draws(extend(self.model, walk.at.known(), 2, self.max_plate_nesting, args, kwargs, until))
        here = walk.here()
        there = torch.where(up, walk.child(), walk.parent()) if bool(up.any()) else walk.parent()
        accepted = self.decide(torch.where(up | down, self.acceptance(here, there, up), 0.0))
        walk.move(up & accepted, down & accepted, up)

    def acceptance(self, here: Tensor, there: Tensor, up: Tensor) -> Tensor:
        """``min(1, V(there) / V(here))``; a first execution of density zero is left at once."""
        return torch.where(here == -torch.inf, 0.0, there - here).clamp(max=0.0).exp()

    def decide(self, probability: Tensor) -> Tensor:
        """True with the given probabilities."""
        return torch.rand(probability.shape, dtype=torch.float64, device=probability.device) < probability

    def draw_split(self, shape: torch.Size, device: torch.device) -> Tensor:
        """``[*plates]``: steps backward, uniform on 0 .. steps."""
        return torch.randint(0, self.steps + 1, shape, device=device)

    def visit_weights(self, spent: Tensor) -> Tensor:
        """Weights of the leaves of a window, given the steps spent at each."""
        return spent.double()

    def found(self, walk: _Walk, weights: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ParticlePosterior:
        """The posterior of the leaves visited, the first of them the present execution.

        :param Tensor weights: ``[S, 2, *plates]`` of the visits.
        """
        weights, log_v = weights.flatten(0, 1), torch.stack(walk.visit_log_v).flatten(0, 1)
        # A first execution of density zero has no weight; it stays the state where the walk has found no other.
        weights = torch.where(log_v > -torch.inf, weights, 0.0)
        counts = weights > 0
        counts[0] = True
        num = int(counts.sum(0).max())
        index = (~counts).to(torch.uint8).argsort(dim=0, stable=True)[:num]
        used = counts.gather(0, index)
        index = torch.where(used, index, 0)
        weights, log_v = torch.where(used, weights.gather(0, index), 0.0), log_v.gather(0, index)
        depth = torch.stack([visit.depth for visit in walk.visits]).flatten(0, 1).gather(0, index)
        known = {}
        for name, last in walk.at.values.items():
            values = torch.stack([visit.values.get(name, last) for visit in walk.visits]).flatten(0, 1)
            known[name] = KnownValue(take(values, index), walk.at.barriers[name] < depth)
        posterior = sweep(self.model, PrefixMessenger(num, self.max_plate_nesting, known), args, kwargs)
        self._check_complete(log_v, posterior.particles.weights.log_weights)
        # An execution of density zero has no weight, whatever the walk does where it has found no other.
        impossible = posterior.particles.weights.log_weights == -torch.inf
        return posterior.reweighted(Weights(torch.where(impossible, -torch.inf, weights.log())))

    def acceptance_probability(self, posterior: ParticlePosterior) -> Tensor:
        """Of another execution than the present one."""
        weights = posterior.particles.weights
        return torch.where(weights.dead, 0.0, 1.0 - weights.normalized[0])

    @staticmethod
    def _check_complete(log_v: Tensor, at_the_end: Tensor) -> None:
        """
        :raises ValueError: if the model changed the weights of executions that were done.
        """
        difference = torch.where(log_v == at_the_end, 0.0, (log_v - at_the_end).abs())
        if bool((difference > 1e-3 + 1e-4 * log_v.abs().clamp(max=1e30)).any()):
            worst = difference.argmax()
            before, after = float(log_v.flatten()[worst]), float(at_the_end.flatten()[worst])
            raise ValueError(
                f"an execution that was done with a log-weight of {before:.6g} has {after:.6g} at the end of the model: PrefixWalk needs "
                "weights that are complete where an execution is done. Score the end before the barrier that reports it, or use SuffixMH"
            )
