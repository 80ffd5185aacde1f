"""Values of sites as tensors, from the oracle's draws; and a program's variables from the values of its sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.helpers.program_ast import ELEMENT, FN_MASK, POUTINE_MASK, AnyProgram, Draw, End, GaussianProgram, Note


def stacked(program: AnyProgram, site: str, draws: list[dict[str, list[Any]]]) -> Tensor:
    """``[R, *plates]``, a plate of size 1 where the site is outside of it."""
    value = torch.tensor([draw[site] for draw in draws])
    if isinstance(program, GaussianProgram):
        return value if program.problems else value[:, 0]
    if not program.problems:
        value = value[:, 0]
    return value[..., None] if program.elements and value.dim() < 1 + program.nesting else value


def variables(program: AnyProgram, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Variables of the program: sites, with 0 for those masked out."""
    if isinstance(program, GaussianProgram):
        return dict(sites)
    found: dict[str, Tensor] = {}
    done = torch.zeros((), dtype=torch.bool)
    parity: list[Tensor] = []
    for s in program.statements:
        if isinstance(s, Draw) and not s.hidden:
            fixed = {**program.condition, **program.replay}
            value = torch.tensor(fixed[s.site]) if s.site in fixed else sites[s.site]
            found[s.variable] = torch.where(done, 0, value) if s.mask in (FN_MASK, POUTINE_MASK) else value
            if s.where != ELEMENT and s.site not in fixed:
                parity.append(found[s.variable])
        elif isinstance(s, End):
            done = done | (found[s.variable] == 0)
        elif isinstance(s, Note) and s.site in sites:
            found[s.variable] = sites[s.site]
    if parity:
        found["parity"] = sum(parity, torch.zeros(())) % 2
    return found
