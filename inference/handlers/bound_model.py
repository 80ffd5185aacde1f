"""A model inside a handler of its own for every execution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..util.checked import checked
from ..util.fingerprint import name_of, of_model


class BoundModel:
    """A model in a handler that counts as it goes: executions under way at the same time, or inside of each other, each have their own.

    :param model: the model.
    :param make: makes the handler of an execution.
    :param str described: the handler in words, by which a run that is resumed is told from another.
    """

    @checked
    def __init__(self, model: Callable[..., Any], make: Callable[[], Any], described: str) -> None:
        self.model, self.make = model, make
        self.__qualname__ = f"{described}({name_of(model)})"
        told = of_model(model)
        self.settings = {name.removeprefix("model "): value for name, value in told.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.make():
            return self.model(*args, **kwargs)
