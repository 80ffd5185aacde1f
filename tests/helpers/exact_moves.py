"""Exact tests of algorithms that move whole executions: all randomness of the real code, enumerated.

As in tests/helpers/exact.py, every joint outcome is one column of an inner plate of one real run, and a column's probability is the
product of the probabilities of its choices.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_llm.inference import RESAMPLERS, ParallelTempering, SuffixMH, TemperedPosterior, TemperedSMC, Trajectory
from ppl_llm.inference.particles.trajectory import ChainRecord
from tests.helpers.exact import PAD, AbsorbingCategorical, Chain, num_uniforms, uniform_cuts


class Script(Messenger):
    """The enumerated choices of an algorithm, and the model with its values taken from them.

    :param dict choices: ``{name: (size, *shape)}``: independent choices of ``size`` values each.
    """

    def __init__(self, model: Chain, choices: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.model, self.choices = model, choices
        self.columns = stride = math.prod(size ** math.prod(shape) for size, *shape in choices.values())
        self.values: dict[str, Tensor] = {}
        for name, (size, *shape) in choices.items():
            digits = []
            for _ in range(math.prod(shape)):
                stride //= size
                digits.append((torch.arange(self.columns) // stride) % size)
            self.values[name] = torch.stack(digits).view(*shape, self.columns)
        self.unused = set(choices)
        self.log_prob = torch.zeros(self.columns, dtype=torch.float64)
        self.cut: Tensor | None = None
        self.uniforms: Tensor | None = None

    def take(self, name: str) -> Tensor:
        """``[*shape, columns]``."""
        self.unused.remove(name)
        return self.values[name]

    def add(self, log_prob: Tensor) -> None:
        """Log-probabilities of choices ``[..., columns]``."""
        self.log_prob = self.log_prob + log_prob.reshape(-1, self.columns).sum(0)

    def probs(self) -> Tensor:
        """``[columns]``; a choice that was not used is made uniformly: the columns that differ only in it share the outcome."""
        idle = sum(math.prod(self.choices[name][1:]) * math.log(self.choices[name][0]) for name in self.unused)
        return (self.log_prob - idle).exp()

    def __call__(self, *args: Any) -> Any:
        with self:
            return self.model(*args)

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not isinstance(fn, AbsorbingCategorical):
            return
        t = int(msg["name"].split("_")[1])
        value = torch.where(fn.active, self.drawn[t], PAD)
        if self.cut is None:
            free, log_p = fn.active, fn.log_prob(value)
        else:  # particles are the present and the proposed executions; the latter is drawn from the cut on
            value = value.expand(2, *self.drawn[t].shape)
            free = fn.active.expand_as(value)[1] & (t >= self.cut)
            log_p = fn.log_prob(value)[1]
        self.add(torch.where(free, log_p, -math.log(self.model.num_symbols)).expand_as(self.drawn[t]))
        msg["value"] = value

    def rand(self, *shape: Any, **kwargs: Any) -> Tensor:
        """In place of ``torch.rand``: what was chosen before the call, if anything was."""
        uniforms, self.uniforms = self.uniforms, None
        size = shape[0] if isinstance(shape[0], torch.Size) else torch.Size(shape)
        return torch.full(size, 0.5, dtype=torch.float64) if uniforms is None else uniforms


class ScriptedSuffixMH(SuffixMH):
    """The real kernel with its choices enumerated: where to cut, what to propose, whether to accept.

    A sweep whose choices the script does not have leaves the present states as they are.
    """

    def __init__(self, model: Any, *, script: Script, max_plate_nesting: int) -> None:
        super().__init__(model, max_plate_nesting=max_plate_nesting)
        self.script = script
        script.kernels += 1
        self.turn = script.kernels - 2  # the first is built to check the arguments

    def sweep(self, reference: Trajectory, *args: Any, **kwargs: Any) -> Any:
        script, name = self.script, f"{self.turn}"
        replicas = reference["x_0"].shape[0]
        still = torch.zeros(replicas, script.columns, dtype=torch.long)
        before, moves = script.log_prob, f"cut {name}" in script.choices
        cut = script.take(f"cut {name}") if moves else still
        script.drawn = script.take(f"proposal {name}") if moves else still.expand(script.model.length, *still.shape)
        steps = reference.length.expand_as(cut)
        script.add(torch.where(cut < steps, -steps.double().log(), -math.inf))
        script.cut, script.uniforms = cut, (cut + 0.5) / steps
        posterior = super().sweep(reference, *args, **kwargs)
        particle = script.take(f"accept {name}") if moves else still
        script.add(posterior.particles.weights.normalized.gather(0, particle[None])[0].log())
        script.log_prob = script.log_prob if moves else before
        posterior.draw = lambda dead: posterior.take(particle)
        return posterior


def move_choices(model: Chain, replicas: int, turn: int) -> dict[str, tuple[int, ...]]:
    return {
        f"cut {turn}": (model.length, replicas),
        f"proposal {turn}": (model.num_symbols, model.length, replicas),
        f"accept {turn}": (2, replicas),
    }


class ScriptedResampler:
    """The real scheme at the midpoint of an enumerated cell of each uniform."""

    __name__ = "scripted"

    def __init__(self, script: Script, scheme: str) -> None:
        self.script, self.scheme = script, scheme
        self.log_prob: dict[int, Tensor] = {}

    def num_uniforms(self, num_particles: int) -> int:
        return 1

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        stage = self.script.kernels - 1
        points, total = [], torch.zeros(self.script.columns, dtype=torch.float64)
        for k, cell in enumerate(self.script.take(f"resample {stage}")):
            edges = uniform_cuts(self.scheme, log_weights, k)
            low, high = edges.gather(0, cell[None])[0], edges.gather(0, cell[None] + 1)[0]
            points.append((low + high) / 2)
            total = total + (high - low).clamp(min=0).log()
        self.log_prob[stage] = total
        return RESAMPLERS[self.scheme](log_weights, torch.stack(points))


def enumerate_tempered(
    model: Chain,
    num_particles: int,
    betas: list[float],
    ess_threshold: float,
    *,
    scheme: str = "systematic",
    moving: int | None = None,
    algorithm: type[TemperedSMC] = TemperedSMC,
) -> tuple[Tensor, TemperedPosterior]:
    """Every outcome of ``TemperedSMC(model, ...)``.

    :param int moving: how many stages move the particles; the later ones leave them as they are. All by default.
    :returns: probabilities ``[columns]`` and the posterior with plate ``columns``.
    """
    n, uniforms = num_particles, num_uniforms(scheme, num_particles)
    choices: dict[str, tuple[int, ...]] = {"first": (model.num_symbols, model.length, n)}
    for stage in range(len(betas)):
        choices[f"resample {stage}"] = (n, uniforms)
        if moving is None or stage < moving:
            choices |= move_choices(model, n, stage)
    script = Script(model, choices)
    script.kernels = 0
    script.drawn = script.take("first")
    resampler = ScriptedResampler(script, scheme)
    smc = algorithm(
        script,
        n,
        betas=betas,
        kernel=partial(ScriptedSuffixMH, script=script),
        ess_threshold=ess_threshold,
        resampler=resampler,
        max_plate_nesting=1,
    )
    with patch("torch.rand", script.rand):
        posterior = smc.run(script.columns)
    for stage, log_prob in resampler.log_prob.items():
        script.add(torch.where(posterior.resampled[stage], log_prob, -uniforms * math.log(n)))
    return script.probs(), posterior


def enumerate_swaps(
    model: Chain, algorithm: type[ParallelTempering], betas: list[float], turn: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Every outcome of one iteration of parallel tempering from every joint state.

    :returns: probabilities ``[columns]``, the index in ``model.paths()`` of the state that each replica starts from ``[K, columns]``, and
        the replicas' sites ``[K, columns]`` afterwards.
    """
    replicas, paths = len(betas), torch.tensor(list(model.paths()))
    choices: dict[str, tuple[int, ...]] = {"state": (len(paths), replicas), **move_choices(model, replicas, 0), "swap": (2, replicas - 1)}
    script = Script(model, choices)
    script.kernels = 1

    class Scripted(algorithm):  # type: ignore[valid-type,misc]
        def acceptance(self, log_likelihood: Tensor) -> Tensor:
            acceptance = super().acceptance(log_likelihood)
            accept = script.take("swap").bool()
            script.uniforms = torch.where(accept, acceptance / 2, (1 + acceptance) / 2)
            taking_turns = (torch.arange(replicas - 1)[:, None] % 2) == turn
            script.add(torch.where(taking_turns, torch.where(accept, acceptance, 1 - acceptance).log(), -math.log(2)))
            return acceptance

    which = script.take("state")
    before = {f"x_{t}": paths[which, t] for t in range(model.length)}
    state = Trajectory(before, length=torch.full_like(which, model.length))
    state.chain = ChainRecord(num_steps=turn)
    chain = Scripted(script, betas, partial(ScriptedSuffixMH, script=script), max_plate_nesting=1)
    with patch("torch.rand", script.rand):
        _, after = chain.step(state, script.columns)
    return script.probs(), which, dict(after)


def tempered_distributions(model: Chain, betas: list[float]) -> Tensor:
    """``[K, paths]``: the target of each power, over ``model.paths()``."""
    prior = replace(model, potentials=[torch.ones_like(g) for g in model.potentials]).paths()
    p = torch.tensor(list(prior.values()), dtype=torch.float64)
    likelihood = torch.tensor(list(model.paths().values()), dtype=torch.float64) / p
    distributions = p * likelihood ** torch.tensor(betas, dtype=torch.float64)[:, None]
    return distributions / distributions.sum(-1, keepdim=True)


def path_index(model: Chain, sites: dict[str, Tensor]) -> Tensor:
    """Which of ``model.paths()`` each particle is."""
    place = (model.num_symbols + 1) ** torch.arange(model.length)
    table = torch.full((int(place[-1]) * (model.num_symbols + 1),), -1)
    table[((torch.tensor(list(model.paths())) + 1) * place).sum(-1)] = torch.arange(len(model.paths()))
    return table[sum((sites[f"x_{t}"] + 1) * place[t] for t in range(model.length))]


def joint_distribution(distributions: Tensor, states: Tensor) -> Tensor:
    """``[columns]``: the product over replicas of the distributions ``[K, S]`` at the states ``[K, columns]``."""
    return distributions.gather(1, states).prod(0)


def joint_index(states: Tensor, size: int) -> Tensor:
    """One number for the states ``[K, columns]`` of all replicas."""
    return (states * size ** torch.arange(len(states))[:, None]).sum(0)
