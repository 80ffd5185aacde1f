"""A random program of tokens as Pyro code."""

from __future__ import annotations

from tests.helpers.program_ast import GLOBAL, LOCAL, TokenProgram

HEADER = """import pyro
import torch

from ppl_llm import LLMStep, StepProposal, TabularLM, barrier
from ppl_llm.constraints import Automaton
"""


def token_code(program: TokenProgram) -> str:
    """The program as the text of a module."""
    size = len(program.odds)
    letters = [*"abcdefgh"[: size - 1], "$"]
    stop = repr(letters[1]) if program.delimiter else "()"
    own = ", constraint=LANGUAGE" if program.constrained == LOCAL else ""
    begin = [letters[prompt] for prompt in program.prompts]
    step = f"LLMStep(ctx, stop={stop}, max_tokens={program.tokens}, temperature={program.temperature}{own})"
    lines = [
        HEADER,
        f"LM = TabularLM(torch.tensor({floats(program.odds)}).log(), {letters!r}, eos='$')",
        f"LANGUAGE = Automaton(torch.tensor({[list(row) for row in program.arcs]}), torch.tensor({list(program.accepting)}))",
        f"FACTORS = torch.tensor({[float(factor) for factor in program.factors]})",
        "",
        "",
        "def model():",
        f"    ctx = LM.start({begin if program.problems else begin[0]!r})",
        *([f"    with pyro.plate('problems', {program.problems}, dim=-1):"] if program.problems else []),
    ]
    body = [
        f"for t in range({program.steps}):",
        f"    step = pyro.sample(f'step_{{t}}', {step})",
        f"    ctx = ctx.extend(step, stop={stop})",
        "    last = ctx.tokens.gather(-1, (ctx.lengths - 1)[..., None])[..., 0]",
        "    pyro.factor(f'accept_{t}', torch.where(ctx.advanced, FACTORS[last], FACTORS[-1]).log())",
        "    ctx = barrier(ctx)",
    ]
    lines += [("        " if program.problems else "    ") + line for line in body]
    lines += ["    return ctx"]
    if program.proposals:
        lines += ["", "", f"proposals = {proposals(program)}"]
    return "\n".join(lines) + "\n"


def proposals(program: TokenProgram) -> str:
    if not program.proposed:
        return "LANGUAGE"
    return f"StepProposal(temperature={program.proposed}{', constraint=LANGUAGE' if program.constrained == GLOBAL else ''})"


def floats(table: tuple[tuple[int, ...], ...]) -> list[list[float]]:
    return [[float(entry) for entry in row] for row in table]
