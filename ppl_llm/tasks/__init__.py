"""Where problems come from: files, data sets of the Hugging Face Hub, the demo, and procedural tasks with their own verifiers."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .base import RIGHT, Problem, Task, Verifier
    from .demo_task import DemoTask
    from .load import load_problems, open_task
    from .reasoning_gym_task import ReasoningGymTask, ReasoningGymVerifier
    from .row_task import Field, Row, RowTask

_MODULES = {
    "RIGHT": "base",
    "DemoTask": "demo_task",
    "Field": "row_task",
    "Problem": "base",
    "ReasoningGymTask": "reasoning_gym_task",
    "ReasoningGymVerifier": "reasoning_gym_task",
    "Row": "row_task",
    "RowTask": "row_task",
    "Task": "base",
    "Verifier": "base",
    "load_problems": "load",
    "open_task": "load",
}

__all__ = [
    "RIGHT",
    "DemoTask",
    "Field",
    "Problem",
    "ReasoningGymTask",
    "ReasoningGymVerifier",
    "Row",
    "RowTask",
    "Task",
    "Verifier",
    "load_problems",
    "open_task",
]

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
