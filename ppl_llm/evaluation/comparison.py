"""Two runs side by side, on the problems and seeds that both have."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import figures
from .aggregators import multi_temperature_vote
from .diagnostics import labelled
from .intervals import Interval, bootstrap, proportion
from .metrics import Table as Numbers
from .metrics import out_of
from .page import Plot, Rows, Section, Table, page
from .records import differences
from .report import DIFFERENCES, INTERVALS, RATIOS, coverage_section, curve_words, diagnostics, save, size, verifier_section
from .results import Results
from .tables import accuracy_cell, all_budgets, cell, interval, signed


class Comparison:
    """Two runs, restricted to what both have.

    :param str names: of the runs, in order.
    :raises ValueError: if they share no problems or no seeds, or a problem has another right answer in the other run.
    """

    def __init__(self, first: Results, second: Results, names: tuple[str, str] = ("first", "second")) -> None:
        if names[0] == names[1]:
            names = f"{names[0]} (1)", f"{names[1]} (2)"
        problems = [problem for problem in first.problems if problem in set(second.problems)]
        seeds = [seed for seed in first.seeds if seed in second.seeds]
        if not problems:
            raise _nothing_shared("problems", names, first.problems, second.problems)
        if not seeds:
            raise _nothing_shared("seeds", names, first.seeds, second.seeds)
        other = [problem for problem in problems if first.gold[problem] != second.gold[problem]]
        if other:
            golds = f"{first.gold[other[0]]!r} and {second.gold[other[0]]!r}"
            raise ValueError(
                f"the problem {other[0]!r} has different right answers in the two runs, {golds}: they are not on the same data"
            )
        self.names, self.changed = names, differences(first.configuration, second.configuration)
        self.first, self.second = first.restricted(problems, seeds), second.restricted(problems, seeds)
        self.left_out = {name: len(run.problems) - len(problems) for name, run in zip(names, (first, second), strict=True)}

    @classmethod
    def read(cls, first: str | Path, second: str | Path) -> Comparison:
        """Of the runs in two folders.

        :raises FileNotFoundError: if a folder holds no records.
        """
        folders = Path(first), Path(second)
        one, two = (folder.resolve().name for folder in folders)
        return cls(Results.read(folders[0]), Results.read(folders[1]), (one, two))

    @property
    def runs(self) -> dict[str, Results]:
        """By name."""
        return dict(zip(self.names, (self.first, self.second), strict=True))

    @property
    def methods(self) -> list[str]:
        """That both runs have."""
        return [method for method in self.first.methods if method in self.second.methods]

    def difference(self, method: str, budget: int) -> Interval:
        """Accuracy in the second run minus that in the first, paired by problem and seed; nan where one run lacks it."""
        return bootstrap(self.second.table(method, budget) - self.first.table(method, budget))

    def setting_rows(self) -> Rows:
        """What differs in the configurations."""
        return [["setting", *self.names], *([name, json.dumps(a), json.dumps(b)] for name, (a, b) in self.changed.items())]

    def difference_rows(self) -> Rows:
        """Method by budget: the accuracy of each run and the difference."""
        budgets = [b for b in all_budgets(self.first) if b in all_budgets(self.second)]
        rows = [["accuracy", *map(str, budgets)]]
        for method in self.methods:
            for name, run in self.runs.items():
                rows.append([f"{method}, {name}", *(accuracy_cell(run, method, budget) for budget in budgets)])
            rows.append([f"{method}, difference", *(self._difference_cell(method, budget) for budget in budgets)])
        return rows

    def ratio_rows(self) -> Rows:
        """Method by method: the budget that the first run needs for the accuracy that the second has."""
        one, two = self.names
        rows = [["method", f"budget of {one} / budget of {two}"]]
        for method in self.methods:
            missing = [f"{name}: {text}" for name, run in self.runs.items() if (text := run.least_evaluated(method))]
            rows.append([labelled(method, ", ".join(missing)), str(self.second.scaling_ratio(method, method, self.first))])
        return rows

    def temperature_rows(self) -> Rows:
        """A vote across two temperatures, and the majority votes within each, at the same number of samples."""
        runs = [self.first, self.second]
        budgets = [b for b in all_budgets(self.first) if not np.isnan(across_temperatures(runs, b)).all()]
        rows = [["vote", *map(str, budgets)]]
        for name, run in self.runs.items():
            label = labelled(f"majority, {name}", run.sampled())
            rows.append([label, *(interval(proportion(run.offline("majority", budget))) for budget in budgets)])
        label = labelled("multi-temperature", out_of(set(self.first.samples) & set(self.second.samples), self.first.num_problems))
        return [*rows, [label, *(interval(proportion(across_temperatures(runs, budget))) for budget in budgets)]]

    def _difference_cell(self, method: str, budget: int) -> str:
        both = [set(run.by_key.get((method, budget), ())) for run in self.runs.values()]
        return cell(signed(self.difference(method, budget)), out_of(both[0] & both[1], self.first.num_problems))

    def sections(self) -> list[Section]:
        """Of the page."""
        runs = list(self.runs.items())
        caption = "Settings in which the runs differ." if self.changed else "The runs have the same settings."
        words = " ".join(f"{name}: {curve_words(run)}" for name, run in runs)
        both = Plot("accuracy-of-both", f"Accuracy against completions; dashes are {self.names[1]}", words, figures.scaling(self.runs))
        found = [
            Section("What differs", self._shared(), [Table(caption, self.setting_rows(), words=True)]),
            Section("Accuracy", "", [both]),
        ]
        if self.methods:
            one, two = self.names
            note = f"Differences are {two} minus {one}, paired by problem and seed, with {DIFFERENCES}; both resampled together."
            found.append(Section("Paired differences", note, [Table("Methods that both runs have.", self.difference_rows())]))
            found.append(
                Section("Ratio of budgets at equal accuracy", "", [Table(f"Above 1, {two} is ahead; {RATIOS}.", self.ratio_rows())])
            )
        side = [self._plot(name, run, i) for i, (name, run) in enumerate(runs)]
        found.append(Section("Curves side by side", "", [[plot] for plot in side] if len(self.first.methods) > 6 else [side]))
        if self.first.samples and self.second.samples:
            if self.first.configuration.get("temperature") != self.second.configuration.get("temperature"):
                note = "Half of the samples of each run: a majority within each temperature, then between the winners."
                found.append(Section("Multi-temperature vote", note, [Table(f"With {INTERVALS}.", self.temperature_rows())]))
            for make in (coverage_section, verifier_section):
                found += [_named(make(run, f"{'ab'[i]}-"), name) for i, (name, run) in enumerate(runs)]
        statements = [s._replace(name=f"{s.name}, {name}") for name, run in runs for s in diagnostics.posterior_statements(run)]
        if statements:
            figure = diagnostics.reliability_diagram(statements, "posterior probability of the answer")
            title = "Calibration of the posterior"
            plot = Plot("calibration-of-both", title, "On the diagonal a posterior is calibrated; the table has the scores.", figure)
            head, *rows = [diagnostics.CALIBRATION_HEAD, *(s.row() for s in statements)]
            found.append(Section(title, "", [plot, Table("At the largest budget.", [head, *rows])]))
        return found

    def tables(self) -> list[tuple[str, Rows]]:
        """For a terminal: what differs, and by how much."""
        one, two = self.names
        return [
            ("Settings in which the runs differ", self.setting_rows()),
            (f"Accuracy of both runs, with {INTERVALS}; {two} minus {one} paired, with {DIFFERENCES}", self.difference_rows()),
            (f"How many times the budget {one} needs for the accuracy of {two}, with {RATIOS}", self.ratio_rows()),
        ]

    def write(self, folder: str | Path) -> Path:
        """Write a page, ``comparison-with-<second>.html``, into a folder.

        :returns: its path.
        :raises ImportError: without matplotlib, naming the extra.
        :raises OSError: if the folder cannot be written to.
        """
        summary = " ".join(f"{name}: {size(run)}" for name, run in self.runs.items())
        text = page(" against ".join(self.names), summary, self.sections())
        other = re.sub(r"[^\w.-]+", "-", self.names[1])
        return save(Path(folder) / f"comparison-with-{other}.html", text, [])

    def _plot(self, name: str, run: Results, i: int) -> Plot:
        return Plot(f"{'ab'[i]}-accuracy", f"Accuracy of {name}", curve_words(run), figures.scaling(run))

    def _shared(self) -> str:
        shared = f"{len(self.first.problems)} problems and {len(self.first.seeds)} seeds are in both runs"
        left = ", ".join(f"{count} of {name}" for name, count in self.left_out.items() if count)
        return f"{shared}; left out: {left}." if left else f"{shared}."


def across_temperatures(runs: Sequence[Results], budget: int) -> Numbers:
    """``[problems, seeds]`` of the first run: whether a majority vote in each run's temperature, and then between the winners, is right,
    with the same share of the budget from each run; nan where the budget cannot be shared or a run has not as many samples.

    :param runs: on the same problems, each at its own temperature.
    """
    share, rest = divmod(budget, len(runs))

    def cell(problem: str, seed: int) -> float:
        parts = [run.samples.get((problem, seed), [])[:share] for run in runs]
        if rest or any(len(part) < share for part in parts):
            return math.nan
        vote = multi_temperature_vote([candidate for part in parts for candidate in part])
        # With a verifier each run knows the verdicts on its own answers.
        known = (run for run, part in zip(runs, parts, strict=True) if any(c.answer == vote for c in part))
        return float(next(known, runs[0]).is_right(problem, vote))

    return np.array([[cell(problem, seed) for seed in runs[0].seeds] for problem in runs[0].problems])


def _named(section: Section, name: str) -> Section:
    return Section(f"{section.title}: {name}", section.note, section.blocks)


def _nothing_shared(what: str, names: tuple[str, str], first: Sequence[object], second: Sequence[object]) -> ValueError:
    shown = f"{names[0]!r} has {_some(first)} and {names[1]!r} has {_some(second)}"
    return ValueError(f"the runs share no {what}: {shown}; evaluate both on the same ones")


def _some(values: Sequence[object]) -> str:
    shown = ", ".join(map(repr, values[:3]))
    return shown if len(values) <= 3 else f"{shown} and {len(values) - 3} more"
