"""The command line ``ppl-llm``. Nothing here imports torch before a command runs."""

from . import check as _check  # noqa: F401 - adds its command
from .commands import app, main

__all__ = ["app", "main"]
