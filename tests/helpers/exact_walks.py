"""Exact transition matrices of walks on prefixes: of the real kernel with all of its choices enumerated, and of the definition."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_llm.inference import PrefixWalk, Trajectory
from tests.helpers.exact import END, PAD, AbsorbingCategorical, Chain
from tests.helpers.exact_conditional import codes, grid
from tests.helpers.programs_that_stop import Silent, Stopping


class _Forced(AbsorbingCategorical):
    """Draws what it is told."""

    forced: Tensor

    @classmethod
    def _of(cls, probs: Tensor, active: Tensor, like: AbsorbingCategorical) -> AbsorbingCategorical:
        new = cls(probs, active)
        new.forced = like.forced  # type: ignore[attr-defined]
        return new

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return torch.where(self.active, self.forced, PAD)


class _Draws(Messenger):
    """The children that a walk draws, taken from its choices; keeps their log-probabilities."""

    def __init__(self, model: Chain) -> None:
        super().__init__()
        self.model, self.walk = model, None

    def __call__(self, columns: int) -> Any:
        self.log_p: dict[int, Tensor] = {}
        with self:
            return self.model(columns)

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], AbsorbingCategorical) and self.walk is not None:
            t = int(msg["name"].split("_")[1])
            fn = _Forced(msg["fn"].probs, msg["fn"].active)
            fn.forced = self.walk.child_choice(t)
            msg["fn"] = fn
            # A choice that a finished execution does not use is made uniformly.
            self.log_p[t] = torch.where(fn.active, fn.log_prob(fn.sample()), -math.log(self.model.num_symbols))


def transition_matrix(model: Chain, kernel: type[PrefixWalk], steps: int, log_scale: list[float] | None = None) -> tuple[Tensor, Tensor]:
    """The real sweep on every (start, split, directions, children, decisions) as columns: pi ``[R]`` and K ``[R, R]``.

    A window of K steps makes K choices of each kind, whichever of its two walks makes them. Draws that a later step may use are numbered
    on from that of the step that makes them, so that no two draws that are used have one number.
    """
    v = model.num_symbols
    table = model.paths()
    starts, pi = torch.tensor(list(table)), torch.tensor(list(table.values()), dtype=torch.float64)
    chosen = grid([len(starts), steps + 1] + [2] * steps + [2] * steps + [v] * steps)
    which, split = chosen[0], chosen[1]
    directions, decisions, children = chosen[2:].split(steps)
    columns = chosen.shape[1]
    draws = _Draws(model)

    class Enumerated(kernel):  # type: ignore[misc, valid-type]
        step, log_prob = 0, torch.zeros(columns, dtype=torch.float64)

        def draw_split(self, shape: torch.Size, device: torch.device) -> Tensor:
            return split

        def draw_scale(self, args: Any, kwargs: Any) -> Tensor:
            assert log_scale is not None
            return torch.tensor(log_scale, dtype=torch.float64)[:, None].expand(-1, columns)

        def child_choice(self, t: int) -> Tensor:
            return children.gather(0, (self.position + t - self.state.at.depth).clamp(0, steps - 1))

        def walk(self, walk: Any, walking: Tensor, args: Any, kwargs: Any) -> None:
            self.state, self.walking, self.calls, draws.walk = walk, walking, 0, self
            self.position = torch.stack([torch.full_like(split, self.step), split + self.step]).clamp(max=steps - 1)
            super().walk(walk, walking, args, kwargs)
            self.step, draws.walk = self.step + 1, None

        def decide(self, probability: Tensor) -> Tensor:
            choice = (directions, decisions)[self.calls].gather(0, self.position).bool()
            taken = torch.where(choice, probability, 1 - probability).log()
            if self.calls == 0:
                self.upward = choice
            else:
                up = self.walking & self.upward & ~self.state.leaf
                if draws.log_p:
                    log_p = torch.stack([draws.log_p.get(t, torch.zeros(2, columns)) for t in range(model.length)])
                    drawn = log_p.gather(0, self.state.at.depth.clamp(max=model.length - 1)[None])[0]
                    taken = taken + torch.where(up, drawn, -math.log(v))
                else:
                    taken = taken - math.log(v)
            self.calls += 1
            self.log_prob = self.log_prob + torch.where(self.walking, taken, 0.0).sum(0)
            return choice

    made = Enumerated(draws, steps=steps, pilot=0 if log_scale is None else 1, max_plate_nesting=1)
    reference = Trajectory({f"x_{t}": starts[which, t] for t in range(model.length)})
    posterior = made.sweep(reference, columns)
    number = torch.zeros((v + 1) ** model.length, dtype=torch.long)
    number[codes(list(starts.T), v)] = torch.arange(len(starts))
    absent = torch.full((posterior.num_particles, columns), PAD)
    after = number[codes([posterior.sites.get(f"x_{t}", absent) for t in range(model.length)], v)]
    mass = made.log_prob.exp() / (steps + 1) * posterior.particles.weights.normalized
    matrix = torch.zeros(len(starts), len(starts), dtype=torch.float64)
    matrix.index_put_((which.expand_as(after), after), mass, accumulate=True)
    return pi / pi.sum(), matrix


class DefinedWalk:
    """The walk as its docstring defines it, in plain Python, on the tree of a chain's prefixes.

    :ivar dict step: of each node, the probabilities of the next node.
    :ivar list leaves: in the order of ``model.paths()``.
    """

    def __init__(self, model: Chain, log_scale: list[float] | None = None) -> None:
        self.model = model
        tells = isinstance(model, Stopping) and not isinstance(model, Silent)
        scale = log_scale or [0.0]

        def is_leaf(node: tuple[int, ...]) -> bool:
            return len(node) == model.length or (tells and END in node)

        def children(node: tuple[int, ...]) -> dict[tuple[int, ...], float]:
            if model.ends and END in node:
                return {(*node, PAD): 1.0}
            probs = model.init if not node else model.transition[node[-1]]
            return {(*node, x): float(p) for x, p in enumerate(probs)}

        def log_v(node: tuple[int, ...]) -> float:
            total, code = 0.0, 0
            for t, x in enumerate(node):
                code = code * (model.num_symbols + 1) + x + 1
                total += float(model.potentials[t][code].log()) if x != PAD else 0.0
            return total if is_leaf(node) else total + scale[min(len(node), len(scale) - 1)]

        self.step: dict[tuple[int, ...], dict[tuple[int, ...], float]] = {}
        nodes: list[tuple[int, ...]] = [()]
        while nodes:
            node = nodes.pop()
            below = {} if is_leaf(node) else children(node)
            go = {child: p / 2 * min(1.0, math.exp(log_v(child) - log_v(node))) for child, p in below.items()}
            if node:
                go[node[:-1]] = 0.5 * min(1.0, math.exp(log_v(node[:-1]) - log_v(node)))
            go[node] = 1.0 - sum(go.values())
            self.step[node] = go
            nodes += below
        whole = [tuple(x for x in path if x != PAD) if tells else path for path in model.paths()]
        self.leaves = {leaf: i for i, leaf in enumerate(whole)}

    def visits(self, start: tuple[int, ...], steps: int) -> dict[tuple[int, ...], float]:
        """Distribution of the number of steps spent at each leaf, the beginning not counted."""
        now = {(start, (0,) * len(self.leaves)): 1.0}
        for _ in range(steps):
            then: dict[Any, float] = {}
            for (node, counts), p in now.items():
                for other, q in self.step[node].items():
                    i = self.leaves.get(other)
                    spent = counts if i is None else (*counts[:i], counts[i] + 1, *counts[i + 1 :])
                    then[other, spent] = then.get((other, spent), 0.0) + p * q
            now = then
        found: dict[tuple[int, ...], float] = {}
        for (_, counts), p in now.items():
            found[counts] = found.get(counts, 0.0) + p
        return found

    def matrix(self, steps: int) -> Tensor:
        """K ``[R, R]`` of a window."""
        result = torch.zeros(len(self.leaves), len(self.leaves), dtype=torch.float64)
        for leaf, i in self.leaves.items():
            for split in range(steps + 1):
                for before, p in self.visits(leaf, split).items():
                    for after, q in self.visits(leaf, steps - split).items():
                        spent = torch.tensor([a + b for a, b in zip(before, after, strict=True)], dtype=torch.float64)
                        spent[i] += 1
                        result[i] += p * q / (steps + 1) * spent / spent.sum()
        return result
