"""Programs that take turns, and share the batches of a language model."""

from .program import Stopped
from .program_server import Job, ProgramServer
from .run_concurrently import run_concurrently

__all__ = ["Job", "ProgramServer", "Stopped", "run_concurrently"]
