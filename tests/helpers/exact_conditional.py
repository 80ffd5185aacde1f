"""Exact tests of conditional SMC: pi K = pi, with all randomness of a real conditional sweep enumerated as in tests/helpers/exact.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_llm.inference import FilterOptions, ProposalMessenger, ReferenceMessenger, Weights
from ppl_llm.inference.resampling import CONDITIONAL_RESAMPLERS
from tests.helpers.exact import PAD, AbsorbingCategorical, Chain, Path


def conditional_cuts(scheme: str, log_weights: Tensor, reference: Tensor, k: int) -> Tensor:
    """Edges of the cells of the k-th uniform in which the outcome of conditional resampling is constant: ``[C + 1, columns]``."""
    n = log_weights.shape[0]
    weights = log_weights.softmax(0)
    cdf = weights.cumsum(0)
    mass = weights.gather(0, reference[None])[0]
    below = cdf.gather(0, reference[None])[0] - mass
    inner = cdf[:-1]
    last = k == (n if scheme in ("stratified", "residual") else -1)
    if scheme == "multinomial" and k == 0:
        inner = inner[:0]  # the reference's slot
    elif scheme == "systematic":
        # Slots change at integers of N v, the others' ancestors where the comb meets a step of the distribution function.
        offsets = torch.cat([torch.zeros_like(inner[:1]), (n * inner) % 1.0])
        points = (torch.arange(n)[:, None, None] + offsets).flatten(0, 1)
        inner = (points / n - below) / mass
    elif scheme == "stratified":
        inner = (torch.arange(1, n, dtype=torch.float64)[:, None] / n - below) / mass if last else n * inner - k
    elif scheme == "residual":
        expected = n * weights
        certain = expected.floor()
        if last:
            copies, drawn = certain.gather(0, reference[None])[0], n - certain.sum(0)
            rest = n * mass - copies
            whole = torch.arange(1, n + 1)[:, None].expand(n, len(mass)).minimum(copies)
            parts = copies + rest * (torch.arange(1, n + 1, dtype=torch.float64)[:, None] / drawn.clamp(min=1)).clamp(max=1)
            inner = torch.cat([whole, parts]) / (n * mass)
        else:
            rest = expected - certain
            inner = rest.cumsum(0)[:-1] / rest.sum(0).clamp(min=1e-300)
    elif scheme == "one fewer":
        inner = (((n - 1) * inner) % 1.0).repeat(n, 1)
    return torch.cat([torch.zeros_like(mass)[None], inner.clamp(0, 1).sort(0).values, torch.ones_like(mass)[None]])


def num_cells(scheme: str, n: int) -> list[int]:
    """Cells of each uniform."""
    if scheme in ("systematic", "one fewer"):
        return [n * n + 1 if scheme == "systematic" else n * (n - 1) + 1]
    if scheme == "multinomial":
        return [1] + [n] * (n - 1)
    return [n] * n + [n if scheme == "stratified" else 2 * n + 1]


class EnumeratedConditional:
    """Calls the real conditional scheme at the midpoint of a cell of its uniforms, a cell per column."""

    def __init__(self, scheme: Any, cuts: str, cells: Tensor) -> None:
        self.scheme, self.cuts, self.cells = scheme, cuts, cells
        self.log_prob: list[Tensor] = []
        self.__name__ = cuts

    def num_uniforms(self, n: int) -> int:
        return 1

    num_conditional_uniforms = num_uniforms

    def conditional(self, log_weights: Tensor, reference: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        points, total = [], torch.zeros(log_weights.shape[1], dtype=torch.float64)
        for k, cell in enumerate(self.cells[len(self.log_prob)]):
            edges = conditional_cuts(self.cuts, log_weights, reference, k)
            low, high = edges.gather(0, cell[None])[0], edges.gather(0, cell[None] + 1)[0]
            points.append((low + high) / 2)
            total = total + (high - low).clamp(min=0).log()
        self.log_prob.append(total)
        return self.scheme.conditional(log_weights, reference, torch.stack(points))


def grid(sizes: list[int]) -> Tensor:
    """Every combination of indices: ``[len(sizes), columns]``."""
    axes = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])


def forced(base: type[ReferenceMessenger], free: Tensor, path: Path, indices: Tensor, rotations: Tensor | None) -> type[ReferenceMessenger]:
    """A messenger whose free particles take the enumerated values; the reference's particle is left to the real engine.

    :param Tensor free: ``[T, N - 1, columns]`` values of the free particles.
    :param Tensor indices: ``[barriers, columns]`` outcomes of ancestor sampling.
    :param Tensor rotations: ``[barriers, columns]`` numbers that the first particle gets; ``None`` if the scheme's distribution does not
        depend on it.
    """
    columns = free.shape[-1]
    n = free.shape[1] + 1

    class Forced(base):  # type: ignore[misc, valid-type]
        def __enter__(self) -> Any:
            self.index_log_prob: list[Tensor] = []
            self.num_rotations = 0
            return super().__enter__()

        def _pyro_sample(self, msg: Any) -> None:
            if not isinstance(msg["fn"], AbsorbingCategorical):
                return
            t = int(msg["name"].split("_")[1])
            particles = torch.arange(n)[:, None]
            slot = self.slot.expand(columns)
            place = (particles - (particles > slot).long()).clamp(max=max(n - 2, 0))
            values = free[t].gather(0, place) if n > 1 else torch.zeros(1, columns, dtype=torch.long)
            msg["value"] = torch.where(msg["fn"].active, values, PAD)
            drawn_from = msg["infer"].get("proposal", msg["fn"])
            log_p = torch.where(msg["fn"].active, drawn_from.log_prob(msg["value"]), -math.log(msg["fn"].probs.shape[-1]))
            path.log_prob = path.log_prob + torch.where(particles != slot, log_p, 0.0).sum(0)
            super()._pyro_sample(msg)

        def draw_reference(self, weights: Weights) -> Tensor:
            index = indices[len(self.index_log_prob)]
            log_prob = weights.normalized.gather(0, index[None])[0].log()
            self.index_log_prob.append(log_prob)
            return torch.where(log_prob > -torch.inf, index, weights.log_weights.argmax(0))  # an impossible outcome counts nothing

        def draw_rotation(self) -> Tensor:
            if base.draw_rotation is not ReferenceMessenger.draw_rotation:  # a wrong engine's own
                return super().draw_rotation()  # type: ignore[no-any-return]
            self.num_rotations += 1
            return torch.ones(columns, dtype=torch.long) if rotations is None else rotations[self.num_rotations - 1]

    return Forced


def conditional_outcomes(
    model: Chain,
    n: int,
    scheme: str,
    ess_threshold: float,
    references: Tensor,
    *,
    wrong: Any = None,
    messenger: type[ReferenceMessenger] = ReferenceMessenger,
    ancestors: bool = False,
    program: Callable[[int], Any] | None = None,
    proposal: Tensor | None = None,
    own_sites_only: bool = False,
) -> tuple[Tensor, Tensor, Any]:
    """Every outcome of a conditional sweep from each of some references.

    :param Tensor references: ``[R, T]``.
    :param wrong: replaces the conditional scheme, keeping its cells.
    :param bool ancestors: whether the messenger samples ancestors.
    :param program: a model with the same sites instead of ``model`` itself.
    :param Tensor proposal: ``[T, V]`` probabilities to propose from instead of the prior.
    :param bool own_sites_only: leave out the sites that the references reach done; they must then be of one length.
    :returns: index of the reference ``[columns]``, probability of the outcome ``[columns]``, posterior with plate ``columns``.
    """
    v, length = model.num_symbols, model.length
    barriers = length if model.last_barrier else length - 1
    cells = num_cells(scheme, n)
    turns = n if scheme == "stratified" else 1  # the distribution of the others is the same for every rotation
    sizes = [len(references)] + [v] * (length * (n - 1)) + cells * barriers + [n if ancestors else 1] * barriers + [turns] * barriers
    chosen = grid(sizes)
    columns = chosen.shape[1]
    which, chosen = chosen[0], chosen[1:]
    free, chosen = chosen[: length * (n - 1)].view(length, n - 1, columns), chosen[length * (n - 1) :]
    chosen_cells, chosen = chosen[: barriers * len(cells)].view(barriers, len(cells), columns), chosen[barriers * len(cells) :]
    indices, rotations = chosen[:barriers], chosen[barriers:] if turns > 1 else None
    path = Path(columns)
    reference = {f"x_{t}": references[which, t] for t in range(length)}
    if own_sites_only:
        reference = {name: value for name, value in reference.items() if (value != PAD).any()}
    resampler: Any = EnumeratedConditional(wrong or CONDITIONAL_RESAMPLERS[scheme], scheme, chosen_cells)
    program = program or model

    def propose(site: Any) -> Any:
        if proposal is None or not isinstance(site["fn"], AbsorbingCategorical):
            return None
        return AbsorbingCategorical(proposal[int(site["name"].split("_")[1])].expand(n, columns, v), site["fn"].active)

    more = {"program": lambda: program(columns)} if ancestors else {}
    engine = forced(messenger, free, path, indices, rotations)(FilterOptions(n, 1, resampler, ess_threshold), reference=reference, **more)
    with torch.no_grad(), engine, ProposalMessenger(propose), pyro.plate("_particles", n, dim=-2):
        value = program(columns)
    posterior = engine.posterior(engine.system.snapshot(value))
    log_probs = [resampler.log_prob, engine.index_log_prob if ancestors else []]  # type: ignore[attr-defined]
    calls = [sum(both) for both in zip(*log_probs, strict=True)] if ancestors and n > 1 else resampler.log_prob
    calls = [log_prob - math.log(turns) for log_prob in calls]
    unused = -sum(map(math.log, cells)) - (math.log(n) if ancestors else 0.0) - math.log(turns)
    later = iter(calls)
    for taken in posterior.resampled:
        path.log_prob = path.log_prob + (torch.where(taken, next(later), unused) if bool(taken.any()) else unused)
    return which, path.log_prob.exp(), posterior


def codes(values: list[Tensor], num_symbols: int) -> Tensor:
    """A number for each trajectory, from its values at each step."""
    return sum(((value + 1) * (num_symbols + 1) ** t for t, value in enumerate(values)), torch.zeros((), dtype=torch.long))


def invariant_distribution(model: Chain) -> tuple[Tensor, Tensor]:
    """Trajectories ``[R, T]`` of positive probability, and their posterior probabilities."""
    paths = {path: mass for path, mass in model.paths().items() if mass > 0}
    pi = torch.tensor(list(paths.values()), dtype=torch.float64)
    return torch.tensor(list(paths)), pi / pi.sum()


def invariance_error(
    model: Chain, n: int, scheme: str, ess_threshold: float, wrong: Any = None, own_sites_only: bool = False, **kwargs: Any
) -> float:
    """max |pi K - pi| of one conditional sweep followed by a draw from its weights.

    :param bool own_sites_only: run each length of reference on its own, without the sites that it reaches done.
    """
    v, length = model.num_symbols, model.length
    references, pi = invariant_distribution(model)
    ended = (references != PAD).sum(1)
    groups = [ended == steps for steps in ended.unique()] if own_sites_only else [torch.ones_like(ended, dtype=torch.bool)]
    table = torch.zeros((v + 1) ** length, dtype=torch.float64)
    for group in groups:
        which, probs, posterior = conditional_outcomes(
            model, n, scheme, ess_threshold, references[group], wrong=wrong, own_sites_only=own_sites_only, **kwargs
        )
        done = torch.full_like(posterior.weights, PAD, dtype=torch.long)
        code = codes([posterior.sites.get(f"x_{t}", done) for t in range(length)], v)
        table.index_add_(0, code.flatten(), (pi[group][which] * probs * posterior.weights).flatten())
    expected = torch.zeros_like(table)
    expected[codes(list(references.T), v)] = pi
    return float((table - expected).abs().max())
