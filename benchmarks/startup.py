"""What starting costs: the command line from the shell to its end, imports, and what torch, Pyro and transformers take of it by themselves.

Processor time (user and system) of a fresh interpreter with one thread, and the number of modules it has imported at the end, in turns.
``python benchmarks/startup.py``, ``--against DIR`` compares with another checkout of this repository in the same run, ``--repeats N``.
``--quick`` is one turn. Bytecode is written before.
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
CASES = {
    "ppl-llm --help": COMMAND.format(arguments=["--help"]),
    "ppl-llm solve, demo models": COMMAND.format(arguments=["solve", PROBLEM]),
    "from ppl_llm import SMC, TabularLM": "from ppl_llm import SMC, TabularLM",
}
FLOORS = {
    "import torch, pyro": "import torch, pyro",
    "and a model class of transformers": "import torch, pyro; from transformers import AutoTokenizer, Qwen2ForCausalLM",
}
"""What does not depend on this package; measured once, not for each checkout."""

SEVERAL = f"""
import time
from ppl_llm import SMC, TransformersLM, TransformersPRM, reasoning
model = reasoning(TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo"))
SMC(model, 16).run({PROBLEM!r}).answers()
began = time.process_time()
for _ in range({FURTHER}):
    SMC(model, 16).run({PROBLEM!r}).answers()
print((time.process_time() - began) / {FURTHER})
"""

_COUNTED = "import atexit, sys\natexit.register(lambda: print(len(sys.modules), file=sys.stderr))\n"


def spent(code: str, checkout: Path) -> tuple[float, int, str]:
    """Processor seconds of an interpreter, how many modules it had, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", _COUNTED + code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=checkout, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{code}\nended with {done.returncode}:\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, int(done.stderr.split()[-1]), done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    checkouts = {"": ROOT} | ({" there": options.against.resolve()} if options.against else {})
    for checkout in checkouts.values():
        subprocess.run([sys.executable, "-m", "compileall", "-q", checkout / "ppl_llm"], check=True)
    runs = {(name, where): (code, checkout) for name, code in CASES.items() for where, checkout in checkouts.items()}
    runs |= {(name, ""): (code, ROOT) for name, code in FLOORS.items()}
    found: dict[tuple[str, str], list[tuple[float, int, str]]] = {run: [] for run in runs}
    further = []
    for _ in range(repeats):
        for run, (code, checkout) in runs.items():
            found[run].append(spent(code, checkout))
        further.append(float(spent(SEVERAL, ROOT)[-1]))
    rows: list[dict[str, Any]] = []
    for name in [*CASES, *FLOORS]:
        row: dict[str, Any] = {"": name}
        for where in checkouts:
            each = found.get((name, where), [])
            row[f"processor seconds{where}"] = Spread.of([seconds for seconds, _, _ in each]) if each else ""
            row[f"modules{where}"] = each[0][1] if each else ""
        if len(checkouts) == 2:
            here, there = ([seconds for seconds, _, _ in found.get((name, where), [])] for where in checkouts)
            row["here / there"] = ratios(here, there) if there else ""
        rows.append(row)
    print(table(rows))
    print(f"\na further problem: {Spread.of(further):.2g} processor seconds")
    if not options.quick:
        settings = {"particles": 16, "repeats": repeats}
        record("startup", [*rows, {"": "a further problem", "processor seconds": Spread.of(further)}], settings)


if __name__ == "__main__":
    main()
