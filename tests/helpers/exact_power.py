"""All randomness of particle filters that move their particles, and of power targets, enumerated as in tests/helpers/exact_moves.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ppl_llm.inference import RESAMPLERS, SMC, BlockMH, SuffixMH, Trajectory, barrier, power
from ppl_llm.inference.handlers.rejuvenate_messenger import RejuvenateMessenger
from ppl_llm.inference.particles.pytree import take
from ppl_llm.inference.posterior.particle_posterior import ParticlePosterior
from tests.helpers.exact import END, PAD, AbsorbingCategorical, Chain, EnumeratedResampler, num_uniforms
from tests.helpers.exact_moves import Script


@dataclass
class PowerChain(Chain):
    """A chain with its latent sites raised to a power, along a bridge perhaps.

    :ivar list proposal: ``T`` tensors ``[V]`` to draw from, or ``None`` for the prior.
    """

    alpha: float = 1.0
    bridge: Sequence[float] | None = None
    proposal: list[Tensor] | None = None

    @classmethod
    def of(cls, chain: Chain, alpha: float, bridge: Sequence[float] | None = None, proposal: list[Tensor] | None = None) -> PowerChain:
        return cls(**vars(chain), alpha=alpha, bridge=bridge, proposal=proposal)

    def paths(self) -> dict[tuple[int, ...], float]:
        """``p(x)^alpha prod G`` of every padded trajectory, by plain multiplication."""
        return {path: self.density(path, self.alpha) for path in super().paths()}

    def density(self, path: Sequence[int], alpha: float) -> float:
        """Of the beginning of an execution."""
        mass, code, before = 1.0, 0, END
        for t, x in enumerate(path):
            code = code * (self.num_symbols + 1) + x + 1
            if x != PAD:
                p = float(self.init[x] if t == 0 else self.transition[before, x])
                mass, before = mass * p**alpha * float(self.potentials[t][code]), x
        return mass

    def power_at(self, k: int) -> float:
        """Of the target behind barrier ``k``, counted from 1."""
        return self.bridge[k - 1] if self.bridge is not None and k <= len(self.bridge) else self.alpha

    def beginnings(self, k: int) -> list[tuple[int, ...]]:
        """All executions up to step ``k``."""
        return sorted({path[:k] for path in super().paths()})

    def q(self, path: Sequence[int], t: int) -> float:
        """Probability that step ``t`` is drawn as it is, given those before."""
        if path[t] == PAD:
            return 1.0
        if self.proposal is not None:
            return float(self.proposal[t][path[t]])
        return float(self.init[path[0]] if t == 0 else self.transition[path[t - 1], path[t]])


class ScriptedProposal(AbsorbingCategorical):
    """A proposal whose draws are the script's."""

    @classmethod
    def _of(cls, probs: Tensor, active: Tensor, like: AbsorbingCategorical) -> AbsorbingCategorical:
        new = cls(probs, active)
        new.script, new.step = like.script, like.step  # type: ignore[attr-defined]
        return new

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.script.drawn_value(self, self.step)  # type: ignore[attr-defined,no-any-return]


class MoveScript(Script):
    """The choices of a filter, and of its moves in turn.

    :ivar Tensor staying: ``[N, columns]`` populations that are not moved: what is chosen for them is not used.
    """

    model: PowerChain

    def __init__(self, model: PowerChain, choices: dict[str, tuple[int, ...]]) -> None:
        super().__init__(model, choices)
        self.kernels = -1  # the first is built to check the arguments
        self.powered = power(model, model.alpha, model.bridge)
        self.staying: Tensor | None = None

    def __call__(self, *args: Any) -> Any:
        with self:
            return self.powered(*args)

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], AbsorbingCategorical) and self.model.proposal is None:
            msg["value"] = self.drawn_value(msg["fn"], int(msg["name"].split("_")[1]))

    def drawn_value(self, fn: AbsorbingCategorical, t: int) -> Tensor:
        """What is drawn at step ``t``, by what was chosen."""
        value = torch.where(fn.active, self.drawn[t], PAD)
        if self.cut is None:
            free, log_p = fn.active.expand_as(self.drawn[t]), fn.log_prob(value)
        else:  # particles are the present and the proposed executions; the latter is drawn from the cut on
            value = value.expand(2, *self.drawn[t].shape)
            free = fn.active.expand_as(value)[1] & (t >= self.cut) & ~self.staying
            log_p = fn.log_prob(value)[1]
        self.add(torch.where(free, log_p, -math.log(self.model.num_symbols)).expand_as(self.drawn[t]))
        return value

    def propose(self, site: Any) -> Any:
        """The chain's proposals."""
        if not isinstance(site["fn"], AbsorbingCategorical):
            return None
        t = int(site["name"].split("_")[1])
        assert self.model.proposal is not None
        q = ScriptedProposal(self.model.proposal[t].expand(*site["fn"].batch_shape, -1), site["fn"].active)
        q.script, q.step = self, t  # type: ignore[attr-defined]
        return q


class ScriptedMove(SuffixMH):
    """The real kernel with its choices enumerated, by its turn; a sweep that the script has no choices for leaves all as it is."""

    def __init__(self, model: Any, *, script: MoveScript, max_plate_nesting: int, proposals: Any = None) -> None:
        super().__init__(model, max_plate_nesting=max_plate_nesting, proposals=proposals)
        self.script = script
        self.turn, script.kernels = script.kernels, script.kernels + 1

    def sweep(self, reference: Trajectory, *args: Any, **kwargs: Any) -> Any:
        script, name, length = self.script, f"{self.turn}", reference.length
        assert length is not None
        if f"cut {name}" not in script.choices:
            raise NotImplementedError(f"no choices for the move at turn {name}")
        staying = torch.zeros_like(length, dtype=torch.bool) if reference.staying is None else reference.staying
        cut, filtered = script.take(f"cut {name}"), script.drawn
        sizes = script.choices[f"cut {name}"][0]
        length = length.expand_as(cut)
        staying = script.staying = staying.expand_as(cut)
        script.add(torch.where(staying, -math.log(sizes), torch.where(cut < length, -length.double().log(), -math.inf)))
        script.drawn, script.cut, script.uniforms = script.take(f"proposal {name}"), cut, (cut + 0.5) / length
        posterior = super().sweep(reference, *args, **kwargs)
        script.drawn, script.cut = filtered, None
        particle = script.take(f"accept {name}")
        chosen = posterior.particles.weights.normalized.gather(0, particle[None])[0].log()
        script.add(torch.where(staying, -math.log(2), chosen))
        posterior.draw = lambda dead: posterior.take(torch.where(staying, 0, particle))
        return posterior


def move_choices(model: Chain, n: int, turn: int, steps: int) -> dict[str, tuple[int, ...]]:
    """Of one move of N particles of ``steps`` steps."""
    return {
        f"cut {turn}": (steps, n),
        f"proposal {turn}": (model.num_symbols, steps, n),
        f"accept {turn}": (2, n),
    }


def enumerate_moves(
    model: PowerChain,
    num_particles: int,
    scheme: str,
    ess_threshold: float,
    *,
    moving: Sequence[int] = (),
    handler: Callable[..., RejuvenateMessenger] | None = None,
    kernel: type[ScriptedMove] = ScriptedMove,
) -> tuple[Tensor, ParticlePosterior]:
    """Every outcome of ``SMC(power(model, alpha, bridge), N, rejuvenate=SuffixMH)``.

    :param moving: barriers, from 1 on, at which particles are moved; elsewhere the moves leave them as they are.
    :param handler: in place of :class:`RejuvenateMessenger`.
    :param kernel: in place of the right kernel.
    :returns: probabilities ``[columns]`` and the posterior with plate ``columns``.
    """
    n, length, uniforms = num_particles, model.length, num_uniforms(scheme, num_particles)
    barriers = length if model.last_barrier else length - 1
    choices: dict[str, tuple[int, ...]] = {"first": (model.num_symbols, length, n)}
    for t in range(barriers):
        choices[f"cells {t}"] = (n, uniforms)
    for t in moving:
        choices |= move_choices(model, n, t - 1, t)
    script = MoveScript(model, choices)
    script.drawn = script.take("first")
    cells = torch.stack([script.take(f"cells {t}") for t in range(barriers)])
    resampler = EnumeratedResampler(RESAMPLERS[scheme], cells, scheme)

    class AtSomeBarriers(handler or RejuvenateMessenger):  # type: ignore[misc]
        def move(self, state: Any, staying: Tensor) -> Any:
            script.kernels = len(self.system.records) - 1
            return super().move(state, staying) if script.kernels + 1 in moving else state

    smc = SMC(
        script,
        n,
        resampler=resampler,
        ess_threshold=ess_threshold,
        proposals=script.propose if model.proposal is not None else None,
        max_plate_nesting=1,
        rejuvenate=partial(kernel, script=script),
    )
    assert smc.rejuvenation is not None
    with patch.object(type(smc.rejuvenation), "handler", AtSomeBarriers), patch("torch.rand", script.rand):
        posterior = smc.run(script.columns)
    calls, unused = iter(resampler.log_prob), -uniforms * math.log(n)
    for chosen in posterior.resampled:
        script.add((torch.where(chosen, next(calls), unused) if bool(chosen.any()) else torch.full_like(script.log_prob, unused))[None])
    return script.probs(), posterior


def enumerate_blocks(model: PowerChain, moves: int = 1, algorithm: type[BlockMH] = BlockMH) -> tuple[Tensor, Trajectory]:
    """Every outcome of how ``BlockMH(power(model, alpha))`` grows its first state.

    :returns: probabilities ``[columns]`` and the state with plate ``columns``.
    """
    assert moves == 1, "choices are those of one move"
    choices: dict[str, tuple[int, ...]] = {"first": (model.num_symbols, model.length, 1)}
    for t in range(model.length if model.last_barrier else model.length - 1):
        choices |= move_choices(model, 1, t, t + 1)
    script = MoveScript(model, choices)
    script.drawn, script.kernels = script.take("first"), 0

    class Scripted(algorithm):  # type: ignore[valid-type,misc]
        def mover(self, model: Any, max_plate_nesting: int) -> SuffixMH:
            right = super().mover(model, max_plate_nesting)
            kernel = type("Kernel", (ScriptedMove,), {"accept": type(right).accept})
            return kernel(model, script=script, max_plate_nesting=max_plate_nesting, proposals=right.proposals)

    chain = Scripted(script, moves=moves, proposals=script.propose if model.proposal is not None else None, max_plate_nesting=1)
    with patch("torch.rand", script.rand):
        state = chain.start(script.columns)
    return script.probs(), state


def distribution_of(model: PowerChain, probs: Tensor, sites: Mapping[str, Tensor]) -> dict[tuple[int, ...], float]:
    """Probability of each path of the states ``[columns]``."""
    found = dict.fromkeys(model.beginnings(model.length), 0.0)
    for p, *path in zip(probs.tolist(), *(sites[f"x_{t}"].flatten().tolist() for t in range(model.length)), strict=True):
        found[tuple(path)] += p
    return found


# The block Metropolis of Karan & Du, in plain Python


def transition_matrix(model: PowerChain, k: int, alpha: float, length_ratio: bool = True) -> Tensor:
    """``[S, S]`` over ``model.beginnings(k)``: keep some of the steps, draw the rest, accept or reject."""
    states = model.beginnings(k)
    matrix = torch.zeros(len(states), len(states), dtype=torch.float64)
    for i, x in enumerate(states):
        steps = sum(v != PAD for v in x)
        for cut in range(steps):
            for j, y in enumerate(states):
                if x[:cut] != y[:cut]:
                    continue
                forth = math.prod(model.q(y, t) for t in range(cut, k))
                back = math.prod(model.q(x, t) for t in range(cut, k))
                ratio = model.density(y, alpha) * back / (model.density(x, alpha) * forth)
                if length_ratio:
                    ratio *= steps / sum(v != PAD for v in y)
                move = forth * min(1.0, ratio) / steps
                matrix[i, j] += move
                matrix[i, i] -= move
        matrix[i, i] += 1.0
    return matrix


def block_metropolis(model: PowerChain, moves: int) -> dict[tuple[int, ...], float]:
    """The distribution after every block has been drawn and moved; an execution that had finished before is moved no more."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for k in range(1, model.length + 1):
        grown = {y: found[y[:-1]] * model.q(y, k - 1) for y in model.beginnings(k)}
        if k < model.length or model.last_barrier:
            now = torch.tensor(list(grown.values()), dtype=torch.float64)
            finished = torch.tensor([y[-1] == PAD for y in grown])  # before this block
            moved = torch.where(finished, 0.0, now) @ transition_matrix(model, k, model.power_at(k)).matrix_power(moves)
            now = torch.where(finished, now, 0.0) + moved
            grown = dict(zip(grown, now.tolist(), strict=True))
        found = grown
    return found


class Walk:
    """The state of a chain that tells which executions have finished."""

    def __init__(self, x: Tensor, code: Tensor, done: Tensor) -> None:
        self.x, self.code, self.done = torch.broadcast_tensors(x, code, done)

    @property
    def batch_shape(self) -> torch.Size:
        return self.done.shape

    def reorder(self, index: Tensor) -> Walk:
        return Walk(*(take(tensor, index) for tensor in (self.x, self.code, self.done)))

    def __getitem__(self, i: int) -> Walk:
        return Walk(*(tensor[i] for tensor in (self.x, self.code, self.done)))

    def __len__(self) -> int:
        return len(self.done)

    def concatenate(self, others: list[Walk]) -> Walk:
        return Walk(*(torch.cat([getattr(walk, name) for walk in (self, *others)]) for name in ("x", "code", "done")))


def telling(state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The barrier of a chain whose state tells which executions have finished."""
    walk = barrier(Walk(*state))
    return walk.x, walk.code, walk.done
