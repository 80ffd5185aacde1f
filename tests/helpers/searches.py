"""Searches in plain Python, as their papers and released code define them, on a model whose draws can be recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_llm.inference import SearchPosterior, barrier
from ppl_llm.inference.particles.pytree import take
from tests.helpers.exact import AbsorbingCategorical

Path = tuple[int, ...]
SYMBOLS = 4
"""Symbol 0 ends a trajectory."""


@dataclass
class Particles:
    """What the model threads through its barriers."""

    code: Tensor
    done: Tensor

    def reorder(self, index: Tensor) -> Particles:
        return Particles(take(self.code, index), take(self.done, index))

    @property
    def batch_shape(self) -> torch.Size:
        return self.code.shape

    def __len__(self) -> int:
        return len(self.code)

    def __getitem__(self, i: int) -> Particles:
        return Particles(self.code[i], self.done[i])

    def path(self) -> Path:
        """Symbols of a single particle, padding left out."""
        code, symbols = int(self.code), []
        while code:
            code, digit = divmod(code, SYMBOLS + 1)
            symbols.append(digit - 1)
        return tuple(s for s in reversed(symbols) if s >= 0)


class Scripted(AbsorbingCategorical):
    """Draws what it is told."""

    forced: Tensor

    @classmethod
    def of(cls, probs: Tensor, active: Tensor, forced: Tensor) -> Scripted:
        new = cls(probs, active)
        new.forced = forced
        return new

    @classmethod
    def _of(cls, probs: Tensor, active: Tensor, like: AbsorbingCategorical) -> Scripted:
        return cls.of(probs, active, like.forced)  # type: ignore[attr-defined]

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return torch.where(self.active, self.forced, -1)


@dataclass
class Tree:
    """Trajectories of up to ``length`` symbols whose steps have integer log-factors: sums are exact, and ties are many.

    :ivar Tensor probs: ``[SYMBOLS]``.
    :ivar list factors: ``length`` tensors ``[(SYMBOLS + 1) ** (t + 1)]``, by the code of the prefix.
    :ivar forced: the symbols of step t, ``[particles, problems]``, in place of draws.
    :ivar list draws: the symbols of each step of each run, as they were drawn.
    """

    probs: Tensor
    factors: list[Tensor]
    ends: bool = True
    forced: Callable[[int], Tensor] | None = None
    final_barrier: bool = True
    draws: list[Tensor] = field(default_factory=list)

    def looked_ahead(self, path: Path, steps: int) -> float:
        """The score of a prefix that is continued by the most probable symbols."""
        for _ in range(steps):
            if self.finished(path) or len(path) == self.length:
                break
            path = (*path, int(self.probs.argmax()))
        return self.score(path)

    @property
    def length(self) -> int:
        return len(self.factors)

    def __call__(self, problems: int) -> Particles:
        with pyro.plate("problems", problems, dim=-1):
            state = Particles(torch.zeros(problems, dtype=torch.long), torch.zeros(problems, dtype=torch.bool))
            for t in range(self.length):
                fn = AbsorbingCategorical(self.probs, ~state.done)
                x = pyro.sample(f"x_{t}", fn if self.forced is None else Scripted.of(self.probs, ~state.done, self.forced(t)))
                self.draws.append(x)
                code = torch.where(state.done, state.code, state.code * (SYMBOLS + 1) + x + 1)
                pyro.factor(f"y_{t}", torch.where(state.done, 0.0, self.factors[t][code.clamp(max=len(self.factors[t]) - 1)]))
                state = Particles(code, state.done | (x == 0) if self.ends else state.done.expand_as(code))
                if t + 1 < self.length or self.final_barrier:
                    state = barrier(state)
        return state

    def score(self, path: Path) -> float:
        """Cumulative log-factor of a prefix."""
        code, total = 0, 0.0
        for t, symbol in enumerate(path):
            code = code * (SYMBOLS + 1) + symbol + 1
            total += float(self.factors[t][code])
        return total

    def finished(self, path: Path) -> bool:
        return self.ends and path[-1:] == (0,)

    def paths(self) -> dict[Path, float]:
        """Prior probability of every trajectory."""
        table: dict[Path, float] = {}

        def grow(path: Path, p: float) -> None:
            if self.finished(path) or len(path) == self.length:
                table[path] = p
                return
            for symbol in range(SYMBOLS):
                grow((*path, symbol), p * float(self.probs[symbol]))

        grow((), 1.0)
        return table


def tree(seed: int, length: int = 4, impossible: bool = False, **kwargs: Any) -> Tree:
    """A random tree with factors between -3 and 0, a tenth of them -inf if ``impossible``."""
    generator = torch.Generator().manual_seed(seed)
    factors = []
    for t in range(length):
        size = ((SYMBOLS + 1) ** (t + 1),)
        factor = -torch.randint(0, 4, size, generator=generator).double()
        dead = torch.rand(size, generator=generator) < 0.1
        factors.append(torch.where(dead, -math.inf, factor) if impossible else factor)
    return Tree(torch.tensor([0.3, 0.2, 0.25, 0.25], dtype=torch.float64), factors, **kwargs)


Draw = Callable[[int, int], int]
"""The symbol that particle i drew in step t."""


@dataclass
class Found:
    """A candidate, in the order of the result."""

    path: Path
    score: float
    votes: bool = True


def published_beam_search(
    tree: Tree,
    draw: Draw,
    beam_width: int,
    expand: int,
    sort_completed: bool = False,
    filter_duplicates: bool = False,
    lookahead: int = 0,
) -> list[Found]:
    """beam_search.py of search-and-learn, with n = beam_width * expand and M = expand; particles of score -inf are lost."""
    n = beam_width * expand
    beams: list[Path] = [()] * n
    completed: list[Found] = []
    active: list[Path] = []
    for t in range(tree.length):
        beams = [(*beam, draw(t, i)) for i, beam in enumerate(beams)]
        beams = [beam for beam in beams if tree.score(beam) > -math.inf]
        completed += [Found(beam, tree.score(beam)) for beam in beams if tree.finished(beam)]
        active = [beam for beam in beams if not tree.finished(beam)]
        if filter_duplicates:
            active = list(dict.fromkeys(active))
        if not active:
            break
        best = sorted(range(len(active)), key=lambda i: (-tree.looked_ahead(active[i], lookahead), i))[:beam_width]
        kept = [active[i] for i in sorted(best)]
        beams = [kept[i % len(kept)] for i in range(n)]
    if sort_completed:
        completed.sort(key=lambda found: -found.score)
    output = completed + [Found(beam, tree.score(beam)) for beam in active]
    return [output[i % len(output)] for i in range(n)]


def published_dvts(
    tree: Tree, draw: Draw, num_subtrees: int, expand: int, filter_duplicates: bool = False, lookahead: int = 0
) -> list[Found]:
    """diverse_verifier_tree_search.py of search-and-learn, except that a stopped subtree's unfinished siblings have no vote."""
    output = []
    for s in range(num_subtrees):
        prefix: Path = ()
        candidates: list[Path] = []
        for t in range(tree.length):
            candidates = [(*prefix, draw(t, s * expand + j)) for j in range(expand)]
            scores = [tree.looked_ahead(candidate, lookahead) for candidate in candidates]
            first = [not filter_duplicates or candidates.index(c) == i for i, c in enumerate(candidates)]
            best = scores.index(max(scores))
            prefix = candidates[best]
            if tree.finished(prefix):
                votes = [tree.finished(candidate) for candidate in candidates]
                shown = [c if finished else prefix for c, finished in zip(candidates, votes, strict=True)]
                output += [Found(c, tree.score(c), finished and new) for c, finished, new in zip(shown, votes, first, strict=True)]
                break
        else:
            output += [Found(c, tree.score(c), new) for c, new in zip(candidates, first, strict=True)]
    return output


def published_rebase(tree: Tree, draw: Draw, n: int, temperature: float) -> list[Found]:
    """select_softmax of rebase.py as released, in exact arithmetic; continued beams stay, and further copies replace the others."""
    beams: list[Path] = [()] * n
    found = beams
    for t in range(tree.length):
        beams = [beam if tree.finished(beam) else (*beam, draw(t, i)) for i, beam in enumerate(beams)]
        found = beams
        left = sum(not tree.finished(beam) for beam in beams)
        active = [i for i, beam in enumerate(beams) if not tree.finished(beam) and tree.score(beam) > -math.inf]
        if not active:
            continue
        best_first = sorted(active, key=lambda i: tree.score(beams[i]))[::-1]
        shares = [Fraction(math.exp(math.exp(tree.score(beams[i])) / temperature)) for i in best_first]
        copies = {i: 1 for i, beam in enumerate(beams) if tree.finished(beam)}
        for k, i in enumerate(best_first):
            copies[i] = math.ceil(left * shares[k] / sum(shares[k:]))
            left -= copies[i]
        further = iter([i for i in range(n) for _ in range(copies.get(i, 0) - 1)])
        beams = [beams[i if copies.get(i, 0) else next(further)] for i in range(n)]
    return [Found(beam, tree.score(beam)) for beam in found]


def dora(tree: Tree, draw: Draw, n: int, temperature: float, directions: list[list[float]], diversity: float) -> list[Found]:
    """The definition of :class:`DORA`, with the direction of a prefix given by its last symbol."""

    def cosine(a: Path, b: Path) -> float:
        u, v = directions[a[-1]], directions[b[-1]]
        return sum(x * y for x, y in zip(u, v, strict=True)) / ((math.hypot(*u) or 1.0) * (math.hypot(*v) or 1.0))

    beams: list[Path] = [()] * n
    found = beams
    for t in range(tree.length):
        beams = [beam if tree.finished(beam) else (*beam, draw(t, i)) for i, beam in enumerate(beams)]
        found = beams
        active = [i for i, beam in enumerate(beams) if not tree.finished(beam) and tree.score(beam) > -math.inf]
        if not active:
            continue
        left = sum(not tree.finished(beam) for beam in beams)
        by_score = {i: math.exp(math.exp(tree.score(beams[i])) / temperature) for i in active}
        active = [i for i in active if left * by_score[i] / sum(by_score.values()) > 0.5 + 1e-9]
        crowd = {i: sum(math.exp((cosine(beams[i], beams[j]) - 1) / diversity) for j in active) for i in active}
        shares = {i: by_score[i] / crowd[i] for i in active}
        best_first = sorted(active, key=lambda i: round(math.log(shares[i]) * 1e9))[::-1]
        copies = {i: 1 for i, beam in enumerate(beams) if tree.finished(beam)}
        for k, i in enumerate(best_first):
            copies[i] = max(0, math.ceil(left * shares[i] / sum(shares[j] for j in best_first[k:]) - 1e-9))
            left -= copies[i]
        further = iter([i for i in range(n) for _ in range(copies.get(i, 0) - 1)])
        beams = [beams[i if copies.get(i, 0) else next(further)] for i in range(n)]
    return [Found(beam, tree.score(beam)) for beam in found]


def speculative_rejection(tree: Tree, draw: Draw, n: int, keep: float, marks: list[int]) -> list[Found]:
    """The definition: a particle keeps its draws until it is dropped, and then repeats the best of those that were not."""
    paths: list[Path] = [()] * n
    running = list(range(n))
    for t in range(tree.length):
        for i in running:
            paths[i] = (*paths[i], draw(t, i))
        running = [i for i in running if not tree.finished(paths[i]) and tree.score(paths[i]) > -math.inf]
        if t + 1 in marks:
            best_first = sorted(running, key=lambda i: (-tree.score(paths[i]), i))
            running = sorted(best_first[: math.ceil(Fraction(str(keep)) * len(running))])
    whole = [i for i in range(n) if tree.finished(paths[i]) or i in running]
    whole = [i for i in whole if tree.score(paths[i]) > -math.inf]
    best = max(whole, key=lambda i: (tree.score(paths[i]), -i))
    shown = [paths[i if i in whole else best] for i in range(n)]
    return [Found(path, tree.score(path), votes=i == best) for i, path in enumerate(shown)]


SEEDS = 100
"""Problems of a run, each with draws of its own."""


def candidates(posterior: SearchPosterior, problem: int) -> list[Found]:
    particles = [posterior.particle((n, problem)).path() for n in range(posterior.num_particles)]
    assert posterior.scores is not None
    scores, weights = posterior.scores[:, problem].tolist(), posterior.log_weights[:, problem].tolist()
    return [Found(path, s, votes=w == s) for path, s, w in zip(particles, scores, weights, strict=True)]


def searched(search: Any, model: Tree, seed: int = 0, problems: int = SEEDS) -> tuple[SearchPosterior, list[Tensor]]:
    """The posterior, and what was drawn in each step."""
    pyro.set_rng_seed(seed)
    model.draws = []
    posterior = search.run(problems)
    return posterior, model.draws[: model.length]


@dataclass
class InnerRuns(Tree):
    """A tree of which runs inside of a run keep their draws to themselves."""

    running: bool = False

    def __call__(self, problems: int) -> Particles:
        kept = self.draws
        if self.running:
            self.draws = []
        outer, self.running = self.running, True
        try:
            return super().__call__(problems)
        finally:
            self.draws, self.running = kept, outer


def disagreement(search: Any, model: Tree, published: Any, seed: int = 0, problems: int = SEEDS) -> float:
    """Share of the problems whose result differs from the published definition's."""
    posterior, draws = searched(search, model, seed, problems)

    def differs(problem: int) -> bool:
        return candidates(posterior, problem) != published(lambda t, i: int(draws[t][i, problem]))

    return sum(map(differs, range(problems))) / problems


def scripted(steps: list[list[int]], factors: dict[Path, float], **kwargs: Any) -> Tree:
    """A tree with given draws of one problem, and log-factors of the named prefixes (0 elsewhere)."""
    model = tree(0, len(steps), forced=lambda t: torch.tensor(steps[t])[:, None], **kwargs)
    for t, table in enumerate(model.factors):
        table.zero_()
        for path, value in factors.items():
            if len(path) == t + 1:
                table[sum((s + 1) * (SYMBOLS + 1) ** (t - i) for i, s in enumerate(path))] = value
    return model


def results(posterior: SearchPosterior) -> list[tuple[str, float, bool]]:
    return [("".join(map(str, f.path)), f.score, f.votes) for f in candidates(posterior, 0)]
