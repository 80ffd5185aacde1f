"""Methods at a budget of complete generations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..inference import (
    DVTS,
    SMC,
    BeamSearch,
    Importance,
    ParallelTempering,
    ParticleGibbs,
    ParticlePosterior,
    SuffixMH,
    TemperedSMC,
)
from ..inference.util.validation import unknown_name
from ..lm.autoregressive import AutoregressiveLM
from ..programs.models import ReasoningModel, reasoning

_SWEEPS = 4
"""Filters of one particle Gibbs run, the unconditional one that starts it included."""

_EXPAND = 4
"""Candidates per beam or subtree (search-and-learn's default)."""

_LADDER = (0.0, 0.25, 1.0)
"""Likelihood powers of the tempered methods."""

_MODEL_OPTIONS = ("preset", "potential", "aggregation", "score_temperature")
"""What every method that runs the model may be told to change in it, see :func:`ppl_llm.reasoning`."""

Run = Callable[..., ParticlePosterior]


@dataclass(frozen=True)
class Method:
    """How a method spends a budget of B complete generations per problem.

    :ivar str name: as on the command line.
    :ivar str line: what it does.
    :ivar Run run: from a model, problems, a budget and options to a posterior with a plate of problems; ``None`` for a vote over
        independent samples, which all such methods share.
    :ivar str vote: how the answer is chosen from the candidates, see ``VOTES`` in :mod:`ppl_llm.evaluation.votes`.
    :ivar int least: smallest budget.
    :ivar dict defaults: the method's own options, which a name such as ``smc:islands=4`` may set.
    :ivar dict options: those that the name sets, and options of the model.
    """

    name: str
    line: str
    run: Run | None
    vote: str
    least: int = 1
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def start(self, model: ReasoningModel, problems: list[str], budget: int) -> ParticlePosterior:
        """The posterior of a budget; :func:`independent` samples for a vote."""
        if self.run is None:
            return independent(model, problems, budget)
        own = {name: value for name, value in self.options.items() if name in self.defaults}
        return self.run(model, problems, budget, **own)

    def adapted(self, model: ReasoningModel) -> ReasoningModel:
        """The model with the options of the name in place of its own.

        :raises ValueError: for options that do not go together.
        """
        changes = {name: value for name, value in self.options.items() if name in _MODEL_OPTIONS}
        if not changes:
            return model
        kept = {"score_temperature": model.score_temperature} if "preset" not in changes else {}
        preset = changes.pop("preset", model.preset)
        law = {**vars(model.options), "max_steps": model.max_steps, "early_exit": model.early_exit, **kept, **changes}
        return reasoning(model.lm, model.prm, preset, **law)

    def aggregation(self, model: ReasoningModel, default: str) -> str:
        """Score of a solution from those of its steps, for votes: the default unless the name changes the model's.

        :param ReasoningModel model: as :meth:`adapted`.
        """
        if not any(name in self.options for name in ("preset", "aggregation")):
            return default
        return "prod" if model.preset.potential == "likelihood" else model.aggregation

    def vote_under(self, preset_vote: str) -> str:
        """The name of the vote; ``preset`` leaves it to the preset's, see :class:`~ppl_llm.Preset`."""
        if self.vote != "preset":
            return self.vote
        return "best-of-n" if preset_vote == "argmax" else "posterior"


def independent(model: ReasoningModel, problems: list[str], budget: int) -> ParticlePosterior:
    """The samples that every vote shares, with their log-probabilities where sampling in this process gives them anyway."""
    local = isinstance(model.lm, AutoregressiveLM)
    return Importance(model, budget, record_log_probs=local, max_plate_nesting=1).run(problems)


def _smc(model: ReasoningModel, problems: list[str], budget: int, islands: int = 1, **options: Any) -> ParticlePosterior:
    return SMC(model, budget // islands, islands=islands, max_plate_nesting=1, **{**model.preset.smc, **options}).run(problems)


def _particle_gibbs(model: ReasoningModel, problems: list[str], budget: int, sweeps: int = _SWEEPS) -> ParticlePosterior:
    # The first filter writes N solutions, the others N - 1: their reference costs nothing.
    kernel = ParticleGibbs(model, (budget + sweeps - 1) // sweeps, max_plate_nesting=1)
    return kernel.run(sweeps - 1, problems)


def _beam_search(model: ReasoningModel, problems: list[str], budget: int, expand: int = _EXPAND) -> ParticlePosterior:
    return BeamSearch(model, budget // expand, expand, max_plate_nesting=1).run(problems)


def _dvts(model: ReasoningModel, problems: list[str], budget: int, expand: int = _EXPAND) -> ParticlePosterior:
    return DVTS(model, budget // expand, expand, max_plate_nesting=1).run(problems)


def _tempered_smc(model: ReasoningModel, problems: list[str], budget: int) -> ParticlePosterior:
    # A move writes half a solution anew on average: N (1 + 2 / 2) generations.
    return TemperedSMC(model, budget // 2, betas=list(_LADDER), kernel=SuffixMH, max_plate_nesting=1).run(problems)


def _parallel_tempering(model: ReasoningModel, problems: list[str], budget: int) -> ParticlePosterior:
    # Every replica starts with a solution, and a round writes half of each anew on average.
    rounds = max(1, 2 * budget // len(_LADDER) - 2)
    warmup = rounds // 4
    return ParallelTempering(model, list(_LADDER), SuffixMH, max_plate_nesting=1).run(rounds - warmup, problems, warmup_steps=warmup)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("importance", "independent samples, weighted by the model's factors", None, "posterior"),
        Method("self-consistency", "majority of independent samples", None, "majority"),
        Method("best-of-n", "independent samples, the one with the best score", None, "best-of-n"),
        Method("weighted-best-of-n", "independent samples, each votes with its score", None, "weighted"),
        Method(
            "smc",
            "particle filter with the preset's resampling",
            _smc,
            "preset",
            defaults={"islands": 1, "resampler": "systematic", "ess_threshold": 0.5},
        ),
        Method(
            "particle-gibbs",
            f"{_SWEEPS} filters of B / {_SWEEPS} particles, each around a solution of the one before",
            _particle_gibbs,
            "posterior",
            2 * _SWEEPS,
            defaults={"sweeps": _SWEEPS},
        ),
        Method(
            "beam-search",
            f"B / {_EXPAND} beams, {_EXPAND} continuations each",
            _beam_search,
            "weighted",
            _EXPAND,
            defaults={"expand": _EXPAND},
        ),
        Method(
            "dvts",
            f"B / {_EXPAND} subtrees, {_EXPAND} continuations each",
            _dvts,
            "weighted",
            _EXPAND,
            defaults={"expand": _EXPAND},
        ),
        Method("tempered-smc", "whole solutions, reweighted and moved along a ladder of powers", _tempered_smc, "posterior", 2),
        Method("parallel-tempering", "chains at several powers that swap their solutions", _parallel_tempering, "posterior", len(_LADDER)),
    )
}


def get_method(name: str) -> Method:
    """A method by name, with options after colons: ``smc:preset=as_paper``, ``smc:resampler=multinomial:islands=4``,
    ``particle-gibbs:sweeps=8``, ``dvts:expand=8``.

    :raises ValueError: for an unknown name, with the nearest known one, or for options that it does not take.
    """
    base, *items = name.split(":")
    if base not in METHODS:
        raise unknown_name("method", base, METHODS)
    method = METHODS[base]
    if not items:
        return method
    known = (*method.defaults, *(() if method.run is None else _MODEL_OPTIONS))
    options: dict[str, Any] = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator or not text:
            raise ValueError(f"method {name!r}: expected option=value after the colon, got {item!r}")
        if key not in known:
            raise unknown_name(f"{base} option", key, known) if known else ValueError(f"method {base!r} takes no options")
        options[key] = _value(method, key, text)
    chosen = replace(method, name=name, options=options, least=_least(method, options))
    chosen.adapted(reasoning(None, None))  # type: ignore[arg-type]
    if base == "smc":
        checked = {key: value for key, value in options.items() if key in method.defaults}
        SMC(lambda: None, chosen.least, **checked)
    return chosen


def _value(method: Method, key: str, text: str) -> Any:
    kind = type(method.defaults[key]) if key in method.defaults else float if key == "score_temperature" else str
    value: Any
    try:
        value = kind(text)
    except ValueError as error:
        raise ValueError(f"method {method.name!r}: {key} must be {'an integer' if kind is int else 'a number'}, got {text!r}") from error
    if kind is int and value < 1:
        raise ValueError(f"method {method.name!r}: {key} must be at least 1, got {text!r}")
    return value


def _least(method: Method, options: Mapping[str, Any]) -> int:
    if "sweeps" in options:
        return 2 * int(options["sweeps"])
    return max(method.least, int(options.get("islands", 1))) if "expand" not in options else int(options["expand"])
