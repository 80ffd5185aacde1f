"""Options of the methods, each spelled once: for the flags of ``solve`` and for names with options such as ``smc:islands=4``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

PRESET_NAMES = ("exact", "twisted", "as_paper", "its_hub", "entropic")
RESAMPLER_NAMES = ("systematic", "stratified", "residual", "ssp", "multinomial")
VALUES = ("prefix", "rollout")
KERNELS: dict[str, tuple[str, dict[str, Any]]] = {"suffix-mh": ("SuffixMH", {}), "particle-gibbs": ("ParticleGibbs", {"num_particles": 4})}
"""Kernels that move whole solutions: the algorithm's name and its arguments."""


@dataclass(frozen=True)
class Option:
    """One option of a method.

    :ivar str name: after a colon; the flag of ``solve`` has dashes for its underscores.
    :ivar type kind: ``int``, ``float``, ``str`` or ``bool``.
    :ivar str help: a sentence.
    :ivar default: of a method; ``None`` leaves it to the preset, or means none.
    :ivar float least: smallest value.
    :ivar float most: largest value.
    :ivar tuple choices: names to choose from; empty where any text will do.
    :ivar str parameter: what the library calls it in its messages, where that is another name.
    :ivar bool side_by_side: whether it multiplies the solutions that are written at a time.
    :ivar bool colons: whether its values have colons, as in ``self-consistency:until=beta:0.95:batch=8``.
    """

    name: str
    kind: type
    help: str
    default: Any = None
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    parameter: str = ""
    side_by_side: bool = False
    colons: bool = False

    @property
    def flag(self) -> str:
        """As an option of the command line."""
        return f"--{self.name.replace('_', '-')}"

    def by_default(self, default: Any) -> Option:
        """The same option with another default."""
        return replace(self, default=default)

    def parse(self, text: str) -> Any:
        """The value that a text stands for.

        :raises ValueError: naming the option, the value and what it must be.
        """
        if self.kind is bool:
            if text not in ("true", "false"):
                raise ValueError(f"{self.name} must be true or false, got {text!r}")
            return text == "true"
        try:
            value = self.kind(text)
        except ValueError as error:
            raise ValueError(f"{self.name} must be {'an integer' if self.kind is int else 'a number'}, got {text!r}") from error
        self.check(value)
        return value

    def check(self, value: Any) -> None:
        """
        :raises ValueError: for a value out of range.
        """
        if self.choices and value not in self.choices:
            from ..inference.util.validation import unknown_name

            raise unknown_name(self.name, value, self.choices)
        if self.name == "until":
            parse_until(value)
        if self.kind is int and self.least is not None and value < self.least:
            raise ValueError(f"{self.name} must be an integer of at least {self.least}, got {value}")
        if self.kind is float and self.least is not None and self.most is not None and not self.least <= value <= self.most:
            raise ValueError(f"{self.name} must lie in [{self.least:g}, {self.most:g}], got {value}")


# What the methods take
PARTICLES = Option("particles", int, "Solutions written side by side.", 16, least=1, parameter="num_particles", side_by_side=True)
RESAMPLER = Option("resampler", str, ", ".join(RESAMPLER_NAMES) + "; by default the preset's.", choices=RESAMPLER_NAMES)
ESS_THRESHOLD = Option(
    "ess_threshold",
    float,
    "Resample where the effective sample size is at most this share of the particles; by default the preset's.",
    least=0.0,
    most=1.0,
)
ISLANDS = Option("islands", int, "Independent filters, pooled by their evidence.", 1, least=1, side_by_side=True)
MAX_TOKENS_TOTAL = Option("max_tokens_total", int, "Stop when so many tokens are written.", least=1)
AUDIT = Option("audit", bool, "Replay the solutions and compare every log-probability.", False)
UNTIL = Option(
    "until",
    str,
    "Stop when the vote is settled: beta:0.95 (the leader leads with this probability), same:3 (so many equal answers in a row), "
    "share:0.75 (of the votes), agree:0.9 (within and across temperatures; multi-temperature), or pandora:0.01 (a sample costs more than "
    "it is expected to gain; best-of-n and importance). Particles "
    "are then the most that it may take.",
    colons=True,
)
BATCH = Option("batch", int, "With --until: solutions drawn before the vote is looked at again; by default 4.", least=1)
DOUBLING = Option("doubling", bool, "With --until: draw as many solutions in a batch as there are.", False)
BATCHES = (UNTIL, BATCH, DOUBLING)
BETA = Option("beta", float, "Inverse temperature of the rewards: 0 is a majority, much the best solution.", 10.0, least=0.0, most=1e6)
K = Option("k", int, "Answers that may be given, best first.", 1, least=1)
FREQUENCY = Option("frequency", float, "Least share of the solutions that an answer must have.", 0.1, least=0.0, most=1.0)
TEMPERATURES = Option("temperatures", str, "At which solutions are written, such as 0.6,1,1.4.", "0.6,1,1.4")
BATCH_NAMES = tuple(option.name for option in BATCHES)
ITERATIONS = Option("iterations", int, "Iterations of a chain.", 4, least=1)
WARMUP = Option("warmup", int, "Iterations before those that count.", 0, least=0)
SWEEPS = Option("sweeps", int, "Filters that a budget is divided among, the first one included.", 4, least=2)
ANCESTOR_SAMPLING = Option("ancestor_sampling", bool, "Draw other beginnings for the solution that is kept.", False)
REFERENCES = Option(
    "references",
    int,
    "Solutions kept, each in a filter of its own.",
    1,
    least=1,
    parameter="num_references",
    side_by_side=True,
)
BETAS = Option("betas", str, "Powers of the scores, such as 0,0.3,1, or adaptive.", "adaptive")
KERNEL = Option("kernel", str, "Moves of whole solutions: " + " or ".join(KERNELS) + ".", "suffix-mh", choices=tuple(KERNELS))
WALK_STEPS = Option("walk_steps", int, "Steps of the walk in an iteration, up or down.", 64, least=1, parameter="steps")
PILOT = Option("pilot", int, "Solutions that set the scale of scores in each iteration.", 8, least=0, side_by_side=True)
CHAIN_LENGTH = Option("chain_length", int, "States kept of each chain; particles must be a multiple of it.", 4, least=2)
MOVES = Option("moves", int, "Moves that rewrite the ends of unfinished solutions, after each step.", 0, least=0)
MOVE_EVERY = Option("move_every", int, "Steps from one time of moves to the next.", 1, least=1)
BEAM_WIDTH = Option("beam_width", int, "Solutions kept at every step.", 4, least=1, side_by_side=True)
FILTER_DUPLICATES = Option("filter_duplicates", bool, "Keep one of several equal solutions at every step.", False)
LOOKAHEAD = Option("lookahead", int, "Greedy steps that a solution is looked ahead by before it is scored.", 0, least=0)
KEEP = Option("keep", float, "Share of the unfinished solutions kept at each mark.", 0.5, least=0.001, most=1.0)
MARKS = Option("marks", str, "Where solutions are dropped, such as 1,2,4; doubling is 1,2,4,8 and so forth.", "doubling")
MARK_UNIT = Option(
    "mark_unit", str, "What marks count: steps, or tokens for each solution begun.", "steps", choices=("steps", "tokens"), parameter="unit"
)
SUBTREES = Option("subtrees", int, "Independent searches.", 4, least=1, parameter="num_subtrees", side_by_side=True)
ALLOCATION_TEMPERATURE = Option(
    "allocation_temperature", float, "Small: continue the best alone; large: all alike.", 0.2, least=0.001, most=1000.0
)
DIVERSITY_TEMPERATURE = Option(
    "diversity_temperature", float, "Small: beginnings that are nearly alike count as different.", 1.0, least=0.0001, most=1e9
)
CONTINUATIONS = Option("continuations", int, "Steps written in all, at most.", 64, least=1, parameter="budget")
SIMULATIONS = Option("simulations", int, "Steps written in all, each a simulation of a tree search.", 64, least=1)
SIMULATION_BATCH = Option("simulation_batch", int, "Simulations whose steps are written together.", 8, least=1, parameter="batch")
VALUE = Option("value", str, "Score of a beginning: its own, or that of a solution written from it.", "prefix", choices=VALUES)
EXPLORATION = Option("exploration", float, "Greater values look more at beginnings that were looked at less.", 1.0, least=0.0, most=1000.0)
WIDENING = Option("widening", float, "Continuations of a beginning that was looked at once.", 1.0, least=0.001, most=1000.0)
WIDENING_POWER = Option(
    "widening_power", float, "How continuations grow with the looks: 0, a fixed number, to 1, one more each time.", 0.5, least=0.0, most=1.0
)
SCORE_POSTERIOR = Option(
    "score_posterior", str, "What is known of mean scores: normal, or beta for scores in [0, 1].", "normal", choices=("normal", "beta"),
    parameter="posterior",
)  # fmt: skip
ETA = Option("eta", float, "Share of the solutions that votes: those that the language model was surest of.", 0.1, least=0.001, most=1.0)
INITIAL = Option("initial", int, "Solutions written first, whose confidence sets where the others are cut; 0 cuts none.", 0, least=0)
CONFIDENCE = Option(
    "confidence",
    str,
    "KIND:WINDOW:OVER: top-k, kl, margin, log-prob or entropy, in windows of so many tokens, over least, bottom or tail of them, or mean.",
    "top-k:2048:bottom",
    colons=True,
)
EXPAND = Option("expand", int, "Continuations of each kept solution.", 4, least=1, side_by_side=True)

# What a name may change in the model, see ppl_llm.reasoning
PRESET = Option("preset", str, "What to infer.", "exact", choices=PRESET_NAMES)
POTENTIAL = Option("potential", str, "Factor of a step.")
AGGREGATION = Option("aggregation", str, "Score of a solution from those of its steps.", colons=True)
SCORE_TEMPERATURE = Option("score_temperature", float, "Divides the reward model's log-odds.")
POWER = Option("power", float, "Target p(solution)^power.", least=0.01, most=1000.0)
BRIDGE = Option("bridge", int, "Steps along which the power grows from 1.", least=1)
WAITS = Option("waits", int, "Times that an early end of the thinking is replaced by more of it.", least=0)
MAX_THINKING = Option("max_thinking", int, "Tokens of thinking at most; it is closed there.", least=1)
MODEL_OPTIONS: dict[str, Option] = {
    o.name: o for o in (PRESET, POTENTIAL, AGGREGATION, SCORE_TEMPERATURE, POWER, BRIDGE, WAITS, MAX_THINKING)
}


def parse_marks(text: str) -> list[int] | None:
    """``doubling``, or numbers such as ``1,2,4``.

    :raises ValueError: for anything else.
    """
    if text == "doubling":
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"marks must be integers separated by commas, such as 1,2,4, or doubling, got {text!r}") from error


RULES: dict[str, tuple[str, type]] = {
    "beta": ("BetaMajority", float),
    "same": ("SameAnswers", int),
    "share": ("Share", float),
    "agree": ("GroupAgreement", float),
    "pandora": ("Pandora", float),
}
"""Rules of ``until``: the name of the class, and the kind of its number."""


def parse_until(text: str) -> tuple[str, Any]:
    """The class and the number of a rule such as ``beta:0.95``.

    :raises ValueError: for an unknown rule, or what is no number.
    """
    name, _, number = text.partition(":")
    if name not in RULES:
        from ..inference.util.validation import unknown_name

        raise unknown_name("until", name, RULES)
    rule, kind = RULES[name]
    try:
        return rule, kind(number)
    except ValueError as error:
        example = {"beta": "0.95", "same": "3", "share": "0.75", "agree": "0.9", "pandora": "0.01"}[name]
        raise ValueError(f"until must be a rule with its number, such as {name}:{example}, got {text!r}") from error


def parse_temperatures(text: str) -> list[float]:
    """Numbers such as ``0.6,1,1.4``.

    :raises ValueError: for anything else.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"temperatures must be numbers separated by commas, such as 0.6,1,1.4, got {text!r}") from error


def parse_betas(text: str) -> Any:
    """``adaptive``, or powers such as ``0,0.3,1``.

    :raises ValueError: for anything else.
    """
    if text == "adaptive":
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"betas must be numbers separated by commas, such as 0,0.3,1, or adaptive, got {text!r}") from error
