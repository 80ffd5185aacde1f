"""Redraws the pictures of the README and the documentation: ``python docs/pictures.py``. A minute on one core."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import pyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no installed package

from benchmarks.study import outcomes
from benchmarks.study.__main__ import FOLDER as STUDY
from benchmarks.study.__main__ import SAVED
from benchmarks.study.tables import NAMES, joined
from ppl_llm import SMC, TransformersLM, TransformersPRM, reasoning
from ppl_llm.demo import example
from ppl_llm.evaluation.figures import scaling

FOLDER = Path(__file__).parent / "images"
SHOWN = ("self-consistency", "best-of-n", "weighted-best-of-n", "smc")


def genealogy() -> None:
    """32 particles on a problem of level 5, resampled where the effective sample size falls to 80 %."""
    model = reasoning(TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo"), max_steps=12, max_tokens=64)
    pyro.set_rng_seed(2)
    posterior = SMC(model, num_particles=32, ess_threshold=0.8).run(example(5).text)
    posterior.plot_genealogy().savefig(FOLDER / "genealogy.png", dpi=120, metadata={"Software": None})


def accuracy(to: Path = FOLDER / "accuracy.svg") -> None:
    """Four methods with the strong and the weak reward model, from the committed outcomes of the study."""
    study = outcomes.load(STUDY / SAVED)
    runs = {
        f"{setting} PRM": joined(
            study, [(setting, method, NAMES[method]) for method in SHOWN], study[setting].problems, study[setting].results.seeds
        )
        for setting in ("strong", "weak")
    }
    with matplotlib.rc_context({"svg.hashsalt": "accuracy"}):  # the same file for the same outcomes
        scaling(runs).savefig(to, metadata={"Date": None})


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    genealogy()
    accuracy()
