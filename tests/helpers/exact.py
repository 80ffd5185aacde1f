"""Exact tests of particle algorithms: all randomness of a real sweep, enumerated.

Every joint outcome of a sweep (each particle's value at each step, each cell of the resampler's uniforms) is one column of an inner plate,
so that the real engine runs once on all of them. A column's probability is the product of the probabilities of its choices; expectations
over the algorithm's randomness are then finite sums, exact up to rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyro
import torch
from hypothesis import strategies as st
from pyro.distributions import TorchDistribution, constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_llm.inference import RESAMPLERS, SMC, barrier
from ppl_llm.inference.posterior.particle_posterior import ParticlePosterior

END, PAD = 0, -1


class AbsorbingCategorical(TorchDistribution):
    """Categorical on active particles; ``PAD`` with probability one on the others."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.integer
    has_enumerate_support = True

    def __init__(self, probs: Tensor, active: Tensor) -> None:
        self.probs, self.active = probs, active
        super().__init__(torch.broadcast_shapes(probs.shape[:-1], active.shape), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AbsorbingCategorical:
        return type(self)._of(self.probs.expand(*batch_shape, self.probs.shape[-1]), self.active.expand(batch_shape), self)

    @classmethod
    def _of(cls, probs: Tensor, active: Tensor, like: AbsorbingCategorical) -> AbsorbingCategorical:
        return cls(probs, active)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        drawn = torch.distributions.Categorical(self.probs, validate_args=False).sample(sample_shape)
        return torch.where(self.active, drawn, PAD)

    @property
    def mode(self) -> Tensor:
        return torch.where(self.active, self.probs.argmax(-1), PAD)

    def log_prob(self, value: Tensor) -> Tensor:
        probs = self.probs.expand(*torch.broadcast_shapes(value.shape, self.batch_shape), self.probs.shape[-1])
        log_p = probs.gather(-1, value.clamp(min=0).expand(probs.shape[:-1])[..., None])[..., 0].log()
        return torch.where(self.active, torch.where(value >= 0, log_p, -math.inf), torch.where(value == PAD, 0.0, -math.inf))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = torch.arange(PAD, self.probs.shape[-1]).view(-1, *(1,) * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values


class ForcedCategorical(AbsorbingCategorical):
    """A proposal whose draws are the enumerated ones."""

    forced: Tensor

    @classmethod
    def _of(cls, probs: Tensor, active: Tensor, like: AbsorbingCategorical) -> AbsorbingCategorical:
        new = cls(probs, active)
        new.forced, new.path = like.forced, like.path  # type: ignore[attr-defined]
        return new

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        value = torch.where(self.active, self.forced, PAD)
        self.path.add(self, value)  # type: ignore[attr-defined]
        return value


@dataclass
class Chain:
    """A small state-space model with potentials on the whole prefix and particles that finish at different times.

    :ivar Tensor init: ``[V]``.
    :ivar Tensor transition: ``[V, V]``.
    :ivar list potentials: ``T`` tensors ``[(V + 1) ** (t + 1)]``, indexed by the code of the prefix.
    :ivar bool ends: whether symbol 0 finishes a particle.
    :ivar bool last_barrier: whether there is one after the last step.
    """

    init: Tensor
    transition: Tensor
    potentials: list[Tensor]
    ends: bool
    barriers: Callable[[Any], Any] = barrier
    last_barrier: bool = True

    @property
    def num_symbols(self) -> int:
        return len(self.init)

    @property
    def length(self) -> int:
        return len(self.potentials)

    def __call__(self, columns: int) -> Tensor:
        with pyro.plate("columns", columns, dim=-1):
            return self.walk(torch.Size([columns]))

    def walk(self, batch: torch.Size = torch.Size()) -> Tensor:
        """The model in plates of shape ``batch``; the code of the whole path."""
        x, code, done = (torch.zeros(batch, dtype=dtype) for dtype in (torch.long, torch.long, torch.bool))
        for t in range(self.length):
            probs = self.init if t == 0 else self.transition[x.clamp(min=0)]
            x = pyro.sample(f"x_{t}", AbsorbingCategorical(probs, ~done))
            code = code * (self.num_symbols + 1) + x + 1
            pyro.factor(f"y_{t}", self.log_factor(t, code, done))
            done = done | (x == END) if self.ends else done.expand_as(x)
            if self.last_barrier or t + 1 < self.length:
                x, code, done = self.barriers((x, code, done))
        return code

    def log_factor(self, t: int, code: Tensor, done: Tensor) -> Tensor:
        return torch.where(done, 0.0, self.potentials[t][code].log())

    def paths(self) -> dict[tuple[int, ...], float]:
        """Unnormalised posterior of every padded trajectory."""
        table: dict[tuple[int, ...], float] = {}

        def grow(path: tuple[int, ...], code: int, mass: float, done: bool) -> None:
            t = len(path)
            if t == self.length:
                table[path] = mass
                return
            if done:
                grow((*path, PAD), code * (self.num_symbols + 1), mass, True)
                return
            for v in range(self.num_symbols):
                p = self.init[v] if t == 0 else self.transition[path[-1], v]
                after = code * (self.num_symbols + 1) + v + 1
                grow((*path, v), after, mass * float(p * self.potentials[t][after]), self.ends and v == END)

        grow((), 0, 1.0, False)
        return table


class Path:
    """Log-probability of each column's choices."""

    def __init__(self, columns: int) -> None:
        self.log_prob = torch.zeros(columns, dtype=torch.float64)

    def add(self, fn: AbsorbingCategorical, value: Tensor) -> None:
        # A choice that a finished particle does not use is made uniformly: the columns that differ only in it share the outcome.
        log_p = torch.where(fn.active.expand_as(value), fn.log_prob(value), -math.log(fn.probs.shape[-1]))
        self.log_prob = self.log_prob + log_p.sum(0)


class ForceValues(Messenger):
    """Gives latent sites ``x_t`` their enumerated values."""

    def __init__(self, values: Tensor, path: Path) -> None:
        super().__init__()
        self.values, self.path = values, path

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], AbsorbingCategorical):
            forced = self.values[int(msg["name"].split("_")[1])]
            msg["value"] = torch.where(msg["fn"].active, forced, PAD)
            self.path.add(msg["fn"], msg["value"])


@dataclass
class EnumeratedResampler:
    """Calls the real scheme at the midpoint of a cell of its uniforms, a cell per column.

    :ivar Tensor cells: ``[barriers, uniforms, columns]`` the cell of each uniform.
    """

    scheme: Any
    cells: Tensor
    cuts: str
    log_prob: list[Tensor] = field(default_factory=list)

    @property
    def __name__(self) -> str:
        return self.scheme.__name__

    def num_uniforms(self, num_particles: int) -> int:
        return 1

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        cells = self.cells[len(self.log_prob)]
        points, log_prob = [], torch.zeros(cells.shape[-1], dtype=torch.float64)
        for k, cell in enumerate(cells):
            edges = uniform_cuts(self.cuts, log_weights, k)
            low, high = edges.gather(0, cell[None])[0], edges.gather(0, cell[None] + 1)[0]
            points.append((low + high) / 2)
            log_prob = log_prob + (high - low).clamp(min=0).log()
        self.log_prob.append(log_prob)
        return self.scheme(log_weights, torch.stack(points))


def uniform_cuts(scheme: str, log_weights: Tensor, k: int) -> Tensor:
    """Edges ``[N + 1, columns]`` of the cells of the k-th uniform in which the scheme's outcome is constant."""
    n = log_weights.shape[0]
    weights = log_weights.softmax(0)
    cdf = weights.cumsum(0)[:-1]
    if scheme == "multinomial":
        inner = cdf
    elif scheme == "systematic":
        inner = ((n * cdf) % 1.0).sort(0).values
    elif scheme == "stratified":
        inner = (n * cdf - k).clamp(0, 1)
    elif scheme == "residual":
        rest = n * weights - (n * weights).floor()
        inner = rest.cumsum(0)[:-1] / rest.sum(0).clamp(min=1e-300)
    elif scheme == "ssp" and n == 2:
        a, b = (n * weights) % 1.0
        to_a, to_b = torch.minimum(1 - a, b), torch.minimum(a, 1 - b)
        inner = (to_b / (to_a + to_b).clamp(min=1e-300))[None]
    else:
        raise NotImplementedError(f"{scheme} with {n} particles")
    ends = torch.zeros_like(weights[:1])
    return torch.cat([ends, inner.clamp(0, 1), ends + 1])


def num_uniforms(scheme: str, n: int) -> int:
    return 1 if scheme == "systematic" else RESAMPLERS[scheme].num_uniforms(n)


def enumerate_sweep(
    model: Chain,
    num_particles: int,
    scheme: str,
    ess_threshold: float,
    *,
    proposal: Tensor | None = None,
    resampler: Any = None,
    mutate: Callable[[SMC], None] = lambda smc: None,
) -> tuple[Tensor, ParticlePosterior]:
    """Every outcome of ``SMC(model, ...)``.

    :param Tensor proposal: ``[T, V]`` probabilities to propose from instead of the prior.
    :param resampler: replaces the scheme, keeping its cells (for wrong schemes).
    :param mutate: changes the SMC object before it runs.
    :returns: probabilities ``[columns]`` and the posterior with plate ``columns``.
    """
    v, length, n = model.num_symbols, model.length, num_particles
    uniforms = num_uniforms(scheme, n)
    barriers = length if model.last_barrier else length - 1
    sizes = [v] * (length * n) + [n] * (barriers * uniforms)
    grid = torch.tensor(list(itertools.product(*map(range, sizes)))).T.contiguous()
    columns = grid.shape[1]
    values = grid[: length * n].view(length, n, columns)
    cells = grid[length * n :].view(barriers, uniforms, columns)
    forced = EnumeratedResampler(resampler or RESAMPLERS[scheme], cells, scheme)
    path = Path(columns)

    def propose(site: Any) -> Any:
        if not isinstance(site["fn"], AbsorbingCategorical):
            return None
        t = int(site["name"].split("_")[1])
        q = ForcedCategorical(proposal[t].expand(n, columns, v), site["fn"].active)  # type: ignore[index]
        q.forced, q.path = values[t], path  # type: ignore[attr-defined]
        return q

    def forced_model(columns: int) -> Tensor:
        with ForceValues(values, path):
            return model(columns)

    smc = SMC(
        model if proposal is not None else forced_model,
        n,
        resampler=forced,
        ess_threshold=ess_threshold,
        max_plate_nesting=1,
        proposals=propose if proposal is not None else None,
    )
    mutate(smc)
    posterior = smc.run(columns)
    resampled = posterior.resampled
    unused = -uniforms * math.log(n)
    calls = iter(forced.log_prob)
    for chosen in resampled:
        path.log_prob = path.log_prob + (torch.where(chosen, next(calls), unused) if bool(chosen.any()) else unused)
    return path.log_prob.exp(), posterior


def estimator_error(model: Chain, probs: Tensor, posterior: ParticlePosterior) -> float:
    """Largest error of ``E[1] = 1`` and ``E[Z-hat sum_i W_i 1[x_i = path]] = unnormalised posterior(path)`` over paths, relative to Z."""
    exact = model.paths()
    total = sum(exact.values())
    codes = sum((posterior.sites[f"x_{t}"] + 1) * (model.num_symbols + 1) ** t for t in range(model.length))
    mass = (probs * posterior.log_evidence.exp()) * posterior.weights
    table = torch.zeros((model.num_symbols + 1) ** model.length, dtype=torch.float64)
    table.index_add_(0, codes.flatten(), mass.flatten())
    expected = torch.zeros_like(table)
    for path, value in exact.items():
        expected[sum((v + 1) * (model.num_symbols + 1) ** t for t, v in enumerate(path))] += value
    return max(float((table - expected).abs().max()) / total, abs(float(table.sum()) / total - 1), abs(float(probs.sum()) - 1))


def probabilities(weights: list[int]) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64) / sum(weights)


@st.composite
def simplex(draw: Any, size: int) -> Tensor:
    """Integer weights, normalised: ties happen."""
    return probabilities(draw(st.lists(st.integers(1, 5), min_size=size, max_size=size)))


@st.composite
def chains(draw: Any, num_symbols: int = 2, length: int = 3) -> Chain:
    """Chains with spiky potentials of the whole prefix."""
    v = num_symbols
    potential = st.sampled_from([0.05, 0.2, 0.5, 0.9, 1.0, 3.0])
    sizes = [(v + 1) ** (t + 1) for t in range(length)]
    return Chain(
        init=draw(simplex(v)),
        transition=torch.stack([draw(simplex(v)) for _ in range(v)]),
        potentials=[torch.tensor(draw(st.lists(potential, min_size=s, max_size=s)), dtype=torch.float64) for s in sizes],
        ends=draw(st.booleans()),
    )


def spiky(ends: bool = True, seed: int = 0) -> Chain:
    """A chain on which bugs show: sticky, with potentials of the whole prefix between 0.05 and 3."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return Chain(
        init=rand(2).softmax(0),
        transition=(3 * rand(2, 2)).softmax(-1),
        potentials=[0.05 + 3 * rand(3 ** (t + 1)) ** 3 for t in range(3)],
        ends=ends,
    )
