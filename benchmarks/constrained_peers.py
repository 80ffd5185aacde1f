"""Particle filters under a JSON schema here and in genlm-control, on the same model file: tokens per second of CPU time.

N particles of the random Qwen2 of ``peers.py`` write T tokens each of an array of strings; a weight and, where the effective sample size
falls below N / 2, resampling after each token. genlm-control samples by adaptive weighted rejection (``AWRS``) with its ``JsonSchema``, as
its manual advises; ppl_llm takes exact masks. Both are properly weighted for the same target. The schema suits rejection: most tokens are
allowed within long strings. ``--max-rejects`` bounds how many tokens are asked about before a particle is given up with weight zero; the
default is a low one, at which genlm-control is fastest. Without a bound, and where few tokens are allowed as in a schema of records,
version 0.4.1 ends with an assertion about its rounding, as it adds up thousands of small probabilities in float32.

One thread, in turns, ratios within a turn. The peer's environment is made as ``peers.py`` does:
``python benchmarks/constrained_peers.py --setup /some/folder [--particles 32 --tokens 32 --repeats 3]``
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
from common import Spread, ratios, record, single_thread, table, timed
from peers import Peer, environment, save

from ppl_llm import SMC, LLMStep, TransformersLM, barrier
from ppl_llm.constraints import JsonSchema

NAME = "genlm-control, JSON schema"
TARGET = 10.0
SCHEMA = {"type": "array", "minItems": 1000, "items": {"type": "string", "minLength": 400}}


def particle_filter(lm: TransformersLM, prompt: str, sequences: int, tokens: int) -> Callable[[], int]:
    """The program in ppl_llm, with a barrier after every token."""
    proposals = JsonSchema(SCHEMA)

    def program() -> Any:
        context = lm.start(prompt)
        for t in range(tokens):
            context = context.extend(pyro.sample(f"step_{t}", LLMStep(context, tokens_per_step=1)), ())
            context = barrier(context)
        return context

    def run() -> int:
        lm.release_caches()
        posterior = SMC(program, num_particles=sequences, ess_threshold=0.5, proposals=proposals).run()
        return int(posterior.cost["tokens_sampled"])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", type=Path, required=True, metavar="DIRECTORY", help="make the peer's environment here, or find it here")
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each particle")
    parser.add_argument("--max-rejects", type=int, default=200, help="tokens that genlm-control asks about in vain, at most")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    python = environment(arguments.setup, "genlm-control")
    single_thread()
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        prompt = "~" * arguments.prompt
        shared = {"model": folder, "prompt": prompt, "sequences": arguments.particles, "tokens": arguments.tokens}
        peer = Peer(NAME, python, **shared, schema=SCHEMA, max_rejects=arguments.max_rejects)
        ours = particle_filter(TransformersLM.from_pretrained(folder), prompt, arguments.particles, arguments.tokens)
        runs: dict[str, Callable[[], tuple[float, int]]] = {"ppl_llm, JSON schema": lambda: timed(ours), NAME: peer.run}
        measured: dict[str, list[tuple[float, int]]] = {name: [] for name in runs}
        for turn in range(-1, arguments.repeats):  # the first one warms up
            for name, run in runs.items():
                pyro.set_rng_seed(turn + 1)
                once = run()
                if turn >= 0:
                    measured[name].append(once)
        peer.close()
    rates = {name: [tokens / seconds for seconds, tokens in each] for name, each in measured.items()}
    rows = [
        {
            "program": name,
            "tokens": measured[name][0][1],
            "tokens per CPU second": Spread.of(each),
            "ppl_llm is faster by": ratios(rates["ppl_llm, JSON schema"], each),
            "target": TARGET if name == NAME else "",
        }
        for name, each in rates.items()
    ]
    print(f"{arguments.particles} particles, prompt {arguments.prompt}, {arguments.tokens} tokens each; {arguments.repeats} runs\n")
    print(table(rows))
    settings = {name: getattr(arguments, name) for name in ("particles", "prompt", "tokens", "max_rejects")}
    record("constrained_peers", rows, settings | {"versions of the peer": peer.versions})


if __name__ == "__main__":
    main()
