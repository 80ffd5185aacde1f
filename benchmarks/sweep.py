"""Overhead of the generic sweep: ``ppl_llm.SMC`` against ``pyro.infer.SMCFilter`` on the same hidden Markov model, in one process.

Process CPU time on one thread; ratios of medians from one run. ``python benchmarks/sweep.py [--particles 64 --steps 40 --repeats 21]``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SMCFilter

from ppl_llm import SMC, barrier

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


def cpu_ms(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return 1e3 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    n, steps = arguments.particles, arguments.steps
    runs = {
        "ppl_llm.SMC": lambda: SMC(model, n).run(steps),
        "ppl_llm.SMC, audit=True": lambda: SMC(model, n, audit=True).run(steps),
        "ppl_llm.SMC.iterate": lambda: list(SMC(model, n).iterate(steps)),
        "pyro.infer.SMCFilter": lambda: smc_filter(n, steps),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(arguments.repeats + 1):
        for name, run in runs.items():
            pyro.set_rng_seed(repeat)
            elapsed = cpu_ms(run)
            if repeat > 0:  # the first one warms up
                times[name].append(elapsed)
    base = statistics.median(times["ppl_llm.SMC"])
    print(f"{n} particles x {steps} steps, {arguments.repeats} runs, process CPU time on one thread\n")
    print("| | median ms | least | most | ms per site | relative |\n|---|---|---|---|---|---|")
    for name, each in times.items():
        middle = statistics.median(each)
        print(f"| {name} | {middle:.1f} | {min(each):.1f} | {max(each):.1f} | {middle / (2 * steps):.3f} | {middle / base:.2f} |")


if __name__ == "__main__":
    main()
