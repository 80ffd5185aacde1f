"""The tables of the document, from the outcomes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch

from ppl_llm.evaluation.aggregators import Candidate, log_score
from ppl_llm.evaluation.metrics import auroc, calibration_error, reliability
from ppl_llm.evaluation.page import Rows
from ppl_llm.evaluation.results import Results
from ppl_llm.evaluation.tables import interval, signed
from ppl_llm.reward.calibration import Calibration

from .outcomes import Outcomes, Solution
from .settings import ABLATIONS, CALIBRATED, CHOICES, LAST, MAP, MORE_MAP, MORE_SHIPPED, SETTINGS, STRONG, WEAK

Study = Mapping[str, Outcomes]

NAMES = {
    "self-consistency": "self-consistency",
    "best-of-n": "best-of-N",
    "weighted-best-of-n": "weighted best-of-N",
    "smc": "SMC, exact",
    "smc:preset=twisted": "SMC, twisted",
    "smc:preset=as_paper": "SMC, as_paper",
    "smc:preset=its_hub": "SMC, its_hub",
    "beam-search": "beam search",
    "dvts": "DVTS",
    "particle-gibbs": "particle Gibbs",
    "tempered-smc": "tempered SMC",
    "parallel-tempering": "parallel tempering",
}
"""Methods of the main tables. Importance sampling from ``exact`` is left out: it is weighted best-of-N by another name."""

KINDS = {
    "self-consistency": "self-consistency",
    "best-of-n": "best-of-N",
    "weighted-best-of-n": "weighted best-of-N",
    "smc": "SMC, exact",
    "smc:preset=twisted": "SMC, twisted (min)",
    "smc:preset=twisted:aggregation=last": "SMC, twisted (last)",
    "smc:preset=as_paper": "SMC, as_paper",
    "dvts": "DVTS",
}
"""Methods of the map."""

BASELINES = ("self-consistency", "best-of-N", "weighted best-of-N")
COMPARED = (4, 16, 64)
"""Budgets of tables of differences."""

Source = tuple[str, str, str]  # setting, method, name in the table


def joined(study: Study, sources: Iterable[Source], problems: Sequence[str], seeds: Sequence[int]) -> Results:
    """Methods of several settings as one set of results, on the same problems and seeds."""
    kept = set(problems)
    records = []
    for setting, method, name in sources:
        own = study[setting].results
        for (other, _), cells in own.by_key.items():
            if other == method:
                records += [{**r, "method": name} for (p, seed), r in cells.items() if p in kept and seed in seeds]
    order = {problem: i for i, problem in enumerate(problems)}
    return Results(sorted(records, key=lambda record: order[record["problem"]]))


def main_results(study: Study, setting: str) -> Results:
    """The methods of the main tables in one setting, on all of its problems and seeds."""
    own = study[setting]
    methods = [method for method in NAMES if method in own.results.methods]
    return joined(study, [(setting, method, NAMES[method]) for method in methods], own.problems, own.results.seeds)


def accuracies(results: Results) -> Rows:
    """Method by budget."""
    budgets = sorted({budget for method in results.methods for budget in results.budgets(method)})
    rows = [["accuracy", *map(str, budgets)]]
    for method in results.methods:
        own = results.budgets(method)
        rows.append([method, *(interval(results.accuracy(method, b)) if b in own else "" for b in budgets)])
    return rows


def differences(study: Study, setting: str) -> Rows:
    """Paired difference to weighted best-of-N."""
    results, base = main_results(study, setting), "weighted best-of-N"
    rows = [[f"minus {base}", *map(str, COMPARED)]]
    for method in _order(results, NAMES):
        if method != base:
            rows.append([method, *(difference(results, (method, b), (base, b)) for b in COMPARED)])
    return rows


def ratios(study: Study, setting: str) -> Rows:
    """How many times the budget each baseline needs for the same accuracy."""
    results = main_results(study, setting)
    rows = [["budget of the baseline / budget of the method", *BASELINES]]
    for method in _order(results, NAMES):
        if method not in BASELINES:
            rows.append([method, *(str(results.scaling_ratio(method, baseline)) for baseline in BASELINES)])
    return rows


def votes(study: Study, setting: str) -> Rows:
    """Aggregations of the steps' scores, by votes over the same samples."""
    own = study[setting].results
    budgets = own.budgets("best-of-n")
    rows = [["vote over the same samples, score", *map(str, budgets)]]
    for vote, name in (("best-of-n", "best-of-N"), ("weighted-best-of-n", "weighted")):
        for aggregation in ("prod", "min", "last", "mean"):
            method = vote if aggregation == "prod" else f"{vote}:{aggregation}"
            rows.append([f"{name}, {aggregation}", *(interval(own.accuracy(method, budget)) for budget in budgets)])
    return rows


def winners(study: Study) -> Rows:
    """What the reward model says of the sample that best-of-N chooses, and how often that is right."""
    rows = [["best of N samples", *map(str, study[STRONG.name].results.budgets("best-of-n"))]]
    for setting in ("strong", "weak"):
        own = study[setting]
        claimed = {
            b: np.nanmean([own.claims[budget, s] for budget, s in own.claims if budget == b]) for b in own.results.budgets("best-of-n")
        }
        rows.append([f"{setting}: stated probability that it is right", *(f"{value:.3f}" for value in claimed.values())])
        rows.append([f"{setting}: how often it is right", *(f"{own.results.accuracy('best-of-n', b).value:.3f}" for b in claimed)])
    return rows


def reward_models(study: Study) -> Rows:
    """What each reward model is like, measured on steps of the language model's own solutions."""
    rows = [
        ["reward model", "steps", "step AUROC", "correlation of neighbouring errors", "slope of calibrated log-odds", "calibration error"]
    ]
    rows[0] += [f"solution AUROC, {aggregation}" for aggregation in ("prod", "min", "last")]
    for setting in SETTINGS:
        if setting.name not in study or not study[setting.name].solutions or setting.name.startswith("temperature"):
            continue
        solutions = [one for each in study[setting.name].solutions for one in each if one[0]]
        labels, odds = (np.concatenate([np.array(s[i], dtype=float) for s in solutions]) for i in (0, 1))
        fitted = Calibration.fit(torch.from_numpy(odds), torch.from_numpy(labels))
        error = calibration_error(reliability(1 / (1 + np.exp(-odds)), labels))
        numbers = [auroc(odds, labels), repeat(solutions), 1 / fitted.temperature, error]
        numbers += [solution_auroc(solutions, aggregation) for aggregation in ("prod", "min", "last")]
        rows.append([setting.name, f"{len(labels):,}", *(f"{number:.2f}" for number in numbers)])
    return rows


def repeat(solutions: Sequence[Solution]) -> float:
    """Correlation, along solutions, of what is left of log-odds once the mean for right or wrong steps is taken off."""
    mean = {
        y: np.mean([z for rights, odds in solutions for z, right in zip(odds, rights, strict=True) if right == y]) for y in (True, False)
    }
    left = [[z - mean[right] for z, right in zip(odds, rights, strict=True)] for rights, odds in solutions]
    pairs = np.array([pair for row in left for pair in itertools.pairwise(row)])
    return float(np.corrcoef(pairs.T)[0, 1])


def solution_auroc(solutions: Sequence[Solution], aggregation: str) -> float:
    """Of solutions all of whose steps are right against the others, by an aggregation of their scores."""
    scores = [log_score(Candidate(None, step_log_odds=tuple(odds)), aggregation) for _, odds in solutions]
    return auroc(scores, [all(rights) for rights, _ in solutions])


def map_results(study: Study, setting: str) -> Results:
    """The methods of the map in one setting, on the problems and the seed that all settings have."""
    problems = study[MAP[0].name].problems
    present = [method for method in KINDS if method in study[setting].results.methods]
    sources: list[Source] = [(setting, method, KINDS[method]) for method in present]
    if f"{setting}-last" in study:
        sources.append((f"{setting}-last", "smc:preset=twisted:aggregation=last", "SMC, twisted (last)"))
    return joined(study, sources, problems, [0])


def map_rows(study: Study, budget: int) -> Rows:
    """Accuracy of each method for each kind of reward model; bold where the best is not better by more than noise."""
    names = list(KINDS.values())
    rows = [[f"accuracy at {budget}", *names]]
    return rows + [[setting, *best_in_bold(map_results(study, setting), names, budget)] for setting in map_settings(study)]


def best_in_bold(results: Results, names: Sequence[str], budget: int) -> list[str]:
    """Accuracies; bold where the best is not better by more than noise, empty for a method that was not run."""
    accuracy = {name: results.accuracy(name, budget).value for name in names if name in results.methods}
    best = max(accuracy, key=lambda name: accuracy[name])
    near = {name for name in accuracy if name == best or results.difference((best, budget), (name, budget)).low <= 0}
    return [f"**{accuracy[n]:.2f}**" if n in near else f"{accuracy[n]:.2f}" if n in accuracy else "" for n in names]


def map_settings(study: Study) -> list[str]:
    """Kinds of reward models: synthetic ones, the shipped ones, and the shipped ones with other calibrations."""
    return [name for name in (*(s.name for s in MAP), "strong", "weak", *(s.name for s in CALIBRATED)) if name in study]


def potentials(study: Study, budget: int) -> Rows:
    """Paired differences that the choice of a potential makes."""
    pairs = (
        ("SMC, exact", "weighted best-of-N"),
        ("SMC, exact", "self-consistency"),
        ("SMC, exact", "SMC, twisted (min)"),
        ("SMC, exact", "SMC, twisted (last)"),
        ("SMC, exact", "SMC, as_paper"),
        ("weighted best-of-N", "best-of-N"),
    )
    rows = [[f"difference at {budget}", *(f"{a} minus {b}" for a, b in pairs)]]
    for setting in map_settings(study):
        results = map_results(study, setting)
        rows.append([setting, *(difference(results, (a, budget), (b, budget)) for a, b in pairs)])
    return rows


def calibrations(study: Study) -> Rows:
    """What a fitted calibration of the reward model changes for each method."""
    rows = [["calibrated minus not", *(f"{setting}, {budget}" for setting in (STRONG.name, WEAK.name) for budget in COMPARED[1:])]]
    for method, name in NAMES.items():
        cells = []
        for setting in (STRONG.name, WEAK.name):
            fitted = f"{setting}-fitted"
            results = joined(study, [(setting, method, "before"), (fitted, method, "after")], study[fitted].problems, [0])
            cells += [difference(results, ("after", budget), ("before", budget)) for budget in COMPARED[1:]]
        rows.append([name, *cells])
    return rows


def choices(study: Study) -> Rows:
    """One choice changed at a time, against the defaults."""
    problems, budgets = study["choices"].problems, COMPARED[1:]
    defaults: list[Source] = [("strong", "smc", "smc"), ("strong", "smc:preset=twisted", "smc:preset=twisted")]
    defaults += [("strong", "smc:preset=as_paper", "smc:preset=as_paper"), ("strong", "particle-gibbs", "particle-gibbs")]
    results = joined(study, [*defaults, *(("choices", m, m) for m in CHOICES)], problems, [0])
    rows = [["", *(f"accuracy at {b}" for b in budgets), *(f"minus SMC, exact, at {b}" for b in budgets)]]
    for method in (*(name for _, _, name in defaults), *CHOICES):
        own = results.budgets(method)
        cells = [interval(results.accuracy(method, b)) if b in own else "" for b in budgets]
        rows.append([f"`{method}`", *cells, *(difference(results, (method, b), ("smc", b)) if method != "smc" else "" for b in budgets)])
    return rows


def temperatures(study: Study) -> Rows:
    """Methods at several temperatures of the language model."""
    methods = {"importance": "pass@1", **{m: NAMES[m] for m in ("self-consistency", "weighted-best-of-n", "smc", "dvts")}}
    rows = [["temperature", *(f"{name}, {b}" for name in list(methods.values())[1:] for b in COMPARED)]]
    rows[0].append("SMC, exact minus weighted best-of-N, 64")
    for setting in ("temperature-0.6", "temperature-0.8", "strong", "temperature-1.2", "temperature-1.4"):
        if setting in study:
            problems = study["temperature-0.6"].problems
            results = joined(study, [(setting, m, m) for m in methods], problems, [0])
            cells = [f"{results.accuracy(m, b).value:.2f}" for m in list(methods)[1:] for b in COMPARED]
            cells.append(difference(results, ("smc", 64), ("weighted-best-of-n", 64)))
            rows.append([setting.removeprefix("temperature-") if setting != "strong" else "1.0", *cells])
    return rows


def costs(study: Study) -> Rows:
    """What a budget of 64 costs."""
    own = study["strong"]
    rows = [["at a budget of 64", "tokens sampled per problem", "scores asked for per problem"]]
    for method, name in NAMES.items():
        if (method, 64) in own.cost:
            cost = own.cost[method, 64]
            rows.append([name, f"{cost['tokens_sampled']:,.0f}", f"{cost['prm_calls']:,.0f}"])
    return rows


def sizes(study: Study) -> Rows:
    """What was run, and the processor time it took."""
    rows = [["settings", "problems", "seeds", "answers", "processor seconds"]]
    parts: list[tuple[str, list[str]]] = [("strong", ["strong"]), ("weak", ["weak"]), ("map-*", [s.name for s in MAP])]
    parts.append(("scaled and calibrated scores", [s.name for s in (*CALIBRATED, *LAST)]))
    parts.append(("ablations", [s.name for s in ABLATIONS]))
    parts += [(setting.name, [setting.name]) for setting in MORE_SHIPPED if setting.name in study]
    parts += [("map-*-more", [s.name for s in MORE_MAP])] if any(s.name in study for s in MORE_MAP) else []
    total, answers = 0.0, 0
    for name, members in parts:
        found = [study[member] for member in members if member in study]
        seconds = sum(each.spent["cpu_seconds"] for each in found)
        count = sum(len(row) - row.count("-") for each in found for (method, _, _), row in each.right.items() if _is_run(method))
        seeds = sorted({len(each.results.seeds) for each in found})
        problems = sorted({len(each.problems) for each in found})
        rows.append([name, _span(problems), _span(seeds), f"{count:,}", f"{seconds:,.0f}"])
        total, answers = total + seconds, answers + count
    rows.append(["all", "", "", f"{answers:,}", f"{total:,.0f}"])
    return rows


def _is_run(method: str) -> bool:
    return not (method.startswith(("best-of-n:", "weighted-best-of-n:")))


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}" if values else ""


def _order(results: Results, names: Mapping[str, str]) -> list[str]:
    return [name for name in names.values() if name in results.methods]


def difference(results: Results, first: tuple[str, int], second: tuple[str, int]) -> str:
    known = first in results.by_key and second in results.by_key
    return signed(results.difference(first, second)) if known else ""


TABLES: dict[str, Callable[[Study], Rows]] = {
    "strong": lambda study: accuracies(main_results(study, "strong")),
    "strong-differences": lambda study: differences(study, "strong"),
    "strong-ratios": lambda study: ratios(study, "strong"),
    "strong-votes": lambda study: votes(study, "strong"),
    "weak": lambda study: accuracies(main_results(study, "weak")),
    "weak-votes": lambda study: votes(study, "weak"),
    "winners": winners,
    "reward-models": reward_models,
    "map": lambda study: map_rows(study, 64),
    "map-16": lambda study: map_rows(study, 16),
    "calibrations": calibrations,
    "weak-differences": lambda study: differences(study, "weak"),
    "weak-ratios": lambda study: ratios(study, "weak"),
    "potentials": lambda study: potentials(study, 64),
    "choices": choices,
    "temperatures": temperatures,
    "costs": costs,
    "sizes": sizes,
}
"""By the name that the document gives them."""
