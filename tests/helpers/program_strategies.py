"""Random structures: a program from a sequence of choices, each an integer below a bound, of which 0 is the simplest.

The same generator serves Hypothesis (:func:`programs`) and a run of many programs (:class:`Choices`), which shrinks by making the sequence
of choices shorter and smaller.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hypothesis import strategies as st

from tests.helpers.program_ast import (
    DICT,
    ELEMENT,
    FN_MASK,
    LIST,
    NESTED,
    NO_MASK,
    OBJECT,
    PAD,
    POUTINE_MASK,
    PROBLEM,
    SHARED,
    TUPLE,
    AnyProgram,
    Barrier,
    Draw,
    End,
    Note,
    Program,
    Score,
    Statement,
)
from tests.helpers.program_features import FEATURES
from tests.helpers.program_gaussian_strategy import Choose, generate_gaussian
from tests.helpers.program_token_strategy import generate_tokens

T = TypeVar("T")

MAX_PATHS = 1500
"""Of the values of one problem's latent sites."""

FACTORS = (1.0, 0.5, 3.0, 0.2, 0.05)
SCALES = (1.0, 0.5, 2.0)


class Choices:
    """A source of choices that remembers them.

    :param recorded: choices to repeat; what comes after them is 0.
    """

    def __init__(self, rng: random.Random | None = None, recorded: Sequence[int] = ()) -> None:
        self.rng, self.recorded = rng, list(recorded)
        self.made: list[int] = []

    def __call__(self, bound: int) -> int:
        if self.rng is not None:
            value = self.rng.randrange(bound)
        else:
            value = min(self.recorded[len(self.made)], bound - 1) if len(self.made) < len(self.recorded) else 0
        self.made.append(value)
        return value


def random_program(seed: int, index: int, features: frozenset[str] = FEATURES) -> tuple[AnyProgram, list[int]]:
    """Program ``index`` of a run, and its choices; no other program of the run is needed for it."""
    choices = Choices(random.Random(f"{seed}/{index}"))
    return generate(choices, features), choices.made


def programs(features: frozenset[str] = FEATURES) -> st.SearchStrategy[AnyProgram]:
    """Programs for ``@given``."""

    @st.composite
    def drawn(draw: Any) -> AnyProgram:
        return generate(lambda bound: draw(st.integers(0, bound - 1)), features)

    return drawn()


def generate(choose: Choose, features: frozenset[str] = FEATURES) -> AnyProgram:
    kind = choose(6) if features & {"gaussian", "tokens"} else 0
    if kind == 5 and "gaussian" in features:
        return generate_gaussian(choose, features)
    if kind == 4 and "tokens" in features:
        return generate_tokens(choose, features)
    return Builder(choose, features).build()


@dataclass
class Builder:
    """A discrete program as it grows."""

    choose: Choose
    features: frozenset[str]

    def __post_init__(self) -> None:
        self.used: set[str] = set()
        self.statements: list[Statement] = []
        self.sizes: dict[str, int] = {}
        self.of_elements: set[str] = set()
        self.paths = 1
        self.ended = False
        self.hidden: set[str] = set()

    def maybe(self, feature: str, one_in: int) -> bool:
        """Whether a feature is put in; it is rarer the larger ``one_in``."""
        if feature not in self.features or self.choose(one_in) != one_in - 1:
            return False
        self.used.add(feature)
        return True

    def one_of(self, values: Sequence[T]) -> T:
        return values[self.choose(len(values))]

    def build(self) -> Program:
        steps, states = 1 + self.choose(4), 2 + self.choose(2)
        self.problems = 1 + self.choose(3) if self.maybe("problems", 2) else 0
        ends = self.ending()
        self.elements = 2 if not ends and steps <= 3 and self.maybe("elements", 5) else 0
        self.mask = ends
        if self.maybe("shared latent", 5):
            self.draw("s", 2, (), where=SHARED)
        if self.maybe("shared factor", 8):
            self.score("bias", self.pick(1), where=SHARED)
        if self.maybe("factor before the first barrier", 4):
            self.score("before", self.pick(1))
        every = 2 if steps > 1 and self.maybe("barriers every second step", 4) else 1
        form = self.form()
        no_last = steps > 1 and self.maybe("no last barrier", 3)
        barriers = 0
        for t in range(steps):
            self.one_step(t, states)
            if (t + 1) % every == 0 and not (no_last and t + 1 == steps):
                self.statements.append(Barrier(tuple(self.sizes), form))
                barriers += 1
        if self.maybe("factor after the last barrier", 4):
            self.score("after", self.pick(2))
        joint = any(getattr(s, "where", "") == SHARED for s in self.statements)
        if self.problems and barriers and not joint and self.maybe("shared factor after resampling", 12):
            self.score("late", (), where=SHARED)
        return self.wrapped()

    def ending(self) -> str:
        forms = {"padded ends": PAD, "fn.mask ends": FN_MASK, "poutine.mask ends": POUTINE_MASK}
        possible = ["", *(name for name in forms if name in self.features)]
        chosen = self.one_of(possible) if self.choose(2) else ""
        if chosen:
            self.used.add(chosen)
        return forms.get(chosen, NO_MASK)

    def form(self) -> str:
        if self.mask == PAD:  # who pads tells the filter which particles have ended
            self.used.add("object state")
            self.maybe("state object without batch_shape", 2)
            return OBJECT
        forms = {"dict state": DICT, "nested state": NESTED, "list state": LIST, "object state": OBJECT}
        chosen = self.one_of(["", *(name for name in forms if name in self.features)])
        self.used |= {chosen} - {""}
        return forms.get(chosen, TUPLE)

    def one_step(self, t: int, states: int) -> None:
        before = [name for name in self.sizes if name.startswith("z_")]
        parents = (before[-1],) if before else ()
        if "s" in self.sizes and self.choose(2):
            parents = (*parents, "s")
        site = "z_0" if t == 1 and self.maybe("reused name", 6) else f"z_{t}"
        self.draw(f"z_{t}", states, parents, site)
        if self.maybe("second latent", 3):
            hidden = self.mask == NO_MASK and self.maybe("block", 3)
            self.draw(f"w_{t}", 2, (f"z_{t}",), hidden=hidden)
        if self.elements and (t == 0 or self.choose(2)):
            self.draw(f"e_{t}", 2, (f"z_{t}",), where=ELEMENT)
            self.score(f"f_{t}", (f"e_{t}",), where=ELEMENT)
            if self.choose(2):
                self.note(f"n_{t}", (f"e_{t}",), "", self.elements + 1, over_elements=True)
        deep = self.maybe("prefix-dependent score", 2)
        self.score(f"g_{t}", self.pick(3) if deep else (f"z_{t}",))
        if f"w_{t}" in self.sizes and self.choose(2):
            self.score(f"h_{t}", (f"w_{t}",))
        if self.maybe("deterministic site", 4):
            plain = [name for name in self.plain() if name != "s"][-2:]
            self.note(f"d_{t}", tuple(plain), f"d_{t}", sum(self.sizes[name] - 1 for name in plain) + 1)
        if self.mask:
            self.statements.append(End(f"z_{t}"))
            self.ended = True

    def plain(self) -> list[str]:
        return [name for name in self.sizes if name not in self.of_elements]

    def pick(self, count: int) -> tuple[str, ...]:
        """Up to so many of the variables so far, the last ones, as parents."""
        return tuple(self.plain()[-count:])

    def draw(self, variable: str, size: int, parents: tuple[str, ...], site: str = "", where: str = PROBLEM, hidden: bool = False) -> None:
        values = size**self.elements if where == ELEMENT else size
        if self.paths * values > MAX_PATHS and variable[0] != "z":
            return
        if self.paths * values > 3 * MAX_PATHS:
            size = 2
        self.paths *= values
        mask = self.mask if self.ended and where == PROBLEM else NO_MASK
        scale = self.one_of(SCALES[1:]) if not hidden and not mask and self.maybe("scaled latent", 10) else 1.0
        table = self.table(where, parents, lambda last: tuple(1 + self.choose(5) for _ in range(size)))
        self.statements.append(Draw(variable, site or variable, size, parents, table, where, mask, scale, hidden))
        self.sizes[variable] = size
        if where == ELEMENT:
            self.of_elements.add(variable)
        if hidden:
            self.hidden.add(variable)

    def score(self, site: str, parents: tuple[str, ...], where: str = PROBLEM) -> None:
        if any(name not in self.sizes for name in parents):
            return
        observed = self.maybe("observed", 3)
        zero = not observed and where == PROBLEM and bool(parents) and self.maybe("zero factor", 5)
        scale = self.one_of(SCALES[1:]) if self.maybe("scaled score", 6) else 1.0
        mask = self.mask if self.ended and where == PROBLEM else NO_MASK

        def entry(last: int) -> Any:
            if observed:
                return (1 + self.choose(5), 1 + self.choose(5))
            return 0.0 if zero and last > 0 and self.choose(3) == 2 else self.one_of(FACTORS)  # a path of zeros is always possible

        self.statements.append(Score(site, parents, self.table(where, parents, entry), observed, where, mask, scale))

    def note(self, variable: str, parents: tuple[str, ...], site: str, size: int, over_elements: bool = False) -> None:
        if any(name not in self.sizes for name in parents) or not parents:
            return
        self.statements.append(Note(variable, parents, size, site, over_elements))
        self.sizes[variable] = size

    def table(self, where: str, parents: tuple[str, ...], entry: Callable[[int], Any]) -> Any:
        lead = [self.problems] if self.problems and where != SHARED else []
        sizes = [*lead, *([self.elements] if where == ELEMENT else []), *(self.sizes[name] for name in parents)]

        def filled(depth: int, last: int) -> Any:
            return entry(last) if depth == len(sizes) else tuple(filled(depth + 1, k) for k in range(sizes[depth]))

        return filled(0, 0)

    def wrapped(self) -> Program:
        draws = [s for s in self.statements if isinstance(s, Draw)]
        plain = [s for s in draws if s.where != ELEMENT and not s.hidden and s.mask == NO_MASK and s.site == s.variable]
        program = Program(tuple(self.statements), self.problems, self.elements)
        if "reused name" in self.used:
            return replace(program, features=frozenset(self.used))
        fixable = len(plain) > 1 and self.mask == NO_MASK and "zero factor" not in self.used
        # A hidden site is in no plate of the particles: its distribution has to have one value for each by its parents.
        hidden_of = {name for s in draws if s.hidden for name in s.parents}
        if fixable and self.maybe("condition", 8) and any(s.variable not in hidden_of for s in plain):
            chosen = self.one_of([s for s in plain if s.variable not in hidden_of])
            program = replace(program, condition={chosen.site: self.choose(chosen.size)})
        elif fixable and self.maybe("replay", 8):
            chosen = self.one_of(plain)
            scaled = chosen.scale == 1.0 or self.maybe("replay of scaled sites", 2)
            if scaled and (chosen.parents or self.maybe("replay of sites without parents", 2)):
                program = replace(program, replay={chosen.site: self.choose(chosen.size)})
        if self.problems > 1 and program.independent and self.maybe("subsample of problems", 8):
            program = replace(program, subsample=self.problems - 1)
        if self.maybe("proposals", 2):
            masked = "proposals of masked sites" in self.features and self.mask in (FN_MASK, POUTINE_MASK)
            allowed = [s for s in program.draws if s.where != ELEMENT and not s.hidden and (s.mask == NO_MASK or masked)]
            chosen_draws = [s for s in allowed if self.choose(3) != 2] or allowed[:1]
            if any(s.mask != NO_MASK for s in chosen_draws):
                self.used.add("proposals of masked sites")
            program = replace(program, proposals={s.site: tuple(1 + self.choose(5) for _ in range(s.size)) for s in chosen_draws})
        return replace(program, features=frozenset(self.used))
