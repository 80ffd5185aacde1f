"""Whether to solve or to verify: S solutions with V verdicts on each, at equal computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .drawing import COLOURS, figure, legend_beside, style
from .intervals import Interval
from .metrics import Accuracies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOLUTIONS_EXPONENT = 0.57
VERDICTS_EXPONENT = 0.39
"""S in proportion to C^.57 and V to C^.39 (Singhi et al., *When To Solve, When To Verify*, arXiv:2504.01005)."""


class Allocation(NamedTuple):
    """A use of computation.

    :ivar int solutions: S, of each problem.
    :ivar int verdicts: V, on each solution.
    :ivar float compute: mean cost of a problem.
    :ivar Interval accuracy: with its interval.
    :ivar bool best: whether nothing that costs as much or less is more accurate.
    """

    solutions: int
    verdicts: int
    compute: float
    accuracy: Interval
    best: bool = False


def allocations(runs: Mapping[int, Accuracies], method: str, counter: str = "tokens_sampled") -> list[Allocation]:
    """Every number of solutions with every number of verdicts, the cheapest first.

    :param runs: by number of verdicts V: runs of ``evaluate`` on the same problems with a judge of so many thoughts
        (``JudgeReward(lm, thoughts=V)``), or with no reward at V = 0.
    :param str method: whose budget is S.
    :param str counter: of the cost. That of tokens counts solutions and chains of verdicts, where one process writes both.
    :raises ValueError: without runs, for a method that a run lacks, or a counter that no record has.
    """
    if not runs:
        raise ValueError("there are no runs: give evaluate's results by number of verdicts, such as {1: Results.read('one')}")
    found = []
    for verdicts, results in runs.items():
        if method not in results.methods:
            raise ValueError(f"the run with {verdicts} verdicts has no method {method!r}; it has {', '.join(results.methods)}")
        for budget in results.budgets(method):
            compute = results.mean_cost(method, budget, counter)
            if np.isnan(compute):
                raise ValueError(f"no record of the run with {verdicts} verdicts counts {counter!r}")
            found.append(Allocation(budget, verdicts, compute, results.accuracy(method, budget)))
    found.sort(key=lambda each: (each.compute, -each.accuracy.value))
    return _marked(found)


def _marked(found: Sequence[Allocation]) -> list[Allocation]:
    marked, highest = [], -1.0
    for each in found:
        marked.append(each._replace(best=each.accuracy.value > highest))
        highest = max(highest, each.accuracy.value)
    return marked


def reference(compute: ArrayLike, at: Allocation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Solutions and verdicts that the published exponents give at other computations, through one allocation.

    :param Allocation at: which the lines pass through.
    """
    ratio = np.asarray(compute, dtype=np.float64) / at.compute
    return at.solutions * ratio**SOLUTIONS_EXPONENT, at.verdicts * ratio**VERDICTS_EXPONENT


def frontier(found: Sequence[Allocation], counter: str = "tokens_sampled") -> Figure:
    """Accuracy against computation, a line for each number of verdicts, with the frontier; below it the solutions and verdicts on the
    frontier, with the published exponents through its first allocation that has both."""
    drawn, axes = figure()
    for i, verdicts in enumerate(sorted({each.verdicts for each in found})):
        own = [each for each in found if each.verdicts == verdicts]
        label = f"{verdicts} verdict{'' if verdicts == 1 else 's'}"
        axes.plot([each.compute for each in own], [each.accuracy.value for each in own], label=label, **style(i))
    on = [each for each in found if each.best]
    axes.step([e.compute for e in on], [e.accuracy.value for e in on], where="post", color="#808080", linewidth=1, label="frontier")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(f"{counter.replace('_', ' ')} per problem")
    axes.set_ylabel("accuracy")
    anchor = next((each for each in on if each.verdicts), None)
    if anchor is not None:
        below = axes.twinx()
        fine = np.geomspace(anchor.compute, max(each.compute for each in found), 50)
        solutions, verdicts_line = reference(fine, anchor)
        below.plot(fine, solutions, color=COLOURS[0], linestyle=":", label=f"S in proportion to C^{SOLUTIONS_EXPONENT}")
        below.plot(fine, verdicts_line, color=COLOURS[1], linestyle=":", label=f"V in proportion to C^{VERDICTS_EXPONENT}")
        below.set_yscale("log", base=2)
        below.set_ylabel("solutions, verdicts")
    legend_beside(drawn)
    return drawn
