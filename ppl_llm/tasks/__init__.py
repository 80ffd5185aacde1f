"""Where problems come from: files, data sets of the Hugging Face Hub, the demo, and procedural tasks with verifiers of their own."""

from .base import RIGHT, Problem, Task, Verifier
from .demo_task import DemoTask
from .reasoning_gym_task import ReasoningGymTask, ReasoningGymVerifier
from .row_task import Field, Row, RowTask

__all__ = ["RIGHT", "DemoTask", "Field", "Problem", "ReasoningGymTask", "ReasoningGymVerifier", "Row", "RowTask", "Task", "Verifier"]
