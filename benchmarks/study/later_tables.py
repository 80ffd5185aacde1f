"""The tables of the methods that came later: allocation, tree searches, backtracking, rules that stop, and power targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ppl_llm.evaluation.page import Rows
from ppl_llm.evaluation.results import Results

from .settings import MAP, MORE_MAP
from .tables import COMPARED, KINDS, NAMES, Source, Study, accuracies, best_in_bold, difference, joined

LATER = {
    "beam-search:preset=twisted:lookahead=1": "beam search, look ahead",
    "rebase:preset=twisted": "REBASE",
    "dora:preset=twisted": "DORA",
    "dora:diversity_temperature=0.01:preset=twisted": "DORA, directions at temperature 0.01",
    "speculative-rejection:preset=twisted": "speculative rejection",
    "best-first:preset=twisted": "best-first",
    "mcts:preset=twisted": "MCTS",
    "ab-mcts:preset=twisted": "AB-MCTS",
    "mcts:value=rollout:preset=twisted": "MCTS, rollouts",
    "ab-mcts:value=rollout:preset=twisted": "AB-MCTS, rollouts",
    "prefix-walk": "prefix walk",
    "power-smc": "SMC, power 4",
    "power-smc:moves=1": "SMC, power 4, moves",
    "power-mh": "block Metropolis, power 4",
    "self-consistency:until=beta:0.95": "self-consistency until beta:0.95",
    "importance:until=beta:0.95": "weighted best-of-N until beta:0.95",
    "best-of-n:until=pandora:0.01": "best-of-N until pandora:0.01",
}
"""Methods of the later runs."""

WITHOUT_REWARD = "without a reward: "
COMPARED_WITH = ("self-consistency", "best-of-n", "weighted-best-of-n", "smc", "smc:preset=twisted", "beam-search", "dvts")
"""Methods of the main tables that stand beside them."""

BASE = "weighted best-of-N"

DRAWN = (
    *(BASE, "best-of-N", "SMC, twisted", "DVTS", "REBASE", "speculative rejection", "best-first", "MCTS", "AB-MCTS", "MCTS, rollouts"),
    *("AB-MCTS, rollouts", "prefix walk", "SMC, power 4", f"{BASE} until beta:0.95", "best-of-N until pandora:0.01"),
)
"""Methods of the figure."""

BESIDE = ("weighted-best-of-n", "smc", "dvts")
"""Methods of the first map that stand beside them."""


def results(study: Study, setting: str, names: Iterable[str] = ()) -> Results:
    """The later methods with those of the main tables, on the problems and the seed that both have.

    :param names: some of them; all by default.
    """
    more = f"{setting}-more"
    sources: list[Source] = [(setting, method, NAMES[method]) for method in COMPARED_WITH]
    sources += [(more, method, name) for method, name in LATER.items()]
    if "none-more" in study and not names:
        sources += [("none-more", method, WITHOUT_REWARD + name) for method, name in LATER.items()]
    return joined(study, [source for source in sources if not names or source[2] in names], study[more].problems, [0])


def costs(study: Study, setting: str) -> Rows:
    """Tokens, and the paired difference to weighted best-of-N of the same budget."""
    found = results(study, setting)
    rows = [["method", *(f"tokens, {b}" for b in COMPARED), *(f"minus {BASE}, {b}" for b in COMPARED)]]
    for name in found.methods:
        own = found.budgets(name)
        tokens = [f"{found.mean_cost(name, b):,.0f}" if b in own else "" for b in COMPARED]
        rows.append([name, *tokens, *(difference(found, (name, b), (BASE, b)) if name != BASE else "" for b in COMPARED)])
    return rows


def map_rows(study: Study, budget: int) -> Rows:
    """Accuracy for each kind of reward model, beside three methods of the first map; bold where the best is not better than by noise."""
    mapped = {method: LATER[method] for method in MORE_MAP[0].methods}
    names = [*(KINDS[method] for method in BESIDE), *mapped.values()]
    rows = [[f"accuracy at {budget}", *names]]
    for setting in (each.name for each in MAP if f"{each.name}-more" in study):
        more = f"{setting}-more"
        sources = [*((setting, m, KINDS[m]) for m in BESIDE), *((more, m, name) for m, name in mapped.items())]
        rows.append([setting, *best_in_bold(joined(study, sources, study[more].problems, [0]), names, budget)])
    return rows


TABLES: dict[str, Callable[[Study], Rows]] = {
    "strong-more": lambda study: accuracies(results(study, "strong")),
    "strong-more-costs": lambda study: costs(study, "strong"),
    "weak-more": lambda study: accuracies(results(study, "weak")),
    "weak-more-costs": lambda study: costs(study, "weak"),
    "map-more": lambda study: map_rows(study, 16),
}
