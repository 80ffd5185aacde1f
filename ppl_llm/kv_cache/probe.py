"""Whether a model computes the same through a slab as it does by itself: tried on a few tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .engine import PrefixEngine

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE = 0.05
"""Relative error allowed in half precision; a wrong key or position gives one of order 1."""


def agree(first: Tensor, second: Tensor) -> bool:
    """Whether logits are equal up to rounding."""
    tolerance = _TOLERANCE.get(first.dtype, _COARSE)
    difference = (first.double() - second.double()).norm()
    return bool(difference <= tolerance * second.double().norm())


@torch.no_grad()
def disagreement(engine: PrefixEngine, model: Any) -> str | None:
    """Run two lanes that fall out of step through a slab, and compare with passes over their whole texts.

    :returns: what is wrong, ``None`` if nothing is.
    """
    device = engine.device
    slab = engine.pool.take(None)
    slab.reserve(2, 9)
    text = (torch.arange(18, device=device).view(2, 9) * 7) % 13 + 2
    try:
        # The second lane is taken back by one token before it goes on, as lanes are that stop before the others.
        for held, ends in (((0, 0), (4, 4)), ((4, 3), (7, 6)), ((7, 6), (8, 7))):
            before, lengths = text.new_tensor(held), text.new_tensor(ends)
            logits = engine.append(slab, torch.arange(2, device=device), text, lengths, before, lengths[:, None] - 1)[:, 0]
        whole = [model(input_ids=text[lane : lane + 1, : int(lengths[lane])], use_cache=False).logits[0, -1] for lane in (0, 1)]
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"its forward pass refuses our cache ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    finally:
        engine.pool.clear()
    return None if agree(logits, torch.stack(whole).to(device)) else "its logits with our cache differ from those without"
