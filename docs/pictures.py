"""The pictures of the README and the documentation, drawn anew: ``python docs/pictures.py``. A minute on one core."""

from __future__ import annotations

from pathlib import Path

import pyro

from ppl_llm import SMC, TransformersLM, TransformersPRM, reasoning
from ppl_llm.demo import example

FOLDER = Path(__file__).parent / "images"


def genealogy() -> None:
    """32 particles on a problem of level 5, resampled where the effective sample size falls to 80 %."""
    model = reasoning(TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo"), max_steps=12, max_tokens=64)
    pyro.set_rng_seed(2)
    posterior = SMC(model, num_particles=32, ess_threshold=0.8).run(example(5).text)
    posterior.plot_genealogy().savefig(FOLDER / "genealogy.png", dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    genealogy()
