"""``Results.plot_scaling`` draws the accuracies of the tables."""

from __future__ import annotations

import pytest

from tests.evaluation.test_results import results


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
