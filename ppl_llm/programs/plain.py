"""Which reasoning models others are made of."""

from __future__ import annotations

from .models import ReasoningModel


def check_plain(model: ReasoningModel, taker: str) -> None:
    """Models that are made of another take its options and have their own way to solve: what the other one does besides would be lost.

    :param str taker: what takes it, for the message.
    :raises ValueError: for a model that is not one of :func:`~ppl_llm.reasoning` itself.
    """
    if type(model) is not ReasoningModel:
        raise ValueError(
            f"{taker} takes a model of reasoning(...) itself, and this is a {type(model).__name__}: its turns, its temperatures or "
            "whatever else it does besides would be left out in silence. Take one of the two"
        )
