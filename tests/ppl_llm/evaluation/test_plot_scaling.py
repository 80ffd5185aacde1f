"""``Results.plot_scaling`` draws the accuracies of the tables."""

from __future__ import annotations

import pytest

from ppl_llm.evaluation.drawing import COLOURS
from ppl_llm.evaluation.figures import scaling
from ppl_llm.evaluation.results import Results
from tests.helpers.runs import results


@pytest.mark.parametrize("against", ["budget", "tokens_sampled"])
def test_lines_are_the_accuracies(against: str) -> None:
    found = results()
    (axes,) = found.plot_scaling(against).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == found.methods
    for method, line in lines.items():
        budgets = found.budgets(method)
        assert list(line.get_ydata()) == pytest.approx([found.accuracy(method, budget).value for budget in budgets])
        places = budgets if against == "budget" else [10.0 * budget for budget in budgets]
        assert list(line.get_xdata()) == pytest.approx(places, rel=0.05)


def test_unknown_cost() -> None:
    with pytest.raises(ValueError, match=r"unknown against 'tokens'.*did you mean 'tokens_sampled'.*Known: budget, tokens_sampled"):
        results().plot_scaling("tokens")


def test_more_methods_than_colours_can_be_told_apart() -> None:
    records = [
        {"problem": "p", "method": f"m{i:02d}", "budget": b, "seed": 0, "correct": True, "level": 1, "cost": {}, "gold": "1"}
        for i in range(len(COLOURS) + 3)
        for b in (1, 2)
    ]
    lines = scaling(Results(records)).axes[0].get_lines()
    looks = {(line.get_color(), line.get_marker(), line.get_markerfacecolor(), line.get_linestyle()) for line in lines}
    assert len(looks) == len(lines) == len(COLOURS) + 3
