"""Values of sites as tensors, from the oracle's draws; and a program's variables from the values of its sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.helpers.program_ast import ELEMENT, FN_MASK, POUTINE_MASK, AnyProgram, Draw, End, GaussianProgram, Note, TokenProgram


def stacked(program: AnyProgram, site: str, draws: list[dict[str, list[Any]]]) -> Tensor:
    """``[R, *plates]``, a plate of size 1 where the site is outside of it."""
    value = torch.tensor([draw[site] for draw in draws])
    if isinstance(program, GaussianProgram | TokenProgram):
        return value if program.problems else value[:, 0]
    if not program.problems:
        value = value[:, 0]
    return value[..., None] if program.elements and value.dim() < 1 + program.nesting else value


def variables(program: AnyProgram, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Variables of the program: sites, with 0 for those masked out."""
    if isinstance(program, GaussianProgram):
        return dict(sites)
    if isinstance(program, TokenProgram):
        return token_variables(program, sites)
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


def token_variables(program: TokenProgram, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each step as a number, its tokens plus one as digits; and whether the text has an odd number of tokens."""
    base = len(program.odds) + 1
    steps = [sites[f"step_{t}"] for t in range(program.steps) if f"step_{t}" in sites]
    place = base ** torch.arange(program.tokens)
    found = {f"step_{t}": ((step + 1) * place).sum(-1) for t, step in enumerate(steps)}
    if len(steps) == program.steps:
        found["parity"] = sum((step >= 0).sum(-1) for step in steps) % 2
    return found
