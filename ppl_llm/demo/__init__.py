"""Small trained models inside the package, so that every example runs without a download, and the problems that they were trained on.

``"demo"`` names the language model and the process reward model, ``"demo-weak"`` a weaker reward model; see ``MODEL_CARD.md``.
"""

from pathlib import Path

from .checker import check_steps, looks_like_demo, parse
from .problems import Problem, example, held_out, make_problem

__all__ = ["LM_DIR", "PRM_DIR", "WEAK_PRM_DIR", "Problem", "check_steps", "example", "held_out", "looks_like_demo", "make_problem", "parse"]

LM_DIR = Path(__file__).parent / "lm"
PRM_DIR = Path(__file__).parent / "prm"
WEAK_PRM_DIR = Path(__file__).parent / "weak_prm"
