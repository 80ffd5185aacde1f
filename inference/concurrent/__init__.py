"""Programs that take turns, and share the batches of a language model."""

from .run_concurrently import run_concurrently

__all__ = ["run_concurrently"]
