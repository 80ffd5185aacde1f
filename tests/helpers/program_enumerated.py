"""SMC of two particles on a small random program, all its randomness enumerated by the tools of tests/helpers/exact.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_llm.inference import RESAMPLERS, SMC, replicate
from tests.helpers.exact import EnumeratedResampler, num_uniforms
from tests.helpers.program_ast import Barrier, Program
from tests.helpers.program_oracle import Answer
from tests.helpers.program_values import variables

MAX_COLUMNS = 20_000
EXACT = 1e-4
"""Largest relative error: tables are in single precision, and the slightest of the wrong engines is off by a hundredth."""


class Forced(poutine.messenger.Messenger):
    """Gives latent sites their enumerated values ``[N, columns]`` and adds up the log-probabilities of the choices."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.log_prob = torch.zeros((), dtype=torch.float64)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["name"] not in self.values:
            return
        fn = getattr(msg["fn"], "base_dist", msg["fn"])  # a masked site is drawn from its prior
        msg["value"] = self.values[msg["name"]]
        self.log_prob = self.log_prob + fn.log_prob(msg["value"]).double().sum(0)


def num_columns(program: Program, n: int, scheme: str) -> int:
    barriers = sum(isinstance(s, Barrier) for s in program.statements)
    return int(math.prod(s.size**n for s in program.draws) * n ** (barriers * num_uniforms(scheme, n)))


def fits(program: Any, n: int, scheme: str) -> bool:
    """Whether a program is small enough, and has one population."""
    if not isinstance(program, Program) or program.nesting or program.replay or any(s.hidden for s in program.draws):
        return False
    return num_columns(program, n, scheme) <= MAX_COLUMNS


def enumerated_error(program: Program, model: Callable[[], Any], answer: Answer, n: int, scheme: str, ess_threshold: float) -> str:
    """What is wrong with ``E[Z-hat] = Z`` and ``E[Z-hat sum_i W_i f(x_i)] = Z E[f]``; nothing is ``""``."""
    barriers = sum(isinstance(s, Barrier) for s in program.statements)
    uniforms = num_uniforms(scheme, n)
    sizes = [s.size for s in program.draws for _ in range(n)] + [n] * (barriers * uniforms)
    grid = torch.tensor(list(itertools.product(*map(range, sizes)))).T.contiguous()
    columns = grid.shape[1]
    of_draws = len(program.draws) * n
    values = dict(zip([s.site for s in program.draws], grid[:of_draws].view(-1, n, columns), strict=True))
    resampler = EnumeratedResampler(RESAMPLERS[scheme], grid[of_draws:].view(barriers, uniforms, columns), scheme)
    forced = Forced(values)

    def with_values() -> Any:
        with forced:
            return model()

    smc = SMC(replicate(with_values, columns, 0), n, resampler=resampler, ess_threshold=ess_threshold, max_plate_nesting=1)
    posterior = smc.run()
    log_prob = forced.log_prob
    calls = iter(resampler.log_prob)
    unused = -uniforms * math.log(n)
    for chosen in posterior.resampled:
        log_prob = log_prob + (torch.where(chosen, next(calls), unused) if bool(chosen.any()) else unused)
    probs = log_prob.exp()
    evidence = posterior.log_evidence.exp()
    exact = answer.evidence[0]
    found = {"1": (float(probs.sum()), 1.0), "Z-hat": (float((probs * evidence).sum()) / exact, 1.0)}
    sites = variables(program, posterior.sites)
    for statistic, means in answer.means.items():
        holds = torch.stack([(sites[name] == value).expand(n, columns) for name, value in statistic.events]).all(0)
        mean = (probs * evidence * (posterior.weights * holds).sum(0)).sum() / exact
        found[f"Z-hat times P({statistic})"] = float(mean), means[0][0]
    wrong = {name: pair for name, pair in found.items() if not abs(pair[0] - pair[1]) < EXACT}
    return "; ".join(f"E[{name}] = {a:.6g}, exactly {b:.6g}" for name, (a, b) in wrong.items())
