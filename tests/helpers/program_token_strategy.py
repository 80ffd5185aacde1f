"""Random programs of tokens under automata."""

from __future__ import annotations

from tests.helpers.program_ast import GLOBAL, LOCAL, NONE, TokenProgram
from tests.helpers.program_gaussian_strategy import Choose

FACTORS = (1.0, 0.5, 2.0, 0.2)
MOST_TEXTS = 1000


def generate_tokens(choose: Choose, features: frozenset[str]) -> TokenProgram:
    used = {"tokens"}
    kinds = [NONE, *(kind for kind in (LOCAL, GLOBAL, GLOBAL) if f"{kind} constraint" in features)]
    constrained = kinds[choose(len(kinds))]
    used |= {f"{constrained} constraint"} - {" constraint"}
    size, states, steps = 3 + (choose(3) == 2), 2 + choose(2), 1 + choose(3)
    tokens = 1 + choose(2)
    while size ** (steps * tokens) > MOST_TEXTS:
        steps -= 1
    delimiter = tokens > 1 and "tokens that end steps" in features and bool(choose(2))
    problems = 1 + choose(2) if "problems" in features and choose(2) else 0
    temperature = (1.0, 0.5, 2.0)[choose(3)] if "tokens at a temperature" in features else 1.0
    proposed = (0.0, 1.5)[choose(2)] if "proposals" in features else 0.0
    used |= {name for name, given in (("tokens that end steps", delimiter), ("problems", problems)) if given}
    used |= {name for name, given in (("tokens at a temperature", temperature != 1.0), ("proposals", proposed)) if given}
    # No end of the text in the table; "a" leads from the first state to the last one, where a text may end, so that there are texts.
    arcs = [[choose(states + 1) - 1 for _ in range(size - 1)] + [-1] for _ in range(states)]
    arcs[0][0] = states - 1
    return TokenProgram(
        odds=tuple(tuple(1 + choose(5) for _ in range(size)) for _ in range(size)),
        arcs=tuple(map(tuple, arcs)),
        accepting=(*(bool(choose(2)) for _ in range(states - 1)), True),
        factors=tuple(FACTORS[choose(len(FACTORS))] for _ in range(size + 1)),
        steps=steps,
        tokens=tokens,
        delimiter=delimiter,
        prompts=tuple(choose(size - 1) for _ in range(max(problems, 1))),
        problems=problems,
        constrained=constrained,
        temperature=temperature,
        proposed=proposed,
        features=frozenset(used),
    )
