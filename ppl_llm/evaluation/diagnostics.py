"""How far scores and posteriors can be trusted: tables and figures from the samples of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..methods import BUDGETED
from .aggregators import Candidate, log_score
from .drawing import figure, legend_beside, powers_of_two, style
from .intervals import Interval, proportion
from .metrics import (
    PowerLaw,
    Table,
    auroc,
    best_of_k_chances,
    brier,
    calibration_error,
    fit_coverage,
    majority_at_k,
    out_of,
    reliability,
)
from .results import SCORES, Results
from .risk import all_at_k, risk_coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THRESHOLD = 0.5
"""Score from which the reward model counts as accepting a solution."""


class Stated(NamedTuple):
    """Probabilities that someone states, and what came of them.

    :ivar str missing: ``n of N problems``, where some are missing.
    """

    name: str
    probabilities: list[float]
    labels: list[bool]
    missing: str = ""

    def row(self) -> list[str]:
        """Name, number, Brier score, expected calibration error, AUROC, area under the risk-coverage curve."""
        error = calibration_error(reliability(self.probabilities, self.labels))
        ranked = auroc(self.probabilities, self.labels)
        numbers = brier(self.probabilities, self.labels), error, ranked, risk_coverage(self.probabilities, self.labels).area
        return [labelled(self.name, self.missing), f"{len(self.labels):,}", *("" if math.isnan(x) else f"{x:.3f}" for x in numbers)]


def labelled(name: str, missing: str) -> str:
    """A label of a table, with what is missing behind it."""
    return f"{name} ({missing})" if missing else name


CALIBRATION_HEAD = ["stated by", "solutions", "Brier", "calibration error", "AUROC", "AURC"]


def reward_statements(results: Results) -> list[Stated]:
    """The scores of all independent samples, by each aggregation, as probabilities of a right answer."""
    pools = [(cell, pool, results.right(cell[0], pool)) for cell, pool in results.samples.items()]
    found = []
    for aggregation in SCORES:
        known = [(cell, pool, hits) for cell, pool, hits in pools if scored(pool, aggregation)]
        rows = [row for _, pool, hits in known for row in zip(pool, hits, strict=True)]
        if rows:
            stated = [math.exp(log_score(c, aggregation)) for c, _ in rows]
            missing = out_of((cell for cell, _, _ in known), results.num_problems)
            found.append(Stated(aggregation, stated, [right for _, right in rows], missing))
    return found


def posterior_statements(results: Results) -> list[Stated]:
    """The posterior probability of the answer given, every method that has a posterior at its largest budget."""
    found = []
    for method in with_posterior(results):
        key = method, results.budgets(method)[-1]
        cells = results.by_key[key].values()
        stated = [(r["answers"].get(str(r["answer"]), 0.0), bool(r["correct"])) for r in cells if r["answer"] is not None]
        if stated:
            found.append(Stated(method, [p for p, _ in stated], [right for _, right in stated], results.evaluated(key)))
    return found


def with_posterior(results: Results) -> list[str]:
    """Methods whose answers carry a posterior probability."""
    return [m for m in results.methods if m in BUDGETED and BUDGETED[m].votes_by_weight]


def scored(pool: Sequence[Candidate], aggregation: str) -> bool:
    """Whether all candidates have this score."""
    return all(c.whole_log_odds is not None if aggregation == "model" else bool(c.step_log_odds) for c in pool)


def reliability_diagram(statements: Sequence[Stated], label: str) -> Figure:
    """How often what is stated with a probability comes true; a calibrated source lies on the diagonal. The area of a mark grows with the
    number of solutions behind it.

    :param str label: what is stated.
    """
    drawn, axes = figure(6.4, 4.2)
    axes.plot([0, 1], [0, 1], color="#808080", linewidth=0.8)
    for i, stated in enumerate(statements):
        bins = reliability(stated.probabilities, stated.labels, 10)
        look = style(i)
        places = [b.confidence for b in bins], [b.frequency for b in bins]
        axes.plot(*places, color=look["color"], linewidth=1.2)
        axes.plot([], [], label=stated.name, **look)
        sizes = [8 + 200 * b.size / len(stated.labels) for b in bins]  # bars of few solutions say little
        axes.scatter(*places, s=sizes, color=look["color"], marker=look["marker"], linewidths=0)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(label)
    axes.set_ylabel("how often it is right")
    legend_beside(drawn)
    return drawn


@dataclass(frozen=True)
class Selection:
    """What the reward model picks from k samples.

    :ivar Interval wrong: share of wrong solutions among those picked.
    :ivar Interval accepted: share of picked solutions that it accepts.
    :ivar Interval false_positive: share of wrong ones among the accepted.
    """

    wrong: Interval
    accepted: Interval
    false_positive: Interval


def selections(results: Results, aggregation: str, ks: Sequence[int]) -> list[Selection]:
    """False positives as the number of samples grows (Inference Scaling fLaws, arXiv:2411.17501), averaged over all subsets of k samples.

    A sample without an answer is picked only where there is nothing else, and is wrong.
    """

    def picked(k: int) -> Table:
        def measure(problem: str, pool: Sequence[Candidate]) -> Sequence[float]:
            if len(pool) < k or not scored(pool, aggregation):
                return [math.nan] * 3
            scores = np.array([log_score(c, aggregation) for c in pool])
            wrong = ~np.array(results.right(problem, pool))
            chances = best_of_k_chances(np.where([c.answer is not None for c in pool], scores, -math.inf), k)
            accepted = chances * (scores >= math.log(THRESHOLD))
            return [float(chances @ wrong), float(accepted.sum()), float(accepted @ wrong)]

        return results.over_samples(measure, 3)

    found = []
    for k in ks:
        table = picked(k)
        wrong, accepted, both = np.moveaxis(table, -1, 0)
        found.append(Selection(proportion(wrong), proportion(accepted), proportion(both, accepted)))
    return found


def false_positives(found: dict[str, list[Selection]], ks: list[int]) -> Figure:
    """Share of wrong solutions among the accepted and among all that were picked, against the number of samples."""
    drawn, axes = figure()
    for i, (name, rows) in enumerate(found.items()):
        axes.plot(ks, [row.false_positive.value for row in rows], label=f"{name}, accepted", **style(i))
        axes.fill_between(
            ks,
            [r.false_positive.low for r in rows],
            [r.false_positive.high for r in rows],
            color=style(i)["color"],
            alpha=0.15,
            linewidth=0,
        )
        axes.plot(ks, [row.wrong.value for row in rows], label=f"{name}, all picked", **{**style(i), "linestyle": "--", "marker": ""})
    powers_of_two(axes, ks)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("samples that the reward model picks from")
    axes.set_ylabel("share that is wrong")
    legend_beside(drawn)
    return drawn


@dataclass(frozen=True)
class Coverage:
    """pass@k, maj@k and all@k of the independent samples.

    :ivar PowerLaw power_law: fitted to pass@k, ``None`` where it has no two values between 0 and 1.
    :ivar float misfit: root mean squared difference between pass@k and the power law.
    :ivar str missing: ``n of N problems``, where some have no samples.
    """

    ks: list[int]
    passed: list[Interval]
    voted: list[Interval]
    power_law: PowerLaw | None
    misfit: float
    missing: str = ""
    every: tuple[Interval, ...] = ()

    @classmethod
    def of(cls, results: Results) -> Coverage:
        """At powers of two, up to the most samples that every pool has."""
        ks = counts(results)

        def vote(k: int) -> Table:
            return results.over_samples(lambda problem, pool: majority_at_k(pool, partial(results.is_right, problem), k))

        def every(k: int) -> Table:
            return results.over_samples(
                lambda problem, pool: all_at_k(len(pool), sum(results.right(problem, pool)), k) if len(pool) >= k else math.nan
            )

        passed = [proportion(results.pass_at(k)) for k in ks]
        whole = tuple(proportion(every(k)) for k in ks)
        voted = [proportion(vote(k)) for k in ks]
        values = [interval.value for interval in passed]
        try:
            power_law = fit_coverage(ks, values)
        except ValueError:
            return cls(ks, passed, voted, None, math.nan, results.sampled(), whole)
        misfit = math.sqrt(np.nanmean((power_law(ks) - np.array(values)) ** 2))
        return cls(ks, passed, voted, power_law, misfit, results.sampled(), whole)


def counts(results: Results) -> list[int]:
    """Powers of two up to the number of samples in the smallest pool."""
    least = min(len(pool) for pool in results.samples.values())
    return [2**i for i in range(int(math.log2(least)) + 1)]
