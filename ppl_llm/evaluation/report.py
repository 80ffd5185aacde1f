"""A run's report: tables as text, figures as files, all in one HTML file that opens without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from . import diagnostics, figures
from .page import Plot, Rows, Section, Table, page
from .results import Results
from .tables import (
    accuracy_rows,
    calibration_rows,
    cost_rows,
    coverage_rows,
    difference_rows,
    expected_rows,
    level_rows,
    offline_rows,
    ratio_rows,
    selection_rows,
    step_rows,
    stopped_rows,
)
from .thinking import thinking_sections, thinking_tables
from .work import SHARED

INTERVALS = "95 % Wilson intervals at the effective number of problems"
DIFFERENCES = "95 % bootstrap intervals over problems, seeds averaged within each"
STEPS = "Steps: mean (10 %, 50 % and 90 % quantile); the last column is the mean probability of the solutions that give no answer"
RATIOS = "95 % bootstrap intervals over problems, or one-sided bounds where more than a few draws share no accuracy"

STOPPED = (
    f"against the same method without the rule: tokens saved, and the difference of accuracies, both paired by problem and seed, with "
    f"{DIFFERENCES}"
)


def tables(results: Results) -> list[tuple[str, Rows]]:
    """Titles and tables for a terminal."""
    found = [(f"Accuracy against budget, with {INTERVALS}", accuracy_rows(results))]
    if SHARED in results.methods and len(results.methods) > 1:
        title = f"Paired difference to the same number of independent weighted samples, with {DIFFERENCES}"
        found.append((title, difference_rows(results, SHARED)))
    if len(results.methods) > 1:
        title = f"How many times the budget a baseline (column) needs for the accuracy of a method (row), with {RATIOS}"
        found.append((title, ratio_rows(results)))
    if results.samples:
        found.append((f"Votes recomputed from the independent samples, with {INTERVALS}", offline_rows(results)))
    found.append(("Cost", cost_rows(results)))
    if len(steps := step_rows(results)) > 1:
        found.append((STEPS, steps))
    found += thinking_tables(results)
    if len(stopped := stopped_rows(results)) > 1:
        found.append((f"Budgets really used, {STOPPED}", stopped))
    return found


def write(folder: str | Path, results: Results | None = None) -> Path:
    """Write ``report.html`` and the figures (SVG and PNG) into a run's folder.

    :param Results results: of the folder, where they have been read already.
    :returns: path of the HTML file.
    :raises FileNotFoundError: if the folder holds no records.
    :raises ImportError: without matplotlib, naming the extra.
    :raises OSError: if the folder cannot be written to.
    """
    folder = Path(folder)
    results = results or Results.read(folder)
    found = [*accuracy_sections(results), *diagnostic_sections(results), settings_section(results)]
    return save(folder / "report.html", page(folder.resolve().name, size(results), found), found)


def save(path: Path, text: str, sections: Sequence[Section]) -> Path:
    """The page, and its figures beside it.

    :raises OSError: if they cannot be written.
    """
    try:
        for section in sections:
            for plot in section.plots:
                plot.save(path.parent)
        draft = path.with_suffix(".tmp")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write the report to {str(path)!r}: {error.strerror}; the records are as they were") from error
    return path


def size(results: Results) -> str:
    """How much a run holds."""
    found = len(results.problems)
    problems = f"{found} problems" if found == results.num_problems else f"{found} of {results.num_problems} problems"
    records = [record for cells in results.by_key.values() for record in cells.values()]
    dead = sum(bool(record.get("dead")) for record in records)
    lost = f" In {dead} of {len(records)} runs every candidate had weight zero: no answer, and counted as wrong." if dead else ""
    return f"{problems}, {len(results.seeds)} seeds, {len(results.methods)} methods.{lost}"


def accuracy_sections(results: Results) -> list[Section]:
    """Accuracy against budget, tokens and level, and what it costs."""
    words = curve_words(results)
    accuracy: list[Table | Plot | list[Plot]] = [
        Plot("accuracy-against-completions", "Accuracy against completions", words, figures.scaling(results)),
        Table(f"Accuracy by budget (completions per problem), with {INTERVALS}.", accuracy_rows(results)),
    ]
    if SHARED in results.methods and len(results.methods) > 1:
        caption = f"Accuracy minus that of as many independent weighted samples, paired by problem and seed, with {DIFFERENCES}."
        accuracy.append(Table(caption, difference_rows(results, SHARED)))
    found = [Section("Accuracy", "", accuracy)]
    if len(results.methods) > 1:
        note = (
            "How many times the budget the method of the column needs for the accuracy of the method of the row; above 1 the row is ahead."
        )
        found.append(Section("Scaling-rate ratio", note, [Table(f"Ratio of budgets, with {RATIOS}.", ratio_rows(results))]))
    costs = [*_token_plot(results), Table("Mean cost per problem at the largest budget.", cost_rows(results))]
    if len(stopped := stopped_rows(results)) > 1:
        costs.append(Table(f"Budgets really used, {STOPPED}.", stopped))
    found.append(Section("Cost", "", costs))
    if len(steps := step_rows(results)) > 1:
        found.append(Section("Steps", "", [Table(f"{STEPS}.", steps)]))
    found += thinking_sections(results)
    if len(set(results.levels.values())) > 1:
        plot = Plot(
            "accuracy-by-level",
            "Accuracy by level",
            "Every method at its largest budget; the table has the numbers.",
            figures.levels(results),
        )
        found.append(
            Section("Levels", "", [plot, Table(f"Accuracy by level (number of problems), with {INTERVALS}.", level_rows(results))])
        )
    return found


def diagnostic_sections(results: Results) -> list[Section]:
    """Coverage, votes, false positives, calibration and effective sample sizes."""
    found = [coverage_section(results), _vote_section(results), verifier_section(results)] if results.samples else []
    expected = expected_rows(results)
    if len(expected) > 1:
        note = "The probability that the posterior gives to the right answer: the accuracy of one draw, without a vote."
        found.append(Section("Expected accuracy under the posterior", note, [Table(f"With {INTERVALS}.", expected)]))
    statements = diagnostics.posterior_statements(results)
    if statements:
        note = "The posterior probability of the answer given, against how often it is right. On the diagonal it is calibrated."
        figure = diagnostics.reliability_diagram(statements, "posterior probability of the answer")
        plot = Plot("calibration-of-the-posterior", "Reliability of the posterior", _calibration_words(statements), figure)
        found.append(Section("Calibration of the posterior", note, [plot, Table("At the largest budget.", calibration_rows(statements))]))
    if traces := figures.with_ess(results):
        words = f"Filters: {', '.join(method for method, _ in traces)}. Lines are means over problems and seeds, bands hold eight of ten."
        plot = Plot("effective-sample-size", "Effective sample size at each step", words, figures.effective_sample_size(results))
        found.append(Section("Effective sample size", "", [plot]))
    return found


def coverage_section(results: Results, prefix: str = "") -> Section:
    """pass@k and maj@k with the fitted power law.

    :param str prefix: of the name of the figure.
    """
    coverage = diagnostics.Coverage.of(results)
    values = [interval.value for interval in coverage.passed]
    words = f"pass@k goes from {values[0]:.2f} at 1 to {values[-1]:.2f} at {coverage.ks[-1]}"
    fit = "no power law could be fitted"
    if coverage.power_law is not None:
        power_law = coverage.power_law
        fit = f"fitted power law exp(-{power_law.scale:.3f} k^-{power_law.exponent:.3f}), root mean squared misfit {coverage.misfit:.4f}"
    drawn = figures.coverage(coverage.ks, values, [interval.value for interval in coverage.voted], coverage.power_law)
    plot = Plot(f"{prefix}coverage", "Coverage", f"{words}; {fit}.", drawn)
    note = (
        "pass@k: some of k samples is right (unbiased estimate). maj@k: a majority vote among k samples is. "
        "The power law, exp(-a k^-b), is that of Large Language Monkeys (arXiv:2407.21787)."
    )
    return Section("Coverage", note, [plot, Table(f"With {INTERVALS}.", coverage_rows(coverage))])


def verifier_section(results: Results, prefix: str = "") -> Section:
    """False positives and calibration of the reward model.

    :param str prefix: of the names of the figures.
    """
    ks = diagnostics.counts(results)
    statements = diagnostics.reward_statements(results)
    note = (
        "The reward model picks the best of N samples, and accepts it if its score is at least "
        f"{diagnostics.THRESHOLD}. Where it errs, more samples find more solutions that only look right (arXiv:2411.17501)."
    )
    if not statements:
        return Section("Reward model", "The run recorded no scores of steps.")
    picks = {s.name: diagnostics.selections(results, s.name, ks) for s in statements}
    last = "; ".join(f"{name} {rows[-1].false_positive.value:.2f}" for name, rows in picks.items())
    words = f"Share of wrong ones among the accepted solutions at {ks[-1]} samples: {last}."
    figure = diagnostics.reliability_diagram(statements, "score of the solution")
    return Section(
        "Reward model",
        note,
        [
            Plot(f"{prefix}false-positives", "False positives", words, diagnostics.false_positives(picks, ks)),
            Table(
                f"Picked and accepted solutions, averaged over all subsets, with {INTERVALS}.", selection_rows(picks, ks, results.sampled())
            ),
            Plot(f"{prefix}calibration-of-the-reward-model", "Reliability of the reward model", _calibration_words(statements), figure),
            Table("Scores of all samples as probabilities of a right answer, by aggregation of the steps.", calibration_rows(statements)),
        ],
    )


def settings_section(results: Results) -> Section:
    """What the records were made with."""
    rows = [["setting", "value"], *([name, json.dumps(value)] for name, value in results.configuration.items())]
    return Section("Settings", "", [Table("What the records were made with.", rows, words=True)])


def curve_words(results: Results) -> str:
    """Accuracy at the ends of each curve."""
    parts = []
    for method in results.methods:
        budgets = results.budgets(method)
        ends = [f"{results.accuracy(method, budget).value:.2f} at {budget}" for budget in dict.fromkeys((budgets[0], budgets[-1]))]
        parts.append(f"{method} {' and '.join(ends)}")
    return "; ".join(parts) + "."


def _token_plot(results: Results) -> list[Table | Plot | list[Plot]]:
    if not any("tokens_sampled" in record["cost"] for cells in results.by_key.values() for record in cells.values()):
        return []
    words = "The same accuracies against what was sampled for them; the tables have the numbers."
    return [Plot("accuracy-against-tokens", "Accuracy against tokens", words, figures.scaling(results, "tokens_sampled"))]


def _vote_section(results: Results) -> Section:
    note = "Every vote sees the same independent samples: the first ones of each problem and seed."
    return Section("Votes recomputed from the samples", note, [Table(f"Accuracy with {INTERVALS}.", offline_rows(results))])


def _calibration_words(statements: Sequence[diagnostics.Stated]) -> str:
    return "Brier scores: " + "; ".join(f"{stated.name} {stated.row()[2]}" for stated in statements) + "."
