"""What starting costs: the command line from the shell to its end, imports, and what torch, Pyro and transformers take of it by themselves.

Processor time (user and system) of a fresh interpreter with one thread, and the number of modules it has imported at the end, in turns.
``python benchmarks/startup.py``, ``--against DIR`` compares with another checkout of this repository in the same run, ``--repeats N``.
``--quick`` is one turn. Bytecode is written before by a run that does not count.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import Spread, ratios, record, table

ROOT = Path(__file__).parents[1]
PROBLEM = "Begin with 12. First: take away 5. Second: increase it by 3. What number do you get?"
FURTHER = 4
"""Problems more than one."""

COMMAND = "from ppl_llm.cli import main; sys.argv = ['ppl-llm', *{arguments}]; main()"
SEVERAL = (
    "from ppl_llm import SMC, TransformersLM, TransformersPRM, reasoning\n"
    "model = reasoning(TransformersLM.from_pretrained('demo'), TransformersPRM.from_pretrained('demo'))\n"
    "for _ in range({number}): SMC(model, 16).run({problem!r}).answers()"
)
CASES = {
    "ppl-llm --help": COMMAND.format(arguments=["--help"]),
    "ppl-llm solve, demo models": COMMAND.format(arguments=["solve", PROBLEM]),
    "from ppl_llm import SMC, TabularLM": "from ppl_llm import SMC, TabularLM",
    "demo models and one problem in Python": SEVERAL.format(number=1, problem=PROBLEM),
    f"and {FURTHER} further problems": SEVERAL.format(number=1 + FURTHER, problem=PROBLEM),
}
FLOORS = {
    "import torch, pyro": "import torch, pyro",
    "and a model class of transformers": "import torch, pyro; from transformers import AutoTokenizer, Qwen2ForCausalLM",
}
"""What does not depend on this package; measured once, not for each checkout."""

_COUNTED = "import atexit, sys\natexit.register(lambda: print(len(sys.modules), file=sys.stderr))\n"


def spent(code: str, checkout: Path) -> tuple[float, int]:
    """Processor seconds of an interpreter, and how many modules it had."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", _COUNTED + code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=checkout, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{code}\nended with {done.returncode}:\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, int(done.stderr.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    checkouts = [ROOT, *([options.against.resolve()] if options.against else [])]
    runs = [(name, code, checkout) for name, code in CASES.items() for checkout in checkouts]
    runs += [(name, code, ROOT) for name, code in FLOORS.items()]
    found: dict[tuple[str, Path], list[tuple[float, int]]] = {(name, checkout): [] for name, _, checkout in runs}
    for turn in range(-1, repeats):
        for name, code, checkout in runs:
            once = spent(code, checkout)
            if turn >= 0:
                found[name, checkout].append(once)

    def row(name: str, here: list[tuple[float, int]], there: list[tuple[float, int]]) -> dict[str, Any]:
        seconds = [each for each, _ in here]
        compared = {"seconds there": Spread.of([each for each, _ in there]), "modules there": there[0][1]} if there else {}
        ratio = {"here / there": ratios(seconds, [each for each, _ in there])} if there else {}
        shown = {"processor seconds": Spread.of(seconds), "modules": here[0][1], **compared, **ratio}
        return {"": name, **(shown if there or len(checkouts) == 1 else shown | dict.fromkeys(NAMES, ""))}

    others = {name: found.get((name, checkouts[-1]), []) if len(checkouts) == 2 else [] for name in [*CASES, *FLOORS]}
    rows = [row(name, found[name, ROOT], others[name]) for name in [*CASES, *FLOORS]]
    print(table(rows))
    one, several = (found[name, ROOT] for name in list(CASES)[-2:])
    further = Spread.of([(b - a) / FURTHER for (a, _), (b, _) in zip(one, several, strict=True)])
    print(f"\na further problem: {further:.2g} processor seconds")
    if not options.quick:
        record("startup", [*rows, {"": "a further problem", "processor seconds": further}], {"particles": 16, "repeats": repeats})


NAMES = ("seconds there", "modules there", "here / there")

if __name__ == "__main__":
    main()
