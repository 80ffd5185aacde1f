"""Random Pyro programs as plain data: statements, what wraps the program, and what is expected of an algorithm on it.

A discrete program is a list of statements that all elements of a plate of problems execute. Its variables are integers; every distribution
and factor is a table indexed by variables before it, so that a program means the same to the renderer (tests/helpers/program_code.py) and
to the oracle (tests/helpers/program_oracle.py), which share nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PROBLEM, ELEMENT, SHARED = "problem", "element", "shared"
"""Where a statement stands: in the plate of problems (if there is one), in the plate of elements inside it, or outside of both."""

NO_MASK, FN_MASK, POUTINE_MASK, PAD = "", "fn.mask", "poutine.mask", "pad"
"""What a statement does for particles that have ended; ``PAD`` draws 0 with probability one, and scores one."""

TUPLE, DICT, NESTED, LIST, OBJECT = "tuple", "dict", "nested", "list", "object"
"""Forms of the state that passes through a barrier; the object has ``reorder`` and ``done``."""


@dataclass(frozen=True)
class Draw:
    """A latent site.

    :ivar str variable: its name in the program.
    :ivar str site: its name as a site.
    :ivar int size: of its support.
    :ivar tuple parents: variables that index the table.
    :ivar table: nested tuples ``[*lead, *parents, size]`` of unnormalised probabilities; ``lead`` are the plates the statement is in.
    """

    variable: str
    site: str
    size: int
    parents: tuple[str, ...]
    table: Any
    where: str = PROBLEM
    mask: str = NO_MASK
    scale: float = 1.0
    hidden: bool = False


@dataclass(frozen=True)
class Score:
    """A factor, or an observed site of which value 1 of 2 is observed.

    :ivar table: ``[*lead, *parents]`` of factors, or ``[*lead, *parents, 2]`` of unnormalised probabilities.
    """

    site: str
    parents: tuple[str, ...]
    table: Any
    observed: bool = False
    where: str = PROBLEM
    mask: str = NO_MASK
    scale: float = 1.0


@dataclass(frozen=True)
class Note:
    """The sum of variables, as a deterministic site or (without a site) as a line of Python; over the elements for an element variable."""

    variable: str
    parents: tuple[str, ...]
    size: int
    site: str = ""
    over_elements: bool = False


@dataclass(frozen=True)
class End:
    """A particle whose variable is 0 has ended."""

    variable: str


@dataclass(frozen=True)
class Barrier:
    """Resampling may happen here; all variables in use pass through."""

    variables: tuple[str, ...]
    form: str = TUPLE


Statement = Draw | Score | Note | End | Barrier


@dataclass(frozen=True)
class Program:
    """A discrete program.

    :ivar int problems: size of the plate of problems; 0 for none.
    :ivar int elements: size of the plate inside a problem; 0 for none.
    :ivar dict condition: ``{site: value}`` given by ``poutine.condition``.
    :ivar dict replay: ``{site: value}`` given by ``poutine.replay``.
    :ivar dict proposals: ``{site: [size]}`` unnormalised probabilities to propose from.
    :ivar int subsample: size of a subsample of the problems; 0 for none.
    :ivar frozenset features: what the generator put in.
    """

    statements: tuple[Statement, ...]
    problems: int = 0
    elements: int = 0
    condition: dict[str, int] = field(default_factory=dict)
    replay: dict[str, int] = field(default_factory=dict)
    proposals: dict[str, tuple[int, ...]] = field(default_factory=dict)
    subsample: int = 0
    features: frozenset[str] = frozenset()

    @property
    def nesting(self) -> int:
        return int(self.problems > 0) + int(self.elements > 0)

    @property
    def draws(self) -> list[Draw]:
        """Latent sites that an algorithm has to infer."""
        return [s for s in self.statements if isinstance(s, Draw) and s.site not in self.condition and s.site not in self.replay]

    @property
    def independent(self) -> bool:
        """Whether the problems are populations of their own."""
        return self.problems > 0 and not any(getattr(s, "where", "") == SHARED for s in self.statements)

    @property
    def ends(self) -> bool:
        return any(isinstance(s, End) for s in self.statements)

    @property
    def masked(self) -> bool:
        """Whether a latent site is masked for some particles."""
        return any(s.mask in (FN_MASK, POUTINE_MASK) for s in self.draws)


@dataclass(frozen=True)
class GaussianStep:
    """``z ~ Normal(a z_before + b theta + c, sd)``, then ``y ~ Normal(h z, noise)`` observed; one number a problem each.

    :ivar float scale: of the observation; 0 leaves it out.
    """

    a: tuple[float, ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    sd: tuple[float, ...]
    h: tuple[float, ...]
    noise: tuple[float, ...]
    y: tuple[float, ...]
    scale: float = 1.0
    form: str = TUPLE


@dataclass(frozen=True)
class GaussianProgram:
    """A linear Gaussian chain with a parameter shared by all steps (of each problem, or of all problems).

    :ivar bool theta: whether there is a parameter, called ``theta``.
    :ivar bool theta_shared: whether it is drawn before the plate.
    :ivar bool theta_positive: whether the site is the exponential of what the steps use.
    :ivar int every: barriers after every, or every second, step.
    :ivar dict proposals: ``{site: (mean, sd)}``.
    """

    steps: tuple[GaussianStep, ...]
    theta: bool = False
    theta_shared: bool = False
    theta_positive: bool = False
    problems: int = 0
    every: int = 1
    proposals: dict[str, tuple[float, float]] = field(default_factory=dict)
    features: frozenset[str] = frozenset()

    @property
    def nesting(self) -> int:
        return int(self.problems > 0)

    @property
    def independent(self) -> bool:
        return self.problems > 0 and not (self.theta and self.theta_shared)


NONE, LOCAL, GLOBAL = "", "local", "global"
"""Where the constraint of a program of tokens is: nowhere, in its steps, or in its proposals, as a part of the target."""


@dataclass(frozen=True)
class TokenProgram:
    """Steps of a language model that is a table of the next token by the last one, under a constraint that is a table, too.

    A step has ``tokens`` tokens, or ends with token 1 if ``delimiter``, or with the end of the text, the last token of all. After each
    comes a factor of the last token written; ``factors[-1]`` where a step wrote none.

    :ivar tuple odds: ``[V][V]`` unnormalised probabilities.
    :ivar tuple arcs: ``[S][V]`` the constraint's next state, -1 for none; state 0 is the first.
    :ivar tuple accepting: ``[S]`` whether the text may end.
    :ivar tuple factors: ``[V + 1]``.
    :ivar tuple prompts: the token that each problem begins with; one where there is no plate.
    :ivar str constrained: ``NONE``, ``LOCAL`` or ``GLOBAL``.
    :ivar float temperature: of the language model.
    :ivar float proposed: temperature that steps are proposed at, with all of the constraint; 0 for the model's own.
    """

    odds: tuple[tuple[int, ...], ...]
    arcs: tuple[tuple[int, ...], ...]
    accepting: tuple[bool, ...]
    factors: tuple[float, ...]
    steps: int = 1
    tokens: int = 1
    delimiter: bool = False
    prompts: tuple[int, ...] = (0,)
    problems: int = 0
    constrained: str = NONE
    temperature: float = 1.0
    proposed: float = 0.0
    features: frozenset[str] = frozenset()

    @property
    def nesting(self) -> int:
        return int(self.problems > 0)

    @property
    def independent(self) -> bool:
        return self.problems > 0

    @property
    def proposals(self) -> bool:
        """Whether there are proposals to run with."""
        return self.constrained == GLOBAL or self.proposed > 0


AnyProgram = Program | GaussianProgram | TokenProgram


def lookup(table: Any, *index: int) -> Any:
    for i in index:
        table = table[i]
    return table
