"""Pyro idioms as small programs with exact answers: the rows of the table in docs/model.md.

Exact answers are sums over paths in plain Python. Steps are absorbing: a particle whose ``z_0`` is 0 has ended, and masks hold from there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_llm.inference import TemperMessenger, barrier

FIRST = (0.4, 0.6)
SECOND = ((0.7, 0.3), (0.2, 0.8))
EARLY = (0.2, 0.9)
LATE = ((0.5, 0.9), (0.8, 0.1))
PROPOSED = (0.6, 0.4)
SHOWN = (0.4, 0.6)
"""Of 1 in the data, given the shared latent."""

Paths = list[tuple[float, dict[str, int]]]


@dataclass(frozen=True)
class Idiom:
    """A program, and what each kind of algorithm does with it.

    :ivar paths: unnormalised mass and site values of every path, given the subsample that the program has ``seen``.
    :ivar dict cells: the error's words of each kind that refuses the program; ``None`` where the row does not apply.
    :ivar list seen: indices that the plate of the program has drawn.
    """

    program: Callable[[], Any]
    paths: Callable[[], Paths]
    cells: dict[str, str | None] = field(default_factory=dict)
    proposals: dict[str, Any] | None = None
    nesting: int = 0
    seen: list[list[int]] = field(default_factory=list)

    def evidence(self) -> float:
        return math.fsum(mass for mass, _ in self.paths())

    def means(self) -> dict[str, float]:
        """Of every site, the probability of 1."""
        paths = self.paths()
        names = paths[0][1]
        return {name: math.fsum(mass for mass, values in paths if values[name] == 1) / self.evidence() for name in names}


def table(rows: Any) -> Tensor:
    return torch.tensor(rows)


def walk(masked: Callable[[Any, Tensor, str], Tensor]) -> Callable[[], Tensor]:
    """Two steps; ``masked(fn, going, name)`` is the second latent site, which only particles that have not ended should have."""

    def program() -> Tensor:
        z = pyro.sample("z_0", dist.Categorical(table(FIRST)))
        pyro.factor("f_0", table(EARLY)[z].log())
        z = barrier(z)
        going = z == 1
        late = masked(dist.Categorical(table(SECOND)[z]), going, "z_1")
        pyro.factor("f_1", torch.where(going, table(LATE)[z, late].log(), 0.0))
        return late

    return program


def walk_paths(scale: float = 1.0, early: float = 1.0) -> Paths:
    """
    :param float scale: power of the second site where it is not masked.
    :param float early: power of the first site.
    """
    paths: Paths = []
    for a, b in itertools.product((0, 1), repeat=2):
        mass = FIRST[a] ** early * EARLY[a] * (SECOND[a][b] ** scale * LATE[a][b] if a else SECOND[a][b])
        paths.append((mass, {"z_0": a, "z_1": b}))
    return paths


def by_fn_mask(fn: Any, going: Tensor, name: str) -> Tensor:
    return pyro.sample(name, fn.mask(going))  # type: ignore[no-any-return]


def by_poutine(fn: Any, going: Tensor, name: str) -> Tensor:
    with poutine.mask(mask=going):
        return pyro.sample(name, fn)  # type: ignore[no-any-return]


def by_both(fn: Any, going: Tensor, name: str) -> Tensor:
    """Two masks whose common part is the one meant, and a scale, which leaves masked particles alone."""
    with poutine.scale(scale=2.0), poutine.mask(mask=going | True), poutine.mask(mask=going):
        return pyro.sample(name, fn.mask(going | True))  # type: ignore[no-any-return]


def vector(mask: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """A second site of two elements, each of which counts where ``mask(going [N]) [N, 2]`` has it."""

    def program() -> Tensor:
        z = pyro.sample("z_0", dist.Categorical(table(FIRST)))
        pyro.factor("f_0", table(EARLY)[z].log())
        z = barrier(z)
        probs = table(SECOND)[z][..., 1:].expand(*z.shape, 2)
        late = pyro.sample("v", dist.Bernoulli(probs).mask(mask(z == 1)).to_event(1))
        pyro.factor("f_1", torch.where(z == 1, table(LATE)[z, late[..., 0].long()].log(), 0.0))
        return late

    return program


def whole(going: Tensor) -> Tensor:
    return going[..., None].expand(*going.shape, 2)


def only_first(going: Tensor) -> Tensor:
    return torch.stack([going, torch.zeros_like(going)], -1)


def vector_paths() -> Paths:
    return [
        (FIRST[a] * EARLY[a] * SECOND[a][b] * SECOND[a][c] * (LATE[a][b] if a else 1.0), {"z_0": a})
        for a, b, c in itertools.product((0, 1), repeat=3)
    ]


def repeated() -> Tensor:
    z = torch.zeros((), dtype=torch.long)
    for t in range(2):
        z = pyro.sample("z", dist.Categorical(table(SECOND)[z]))
        pyro.factor(f"f_{t}", table(EARLY)[z].log())
        z = barrier(z)
    return z


def masked_observation() -> Tensor:
    z = pyro.sample("z_0", dist.Categorical(table(FIRST)))
    pyro.sample("y_0", dist.Bernoulli(table(EARLY)[z]), obs=torch.tensor(1.0))
    z = barrier(z)
    pyro.sample("y_1", dist.Bernoulli(table(LATE)[1][z]).mask(z == 1), obs=torch.tensor(1.0))
    with poutine.mask(mask=z == 1):
        pyro.sample("y_2", dist.Bernoulli(0.3).expand(z.shape), obs=torch.tensor(1.0))
    return z


def partly_observed() -> Tensor:
    """Particles that have not ended observe 1; the others draw a value of their own."""
    z = pyro.sample("z_0", dist.Categorical(table(FIRST)))
    pyro.factor("f_0", table(EARLY)[z].log())
    z = barrier(z)
    x = pyro.sample("x", dist.Categorical(table(SECOND)[z]), obs=torch.ones_like(z), obs_mask=z == 1)
    pyro.factor("f_1", torch.where(z == 1, 0.0, table(LATE)[z, x].log()))
    return x  # type: ignore[no-any-return]


def scaled() -> Tensor:
    with poutine.scale(scale=0.5):
        z = pyro.sample("z_0", dist.Categorical(table(FIRST)))
    with poutine.scale(scale=2.0):
        pyro.factor("f_0", table(EARLY)[z].log())
    return barrier(z)  # type: ignore[no-any-return]


def subsampled() -> Idiom:
    """A latent site that all data share."""
    data = (1.0, 0.0, 1.0, 1.0)
    seen: list[list[int]] = []

    def program() -> Tensor:
        z = pyro.sample("z_0", dist.Categorical(table(FIRST)))
        shape = z.shape
        with pyro.plate("data", 4, subsample_size=2, dim=-1 if not shape or len(shape) > 1 else -2) as index:
            seen.append(sorted(index.tolist()))
            shown = torch.tensor(data)[index]
            pyro.sample("y", dist.Bernoulli(table(SHOWN)[z]), obs=shown if len(shape) != 1 else shown[:, None])
        return barrier(z)  # type: ignore[no-any-return]

    def paths() -> Paths:
        assert all(index == seen[0] for index in seen), "every execution of a run has the same subsample"
        return [
            (FIRST[a] * math.prod(SHOWN[a] if data[i] else 1 - SHOWN[a] for i in seen[0]) ** 2, {"z_0": a})  # each stands for two
            for a in (0, 1)
        ]

    return Idiom(program, paths, nesting=1, seen=seen)


def subsampled_problems() -> Tensor:
    with pyro.plate("problems", 3, subsample_size=2, dim=-1):
        z = pyro.sample("z_0", dist.Categorical(table(FIRST)))
        pyro.factor("f_0", table(EARLY)[z].log())
        return barrier(z)  # type: ignore[no-any-return]


def hidden(draw: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    def program() -> Tensor:
        z = pyro.sample("z_0", dist.Categorical(table(FIRST)))
        z = barrier(z)
        late = draw(table(SECOND)[z])
        pyro.factor("f_1", table(LATE)[z, late].log())
        return z

    return program


def by_block(probs: Tensor) -> Tensor:
    with poutine.block(hide=["w"]):
        return pyro.sample("w", dist.Categorical(probs))  # type: ignore[no-any-return]


def hidden_paths() -> Paths:
    return [(FIRST[a] * math.fsum(SECOND[a][b] * LATE[a][b] for b in (0, 1)), {"z_0": a}) for a in (0, 1)]


def noted() -> Tensor:
    z = pyro.sample("z_0", dist.Categorical(table(FIRST)))
    pyro.deterministic("note", 1 - z)
    pyro.deterministic("shared", torch.arange(7))
    pyro.factor("f_0", table(EARLY)[z].log())
    return barrier(z)  # type: ignore[no-any-return]


def in_place() -> Tensor:
    """A value that was drawn, and one that a barrier returned, are written to."""
    z = pyro.sample("z_0", dist.Categorical(table(FIRST)))
    pyro.factor("f_0", table(EARLY)[z].log())
    other = z.mul_(1)
    other.bitwise_xor_(1)
    other = barrier(other)
    other.bitwise_xor_(1)
    late = pyro.sample("z_1", dist.Categorical(table(SECOND)[other]))
    pyro.factor("f_1", torch.where(other == 1, table(LATE)[other, late].log(), 0.0))
    return late.add_(1)


def plain(fn: Any, going: Tensor, name: str) -> Tensor:
    return pyro.sample(name, fn)  # type: ignore[no-any-return]


def given_value() -> Callable[[], Tensor]:
    known = poutine.Trace()
    known.add_node("z_0", name="z_0", type="sample", is_observed=False, infer={}, value=torch.tensor(1))
    return poutine.replay(walk(plain), trace=known)  # type: ignore[no-any-return]


def later(first: float) -> Paths:
    """The second step after a first one that is 1."""
    return [(first * EARLY[1] * SECOND[1][b] * LATE[1][b], {"z_1": b}) for b in (0, 1)]


SMC, CHAINS, TEMPERING, ENUMERATION, SEARCHES = "SMC, importance", "chains", "tempering", "enumeration", "searches"
KINDS = (SMC, CHAINS, TEMPERING, ENUMERATION, SEARCHES)

TWICE: dict[str, str | None] = dict.fromkeys(KINDS, r"site 'z' is met twice in one execution; give every step a name of its own")
UNSEEN: dict[str, str | None] = dict.fromkeys((CHAINS, TEMPERING, ENUMERATION, SEARCHES), r"random numbers were drawn outside of visible")
NO_PROPOSALS: dict[str, str | None] = dict.fromkeys((ENUMERATION, SEARCHES))
WITHIN: dict[str, str | None] = {
    **dict.fromkeys((SMC, CHAINS, TEMPERING), r"site 'v' has a proposal and a mask that differs within an event"),
    **NO_PROPOSALS,
}
OF_PROBLEMS: dict[str, str | None] = {
    **dict.fromkeys(KINDS, r"plate 'problems' has a subsample_size.*leave out subsample_size, or sample what the elements share"),
    ENUMERATION: "plate",
}
NOT_LISTED: dict[str, str | None] = {ENUMERATION: r"site 'v' \(Independent\) has no finite support"}


def proposal() -> dict[str, Any]:
    return {"z_1": dist.Categorical(table(PROPOSED)), "z_0": dist.Categorical(table(PROPOSED))}


IDIOMS: dict[str, Idiom] = {
    "a site's name twice": Idiom(repeated, walk_paths, TWICE),
    "`fn.mask(m)`, latent": Idiom(walk(by_fn_mask), walk_paths),
    "`poutine.mask`, latent": Idiom(walk(by_poutine), walk_paths),
    "masks and a scale": Idiom(walk(by_both), lambda: walk_paths(scale=2.0)),
    "`fn.mask(m).to_event(1)`": Idiom(vector(whole), vector_paths, NOT_LISTED),
    "a mask within an event": Idiom(vector(only_first), vector_paths, NOT_LISTED),
    "a masked site with a proposal": Idiom(walk(by_fn_mask), walk_paths, NO_PROPOSALS, proposal()),
    "a masked site with a proposal, `poutine.mask`": Idiom(walk(by_poutine), walk_paths, NO_PROPOSALS, proposal()),
    "a mask within an event, proposal": Idiom(
        vector(only_first), vector_paths, WITHIN, {"v": dist.Bernoulli(torch.tensor([0.9, 0.2])).to_event(1)}
    ),
    "masked observation": Idiom(
        masked_observation, lambda: [(FIRST[a] * EARLY[a] * (LATE[1][1] * 0.3 if a else 1.0), {"z_0": a}) for a in (0, 1)]
    ),
    "`obs_mask`": Idiom(
        partly_observed,
        lambda: [
            (FIRST[a] * EARLY[a] * SECOND[a][b] * (SECOND[a][1] if a else LATE[a][b]), {"z_0": a, "x_unobserved": b})
            for a, b in itertools.product((0, 1), repeat=2)
        ],
    ),
    "`poutine.scale`": Idiom(scaled, lambda: [(FIRST[a] ** 0.5 * EARLY[a] ** 2, {"z_0": a}) for a in (0, 1)]),
    "`TemperMessenger(prior=a)`": Idiom(TemperMessenger(prior=0.5)(walk(by_fn_mask)), lambda: walk_paths(scale=0.5, early=0.5)),
    "`subsample_size`, shared latent": subsampled(),
    "`subsample_size`, problems": Idiom(subsampled_problems, walk_paths, OF_PROBLEMS, nesting=1),
    "`poutine.block`": Idiom(hidden(by_block), hidden_paths, UNSEEN),
    "random numbers without a site": Idiom(hidden(lambda probs: torch.distributions.Categorical(probs).sample()), hidden_paths, UNSEEN),
    "`pyro.deterministic`": Idiom(noted, lambda: [(FIRST[a] * EARLY[a], {"z_0": a, "note": 1 - a}) for a in (0, 1)]),
    "operations in place": Idiom(in_place, walk_paths),
    "`poutine.condition`": Idiom(poutine.condition(walk(plain), {"z_0": torch.tensor(1)}), lambda: later(FIRST[1])),
    "`poutine.replay`": Idiom(given_value(), lambda: later(1.0)),
    "`poutine.do`": Idiom(poutine.do(walk(plain), {"z_0": torch.tensor(1)}), lambda: later(1.0)),
}


def named(posterior: Any, names: Iterator[str] | Any) -> dict[str, Tensor]:
    """Weighted mean of ``site == 1`` over the particles."""
    found = {}
    for name in names:
        value = posterior.sites[name]
        weights = posterior.weights
        found[name] = (weights * (value == 1).double().reshape(weights.shape)).sum(0)
    return found
