"""What transformers calls the cache of a forward pass."""

from __future__ import annotations

import inspect
from typing import Any

KEYWORDS = ("cache", "past_key_values", "cache_params")
"""The first since transformers 5.24, which will not know the others for long; recurrent models had the last."""


def cache_keyword(model: Any) -> str:
    """The keyword by which a model, or the backbone that it hands its keywords to, takes a cache; also its name in the output."""
    for part in (model, getattr(model, "base_model", model)):
        parameters = inspect.signature(part.forward).parameters
        found = [keyword for keyword in KEYWORDS if keyword in parameters]
        if found:
            return found[0]
    return KEYWORDS[0]
