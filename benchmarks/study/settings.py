"""What the study runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .synthetic import Errors

VOTES = ("importance", "self-consistency", "best-of-n", "weighted-best-of-n")
PRESETS = ("smc", "smc:preset=twisted", "smc:preset=as_paper", "smc:preset=its_hub")
SEARCHES = ("beam-search", "dvts")
MOVES = ("particle-gibbs", "tempered-smc", "parallel-tempering")
KINDS = (*VOTES, "smc", "smc:preset=twisted", "smc:preset=twisted:aggregation=last", "smc:preset=as_paper", "dvts")
CHOICES = (
    *(f"smc:resampler={name}" for name in ("multinomial", "stratified", "residual", "ssp")),
    *(f"smc:ess_threshold={value}" for value in ("0", "0.25", "1")),
    *(f"smc:islands={number}" for number in (2, 4, 8)),
    *(f"particle-gibbs:sweeps={number}" for number in (2, 8)),
    *("smc:potential=odds", "smc:preset=twisted:potential=max", "smc:preset=twisted:potential=sum"),
    *(f"smc:preset=twisted:aggregation={name}" for name in ("last", "prod", "mean")),
    *(f"smc:preset=as_paper:aggregation={name}" for name in ("last", "min")),
)
"""Ablations of the particle filter and particle Gibbs, one choice changed at a time."""

POWERS = ("power-smc", "power-smc:moves=1", "power-mh")
ALLOCATION = (
    *(f"{name}:preset=twisted" for name in ("rebase", "dora", "dora:diversity_temperature=0.01", "speculative-rejection")),
    "beam-search:preset=twisted:lookahead=1",
)
TREES = tuple(f"{name}:preset=twisted" for name in ("best-first", "mcts", "ab-mcts", "mcts:value=rollout", "ab-mcts:value=rollout"))
STOPPING = ("self-consistency:until=beta:0.95", "importance:until=beta:0.95", "best-of-n:until=pandora:0.01")
MORE = (*ALLOCATION, *TREES, "prefix-walk", *STOPPING, *POWERS)
"""Run for themselves, with one seed, and compared with the others on the problems that both have."""

SOME, FEW = 150, 100
"""Problems of the map's settings, and of the ablations."""


@dataclass(frozen=True)
class Setting:
    """A language model at a temperature, a reward model, and what runs on them.

    :ivar str name: of its folder.
    :ivar str line: what it is.
    :ivar prm: ``demo``, ``demo-weak``, the errors of a synthetic one, or ``None``.
    :ivar tuple calibration: temperature and bias of the reward model's log-odds, or ``fitted``.
    """

    name: str
    line: str
    methods: tuple[str, ...]
    prm: str | Errors | None = "demo"
    budgets: tuple[int, ...] = (16, 64)
    seeds: tuple[int, ...] = (0,)
    problems: int = SOME
    temperature: float = 1.0
    calibration: tuple[float, float] | str | None = None


def _cell(errors: Errors) -> Setting:
    line = f"synthetic: step AUROC {errors.auroc}, neighbouring errors correlated {errors.repeat}"
    name = f"map-{errors.auroc}-{errors.repeat}"
    if errors.sharpness != 1:
        line, name = f"{line}, log-odds times {errors.sharpness:g}", f"{name}-x{errors.sharpness:g}"
    if errors.judges != "step":
        line, name = f"{line}, judging the whole prefix", f"{name}-{errors.judges}"
    if errors.fooled:
        line, name = f"{line}, fooled by {errors.fooled:.0%} of the wrong steps", f"{name}-fooled-{errors.fooled}"
    return Setting(name, line, KINDS, errors)


ERRORS = (
    *(Errors(auroc, repeat) for auroc in (0.96, 0.86, 0.77) for repeat in (0.0, 0.5, 0.9)),
    *(Errors(0.86, repeat, sharpness) for sharpness in (0.25, 4.0) for repeat in (0.0, 0.9)),
    *(Errors(0.86, repeat, judges="prefix") for repeat in (0.0, 0.9)),
    *(Errors(auroc, fooled=share) for auroc in (0.96, 0.86) for share in (0.1, 0.3)),
)
ALL = (1, 2, 4, 8, 16, 32, 64)
SHIPPED = (("strong", "demo"), ("weak", "demo-weak"))
EVERY = (*VOTES, *PRESETS, *SEARCHES, *MOVES)

STRONG = Setting("strong", "the demo reward model", EVERY, "demo", ALL, (0, 1, 2), 300)
WEAK = Setting("weak", "the weak demo reward model", EVERY, "demo-weak", ALL, (0, 1, 2), 300)
MAP = tuple(_cell(errors) for errors in ERRORS)
CALIBRATED = (
    *(
        Setting(f"{name}-x{factor:g}", f"log-odds of the {prm} reward model times {factor:g}", KINDS, prm, calibration=(1 / factor, 0.0))
        for name, prm in SHIPPED
        for factor in (0.25, 4.0)
    ),
    *(
        Setting(f"{name}-fitted", f"the {prm} reward model, calibrated on samples for other problems", EVERY, prm, calibration="fitted")
        for name, prm in SHIPPED
    ),
)
LAST = tuple(
    Setting(f"{name}-last", f"the {prm} reward model, target p(x) r_T", ("smc:preset=twisted:aggregation=last",), prm)
    for name, prm in SHIPPED
)
ABLATIONS = (
    Setting("choices", "the demo reward model, one choice changed at a time", CHOICES, problems=FEW),
    *(
        Setting(
            f"temperature-{t}",
            f"language model at temperature {t}",
            (*VOTES, "smc", "dvts"),
            "demo",
            (4, 16, 64),
            problems=FEW,
            temperature=t,
        )
        for t in (0.6, 0.8, 1.2, 1.4)
    ),
)
MORE_SHIPPED = (
    *(Setting(f"{name}-more", f"the {prm} reward model, more methods", MORE, prm, ALL, problems=300) for name, prm in SHIPPED),
    Setting("none-more", "no reward model", POWERS, None, ALL, problems=300),
)
MORE_MAP = tuple(replace(setting, name=f"{setting.name}-more", methods=(*ALLOCATION, *TREES, "prefix-walk")) for setting in MAP)
PASSES = ((STRONG, WEAK, *CALIBRATED, *LAST), MAP, ABLATIONS, MORE_SHIPPED, MORE_MAP)
"""The settings of one pass share the work on a group of problems; the most important ones come first."""

SETTINGS = (STRONG, WEAK, *MAP, *CALIBRATED, *LAST, *ABLATIONS, *MORE_SHIPPED, *MORE_MAP)
"""One for each folder of records."""
