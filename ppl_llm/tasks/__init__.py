"""Where problems come from: files, data sets of the Hugging Face Hub, the demo, and procedural tasks with their own verifiers."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .base import RIGHT, Critic, Problem, Task, Verdict, Verifier
    from .code_task import CodeTask, CodeVerifier
    from .demo_task import DemoTask
    from .isolation import Limits
    from .load import load_problems, open_task
    from .reasoning_gym_task import ReasoningGymTask, ReasoningGymVerifier
    from .row_task import Field, Row, RowTask

_MODULES = {
    "RIGHT": "base",
    "CodeTask": "code_task",
    "CodeVerifier": "code_task",
    "Critic": "base",
    "DemoTask": "demo_task",
    "Field": "row_task",
    "Limits": "isolation",
    "Problem": "base",
    "ReasoningGymTask": "reasoning_gym_task",
    "ReasoningGymVerifier": "reasoning_gym_task",
    "Row": "row_task",
    "RowTask": "row_task",
    "Task": "base",
    "Verdict": "base",
    "Verifier": "base",
    "load_problems": "load",
    "open_task": "load",
}

__all__ = [
    "RIGHT",
    "CodeTask",
    "CodeVerifier",
    "Critic",
    "DemoTask",
    "Field",
    "Limits",
    "Problem",
    "ReasoningGymTask",
    "ReasoningGymVerifier",
    "Row",
    "RowTask",
    "Task",
    "Verdict",
    "Verifier",
    "load_problems",
    "open_task",
]

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
