"""Constraints that a server keeps to by itself, in the words of its requests."""

from __future__ import annotations

import json
import re
from typing import Any

from torch import Tensor

from ..constraints.base import Constraint
from ..constraints.choices import Choices
from ..constraints.grammar import JsonSchema, Regex
from ..constraints.per_step import PerStep
from ..context import Context

SERVERS = ("vllm", "sglang")
"""Whose fields are known: vLLM since 0.12, and SGLang."""


def structured_fields(server: str | None, constraint: Constraint, context: Context, active: Tensor) -> dict[str, Any]:
    """Fields of a request whose answer is in a language.

    A server renormalises each token over what may follow and tells no masses: the local semantics. It begins to read with the request.

    :param server: one of ``SERVERS``; ``None`` for a server that was not said to have structured outputs.
    :param Tensor active: ``[A]`` flat indices of the sequences that are continued.
    :raises ValueError: for a server that has none, a constraint that requests have no words for, or one on a text that has begun.
    """
    if server is None:
        raise ValueError(
            f"a server does not tell which part of its mass a constraint allows, got constraint={constraint!r}; load the model as a "
            "TransformersLM, or, for renormalised steps from a server with structured outputs, pass OpenAILM(structured_outputs='vllm')"
        )
    begun = (context.lengths > context.prompt_lengths).flatten()[active]
    if isinstance(constraint, PerStep):
        constraint = constraint.constraint
    elif bool(begun.any()):
        raise ValueError(
            f"a server reads {constraint!r} from the beginning of each request, and this text has begun: let one step be the whole text "
            "(stop=(), a larger max_tokens), or constrain each step by itself with PerStep"
        )
    if isinstance(constraint, JsonSchema) and constraint.whitespace is True:
        return {"structured_outputs": {"json": constraint.schema}} if server == "vllm" else {"json_schema": json.dumps(constraint.schema)}
    if isinstance(constraint, Regex):
        return {"structured_outputs": {"regex": constraint.pattern}} if server == "vllm" else {"regex": constraint.pattern}
    if isinstance(constraint, Choices):
        if server == "vllm":
            return {"structured_outputs": {"choice": list(constraint.texts)}}
        return {"regex": "|".join(f"({re.escape(text)})" for text in constraint.texts)}
    raise ValueError(
        f"requests have no words for {constraint!r}: a server takes JsonSchema (with whitespace=True), Regex and Choices; load the model "
        "as a TransformersLM for others"
    )


def refuse_constraint(constraint: Constraint | None) -> None:
    """:raises ValueError: if there is one."""
    if constraint is not None:
        raise ValueError(
            f"a server does not tell which part of its mass a constraint allows, so steps under constraint={constraint!r} have no "
            "log-probability here; load the model as a TransformersLM"
        )
