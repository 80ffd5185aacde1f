"""A random program as Pyro code: what is run is the text that is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.helpers.program_ast import (
    DICT,
    ELEMENT,
    FN_MASK,
    LIST,
    NESTED,
    OBJECT,
    PAD,
    POUTINE_MASK,
    SHARED,
    AnyProgram,
    Barrier,
    Draw,
    End,
    GaussianProgram,
    Note,
    Program,
    Score,
    Statement,
    TokenProgram,
)
from tests.helpers.program_token_code import token_code

HEADER = """import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from ppl_llm.inference import barrier
"""

STATE = '''

class State:
    """Variables of each particle, and which particles have ended."""

    def __init__(self, done, *variables):
        self.done, self.variables = done, variables

    def reorder(self, index):
        def moved(value):
            shape = torch.broadcast_shapes(value.shape, index.shape)
            return value.expand(shape).gather(0, index.expand(shape))

        return State(*map(moved, (self.done, *self.variables)))
'''

FULL_STATE = """
    @property
    def batch_shape(self):
        return torch.broadcast_shapes(self.done.shape, *(value.shape for value in self.variables))

    def select_plate(self, dim, index):
        def selected(value):
            return value.expand(self.batch_shape).select(dim, index)

        return State(*map(selected, (self.done, *self.variables)))

    def concatenate(self, others):
        states = [self, *others]
        columns = zip(*((state.done, *state.variables) for state in states))
        return State(*(torch.cat([v.expand(s.batch_shape) for s, v in zip(states, column)]) for column in columns))
"""
"""What posteriors of islands ask of a state object beside ``reorder`` and ``done``."""


class Lines:
    """Lines of code, indented."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.depth = 0

    def add(self, line: str) -> None:
        self.text.append("    " * self.depth + line)

    @contextmanager
    def block(self, *openings: str) -> Iterator[None]:
        if openings:
            self.add(f"with {', '.join(openings)}:")
        self.depth += bool(openings)
        yield
        self.depth -= bool(openings)


def constant(site: str) -> str:
    return site.upper()


def literal(table: Any) -> str:
    """Nested tuples as a literal of lists of floats."""
    return f"[{', '.join(map(literal, table))}]" if isinstance(table, tuple) else repr(float(table))


def code_of(program: AnyProgram) -> str:
    """The program as the text of a module with a function ``model``, and ``proposals`` where there are some."""
    if isinstance(program, TokenProgram):
        return token_code(program)
    return gaussian_code(program) if isinstance(program, GaussianProgram) else discrete_code(program)


def build(program: AnyProgram) -> tuple[Callable[[], Any], Any]:
    """The model and its proposals."""
    names: dict[str, Any] = {}
    exec(compile(code_of(program), "<random program>", "exec"), names)
    return names["model"], names.get("proposals")


# Discrete programs -----------------------------------------------------------------------------------------------------------------------


def discrete_code(program: Program) -> str:
    lines = Lines()
    has_object = any(isinstance(s, Barrier) and s.form == OBJECT for s in program.statements)
    full = "" if "state object without batch_shape" in program.features else FULL_STATE
    lines.text.append(HEADER + (STATE + full + "\n" if has_object else ""))
    for s in program.statements:
        if isinstance(s, Draw | Score):
            lines.add(f"{constant(s.site)}{suffix(s, program)} = torch.tensor({literal(s.table)})")
    lines.add("")
    lines.add("")
    lines.add("def model():")
    lines.depth += 1
    ends = program.ends
    if ends:
        lines.add("done = torch.zeros((), dtype=torch.bool)")
    first = next((k for k, s in enumerate(program.statements) if getattr(s, "where", "") != SHARED), len(program.statements))
    last = max((k + 1 for k, s in enumerate(program.statements) if getattr(s, "where", "") != SHARED), default=0)
    for s in program.statements[:first]:
        render(lines, s, program)
    with lines.block(*problem_plate(program)):
        if program.problems and not program.subsample:
            lines.add(f"i = torch.arange({program.problems}){'[:, None]' if program.elements else ''}")
        if program.elements:
            lines.add(f"j = torch.arange({program.elements})")
            lines.add(f'elements = pyro.plate("elements", {program.elements}, dim=-1)')
        for s in program.statements[first:last]:
            render(lines, s, program)
    for s in program.statements[last:]:
        render(lines, s, program)
    lines.add(f"return {returned(program)}")
    lines.depth = 0
    if program.condition:
        given = ", ".join(f"{site!r}: torch.tensor({value})" for site, value in program.condition.items())
        lines.add("")
        lines.add("")
        lines.add(f"model = poutine.condition(model, data={{{given}}})")
    if program.replay:
        lines.add("")
        lines.add("")
        lines.add("known = poutine.Trace()")
        for site, value in program.replay.items():
            lines.add(f"known.add_node({site!r}, name={site!r}, type='sample', is_observed=False, infer={{}}, value=torch.tensor({value}))")
        lines.add("model = poutine.replay(model, trace=known)")
    if program.proposals:
        lines.add("")
        lines.add("")
        each = ", ".join(f"{site!r}: dist.Categorical(torch.tensor({literal(q)}))" for site, q in program.proposals.items())
        lines.add(f"proposals = {{{each}}}")
    return "\n".join(lines.text) + "\n"


def returned(program: Program) -> str:
    """Variables of the last state, by name."""
    names = [s.variable for s in program.statements if isinstance(s, Draw)]
    return "{" + ", ".join(f"{name!r}: {name}" for name in names) + "}"


def suffix(s: Draw | Score, program: Program) -> str:
    """Distinguishes the tables of sites of the same name."""
    same = [other for other in program.statements if isinstance(other, Draw | Score) and other.site == s.site]
    return f"_{next(k for k, other in enumerate(same) if other is s)}" if len(same) > 1 else ""


def problem_plate(program: Program) -> list[str]:
    if not program.problems:
        return []
    dim = -2 if program.elements else -1
    subsample = f", subsample_size={program.subsample}" if program.subsample else ""
    return [f'pyro.plate("problems", {program.problems}{subsample}, dim={dim}){" as i" if subsample else ""}']


def indexed(s: Draw | Score, program: Program) -> str:
    """The table at the plates' and the parents' values."""
    lead = ["i"] if program.problems and s.where != SHARED else []
    index = [*lead, *(["j"] if s.where == ELEMENT else []), *s.parents]
    name = f"{constant(s.site)}{suffix(s, program)}"
    return f"{name}[{', '.join(index)}]" if index else name


def contexts(s: Draw | Score) -> list[str]:
    found = ["elements"] if s.where == ELEMENT else []
    if isinstance(s, Draw) and s.hidden:
        found.append(f"poutine.block(hide=[{s.site!r}])")
    if s.scale != 1.0:
        found.append(f"poutine.scale(scale={s.scale})")
    if s.mask == POUTINE_MASK:
        found.append("poutine.mask(mask=~done)")
    return found


def render(lines: Lines, s: Statement, program: Program) -> None:
    if isinstance(s, Draw):
        probs = indexed(s, program)
        if s.mask == PAD:
            only = ", ".join(["1.0"] + ["0.0"] * (s.size - 1))
            probs = f"torch.where(done[..., None], torch.tensor([{only}]), {probs})"
        masked = ".mask(~done)" if s.mask == FN_MASK else ""
        with lines.block(*contexts(s)):
            lines.add(f"{s.variable} = pyro.sample({s.site!r}, dist.Categorical({probs}){masked})")
        if s.mask in (FN_MASK, POUTINE_MASK):
            lines.add(f"{s.variable} = torch.where(done, 0, {s.variable})")
    elif isinstance(s, Score):
        table = indexed(s, program)
        with lines.block(*contexts(s)):
            if s.observed:
                masked = ".mask(~done)" if s.mask in (FN_MASK, PAD) else ""
                lines.add(f"pyro.sample({s.site!r}, dist.Categorical({table}){masked}, obs=torch.tensor(1))")
            elif s.mask in (FN_MASK, PAD):
                lines.add(f"pyro.factor({s.site!r}, torch.where(done, 0.0, {table}.log()))")
            else:
                lines.add(f"pyro.factor({s.site!r}, {table}.log())")
    elif isinstance(s, Note):
        total = f"{s.parents[0]}.sum(-1, keepdim=True)" if s.over_elements else " + ".join(s.parents)
        lines.add(f"{s.variable} = pyro.deterministic({s.site!r}, {total})" if s.site else f"{s.variable} = {total}")
    elif isinstance(s, End):
        lines.add(f"done = done | ({s.variable} == 0)")
    else:
        render_barrier(lines, s, program.ends)


def render_barrier(lines: Lines, s: Barrier, ends: bool) -> None:
    names = [*(["done"] if ends else []), *s.variables]
    if s.form == OBJECT:
        lines.add(f"state = barrier(State({', '.join(names if ends else ['torch.zeros((), dtype=torch.bool)', *names])}))")
        if ends:
            lines.add("done = state.done")
        lines.add(f"{', '.join(s.variables)}{',' if len(s.variables) == 1 else ''} = state.variables")
    elif s.form == DICT:
        lines.add(f"state = barrier({{{', '.join(f'{name!r}: {name}' for name in names)}}})")
        for name in names:
            lines.add(f"{name} = state[{name!r}]")
    elif s.form == NESTED:
        lines.add(f"state = barrier(({names[0]}, {{'rest': [{', '.join(names[1:])}], 'time': 0}}))")
        lines.add(f"{names[0]} = state[0]")
        if names[1:]:
            lines.add(f"{', '.join(names[1:])}{',' if len(names) == 2 else ''} = state[1]['rest']")
    else:
        opening, closing = ("[", "]") if s.form == LIST else ("(", ",)")
        lines.add(f"{', '.join(names)}{',' if len(names) == 1 else ''} = barrier({opening}{', '.join(names)}{closing})")


# Gaussian programs -----------------------------------------------------------------------------------------------------------------------


def gaussian_code(program: GaussianProgram) -> str:
    lines = Lines()
    lines.text.append(HEADER)

    def number(values: tuple[float, ...]) -> str:
        return f"torch.tensor({literal(values)})" if program.problems else repr(values[0])

    lines.add("")
    lines.add("def model():")
    lines.depth += 1
    lines.add("z = torch.zeros(())")
    prior, log = ("LogNormal", ".log()") if program.theta_positive else ("Normal", "")
    theta = f'theta = pyro.sample("theta", dist.{prior}(torch.tensor(0.0), 1.0)){log}'
    if program.theta and program.theta_shared:
        lines.add(theta)
    with lines.block(*([f'pyro.plate("problems", {program.problems}, dim=-1)'] if program.problems else [])):
        if program.theta and not program.theta_shared:
            lines.add(theta)
        names = []
        for t, step in enumerate(program.steps):
            mean = f"{number(step.a)} * z + {number(step.c)}" + (f" + {number(step.b)} * theta" if program.theta else "")
            lines.add(f"z = pyro.sample('z_{t}', dist.Normal({mean}, {number(step.sd)}))")
            names.append(f"z_{t}")
            if step.scale:
                with lines.block(*([f"poutine.scale(scale={step.scale})"] if step.scale != 1 else [])):
                    lines.add(
                        f"pyro.sample('y_{t}', dist.Normal({number(step.h)} * z, {number(step.noise)}), obs=torch.tensor("
                        f"{literal(step.y if program.problems else step.y[0])}))"
                    )
            if (t + 1) % program.every == 0:
                render_barrier(lines, Barrier(("z", *(["theta"] if program.theta else [])), step.form), False)
        lines.add("return {'z': z}")
    lines.depth = 0
    if program.proposals:
        each = ", ".join(f"{site!r}: dist.Normal(torch.tensor({mean}), {sd})" for site, (mean, sd) in program.proposals.items())
        lines.add("")
        lines.add("")
        lines.add(f"proposals = {{{each}}}")
    return "\n".join(lines.text) + "\n"
