"""The command line ``ppl-llm``. Nothing here imports torch before a command runs."""

from .commands import app, main

__all__ = ["app", "main"]
