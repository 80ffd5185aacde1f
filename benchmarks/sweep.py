"""Overhead of the generic sweep: ``ppl_llm.SMC`` against ``pyro.infer.SMCFilter`` on the same hidden Markov model, in one process.

The bare loop makes the same draws and densities without Pyro: what a row takes beyond it is bookkeeping. Two rows bound what a filter
can take: its arithmetic without Pyro, and what Pyro's messages take, the model under handlers that do nothing. ``particles`` (numpy, no
probabilistic programs) runs where it is installed. Process CPU time on one thread, in turns; ratios within each turn.

    python benchmarks/sweep.py [--particles 64 --steps 40 --repeats 21]
"""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

import common
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SMCFilter
from pyro.poutine.messenger import Messenger

from ppl_llm import SMC, barrier
from ppl_llm.inference import Weights, systematic
from ppl_llm.inference.particles.categorical import draw_categorical

STATES = 50
_generator = torch.Generator().manual_seed(0)
TRANSITION = torch.randn(STATES, STATES, generator=_generator).softmax(-1)
EMISSION = torch.rand(STATES, generator=_generator) * 0.9 + 0.05


def model(steps: int) -> torch.Tensor:
    z = torch.zeros((), dtype=torch.long)
    for t in range(steps):
        z = pyro.sample(f"z_{t}", dist.Categorical(TRANSITION[z], validate_args=False))
        pyro.sample(f"y_{t}", dist.Bernoulli(EMISSION[z], validate_args=False), obs=torch.tensor(1.0))
        z = barrier(z)
    return z


class Model:
    """The same as ``init`` and ``step`` of SMCFilter."""

    def init(self, state: dict[str, torch.Tensor]) -> None:
        self.t = -1
        state["z"] = torch.zeros(self.num_particles, dtype=torch.long)

    def __init__(self, num_particles: int) -> None:
        self.num_particles = num_particles

    def step(self, state: dict[str, torch.Tensor]) -> None:
        self.t += 1
        state["z"] = pyro.sample(f"z_{self.t}", dist.Categorical(TRANSITION[state["z"]], validate_args=False))
        pyro.sample(f"y_{self.t}", dist.Bernoulli(EMISSION[state["z"]], validate_args=False), obs=torch.tensor(1.0))


class Prior:
    """A guide that proposes nothing: SMCFilter then draws from the model."""

    def init(self, state: dict[str, torch.Tensor]) -> None:
        pass

    step = init


def smc_filter(num_particles: int, steps: int) -> None:
    smc = SMCFilter(Model(num_particles), Prior(), num_particles=num_particles, max_plate_nesting=0, ess_threshold=0.5)
    smc.init()
    for _ in range(steps):
        smc.step()


def bare_loop(num_particles: int, steps: int) -> None:
    """The model's draws and densities with nothing around them: no weights, no resampling, nothing kept."""
    z = torch.zeros(num_particles, dtype=torch.long)
    observed = torch.tensor(1.0)
    with torch.no_grad():
        for _ in range(steps):
            z = dist.Categorical(TRANSITION[z], validate_args=False).sample()
            dist.Bernoulli(EMISSION[z], validate_args=False).log_prob(observed)


def arithmetic(num_particles: int, steps: int) -> None:
    """The operations of the filter on tensors, one after another: nothing of Pyro, no checks, and no history but a copy of each value."""
    z = torch.zeros(num_particles, dtype=torch.long)
    observed = torch.tensor(1.0)
    weights, likelihood, kept = Weights(torch.zeros(num_particles)), torch.zeros(num_particles, dtype=torch.float64), []
    with torch.no_grad():
        for _ in range(steps):
            z = draw_categorical(dist.Categorical(TRANSITION[z], validate_args=False))
            kept.append(z.clone())
            increment = dist.Bernoulli(EMISSION[z], validate_args=False).log_prob(observed).to(torch.float64)
            weights, likelihood = weights.add(increment), likelihood + increment
            if weights.ess <= 0.5 * num_particles:
                ancestors = systematic(weights.log_weights, torch.rand(1, dtype=torch.float64))
                weights = weights.set_to_mean(torch.tensor(True))
                likelihood, z = likelihood.gather(0, ancestors), z[ancestors]


def messages(num_particles: int, steps: int) -> None:
    """The model's sites and barriers under three handlers that do nothing, as many as a filter has: draws, but no densities."""
    with torch.no_grad(), Messenger(), Messenger(), Messenger():
        z = torch.zeros(num_particles, dtype=torch.long)
        for t in range(steps):
            z = pyro.sample(f"z_{t}", dist.Categorical(TRANSITION[z], validate_args=False))
            pyro.sample(f"y_{t}", dist.Bernoulli(EMISSION[z], validate_args=False), obs=torch.tensor(1.0))
            z = barrier(z)


def messages_left_out(num_particles: int, steps: int) -> None:
    """The same without them."""
    with torch.no_grad():
        z = torch.zeros(num_particles, dtype=torch.long)
        for _ in range(steps):
            z = dist.Categorical(TRANSITION[z], validate_args=False).sample()
            dist.Bernoulli(EMISSION[z], validate_args=False)
            torch.tensor(1.0)


def particles_smc(num_particles: int, steps: int) -> None:
    """The same filter in the library ``particles``."""
    import particles

    cumulative, log_emission = TRANSITION.numpy().cumsum(1), EMISSION.log().numpy()

    class HMM(particles.FeynmanKac):
        def __init__(self) -> None:
            self.T = steps

        def M0(self, N: int) -> Any:
            return self.M(0, np.zeros(N, dtype=int))

        def M(self, t: int, xp: Any) -> Any:
            return (cumulative[xp] < np.random.rand(len(xp), 1)).sum(1).clip(max=STATES - 1)

        def logG(self, t: int, xp: Any, x: Any) -> Any:
            return log_emission[x]

    particles.SMC(fk=HMM(), N=num_particles, resampling="systematic", ESSrmin=0.5).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    common.single_thread()
    pyro.set_rng_seed(0)
    n, steps = arguments.particles, arguments.steps
    runs = {
        "bare loop": lambda: bare_loop(n, steps),
        "a filter's arithmetic, no Pyro": lambda: arithmetic(n, steps),
        "Pyro's messages, no filter": lambda: messages(n, steps),
        "the same without messages": lambda: messages_left_out(n, steps),
        "ppl_llm.SMC": lambda: SMC(model, n).run(steps),
        "ppl_llm.SMC, audit=True": lambda: SMC(model, n, audit=True).run(steps),
        "ppl_llm.SMC.iterate": lambda: list(SMC(model, n).iterate(steps)),
        "pyro.infer.SMCFilter": lambda: smc_filter(n, steps),
    }
    if importlib.util.find_spec("particles") is not None:
        runs["particles.SMC"] = lambda: particles_smc(n, steps)
    times = {name: [1e3 * seconds for seconds, _ in each] for name, each in common.in_turns(runs, arguments.repeats).items()}
    sites = 2 * steps
    rows = [
        {
            "filter": name,
            "ms": common.Spread.of(each),
            "ms per site": common.Spread.of([ms / sites for ms in each]),
            "ms of bookkeeping per site": common.Spread.of(
                [(ms - least) / sites for ms, least in zip(each, times["bare loop"], strict=True)]
            ),
            "relative to ppl_llm.SMC": common.ratios(each, times["ppl_llm.SMC"]),
        }
        for name, each in times.items()
    ]
    print(f"{n} particles x {steps} steps, {arguments.repeats} runs, process CPU time on one thread: median (least-most)\n")
    print(common.table(rows))
    common.record("sweep", rows, {"particles": n, "steps": steps})


if __name__ == "__main__":
    main()
