"""The algorithms that ``--method`` knows, and how the options of ``solve`` become their arguments."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..inference import ParticlePosterior
    from ..programs.models import ReasoningModel

Options = Mapping[str, Any]
Callback = Callable[["ParticlePosterior"], None]
Run = Callable[[Any], "ParticlePosterior"]
"""From a problem to its posterior."""


def _library(name: str) -> Any:
    """A name of ``ppl_llm.inference``, imported on first use."""
    return getattr(importlib.import_module("ppl_llm.inference"), name)


@dataclass(frozen=True)
class Method:
    """An algorithm of ``ppl_llm.inference``.

    :ivar str algorithm: name of the class.
    :ivar str line: what it does, in a line.
    :ivar build: from the class, a model, the options and a callback to a run.
    :ivar str unit: what it reports after: ``step``, or ``iteration`` of a chain, or ``stage`` of a ladder.
    :ivar dict options: options of ``solve`` that it takes, with its defaults; ``None`` is the preset's or the library's.
    """

    algorithm: str
    line: str
    build: Callable[[Any, ReasoningModel, Options, Callback | None], Run]
    unit: str = "step"
    options: dict[str, Any] = field(default_factory=dict)

    def start(self, model: ReasoningModel, options: Options, callback: Callback | None = None) -> Run:
        """The algorithm around a model, ready to run.

        :raises ValueError: for options out of range, in the library's words; for a preset that is no model of a single solution under an
            algorithm that needs one.
        """
        if self.unit != "step" and model.preset.finished != "neutral":
            raise ValueError(
                f"--preset {model.preset.name} weighs a solution by when the last of its population finishes, and {self.algorithm} needs "
                "weights of its own for each; choose --preset exact or twisted, or --method smc"
            )
        return self.build(_library(self.algorithm), model, options, callback)


def _smc(smc: Any, model: ReasoningModel, o: Options, callback: Callback | None) -> Run:
    scheme = {**model.preset.smc, **_scheme(o)}
    run: Run = smc(
        model, o["particles"], islands=o["islands"], max_tokens_total=o["max_tokens_total"], audit=o["audit"], callback=callback, **scheme
    ).run
    return run


def _importance(importance: Any, model: ReasoningModel, o: Options, callback: Callback | None) -> Run:
    run: Run = importance(model, o["particles"], audit=o["audit"], callback=callback).run
    return run


def _scheme(o: Options) -> dict[str, Any]:
    return {"resampler": o["resampler"], "ess_threshold": o["ess_threshold"]}


def _chain(kernel: Any, o: Options, callback: Callback | None) -> Run:
    """A kernel run for ``--iterations`` after ``--warmup``."""
    from ..inference.util.validation import check_count

    check_count("iterations", o["iterations"])
    check_count("warmup", o["warmup"], 0)
    return lambda problem: kernel.run(o["iterations"], problem, warmup_steps=o["warmup"], callback=callback)


def _particle_gibbs(kernel: Any, model: ReasoningModel, o: Options, callback: Callback | None) -> Run:
    built = kernel(model, o["particles"], ancestor_sampling=o["ancestor_sampling"], num_references=o["references"], **_scheme(o))
    return _chain(built, o, callback)


def _pimh(kernel: Any, model: ReasoningModel, o: Options, callback: Callback | None) -> Run:
    return _chain(kernel(model, o["particles"], **_scheme(o)), o, callback)


def _suffix_mh(kernel: Any, model: ReasoningModel, o: Options, callback: Callback | None) -> Run:
    return _chain(kernel(model), o, callback)


def _tempered_smc(smc: Any, model: ReasoningModel, o: Options, callback: Callback | None) -> Run:
    kernel = _moves(o["kernel"])
    run: Run = smc(model, o["particles"], betas=parse_betas(o["betas"]), kernel=kernel, callback=callback, **_scheme(o)).run
    return run


def _parallel_tempering(kernel: Any, model: ReasoningModel, o: Options, callback: Callback | None) -> Run:
    return _chain(kernel(model, parse_betas(o["betas"]), _moves(o["kernel"])), o, callback)


def _beam_search(search: Any, model: ReasoningModel, o: Options, callback: Callback | None) -> Run:
    run: Run = search(model, o["beam_width"], o["expand"], callback=callback).run
    return run


def _dvts(search: Any, model: ReasoningModel, o: Options, callback: Callback | None) -> Run:
    run: Run = search(model, o["subtrees"], o["expand"], callback=callback).run
    return run


def _vote(search: Any, model: ReasoningModel, o: Options, callback: Callback | None) -> Run:
    run: Run = search(model, o["particles"], callback=callback).run
    return run


KERNELS = {"suffix-mh": ("SuffixMH", {}), "particle-gibbs": ("ParticleGibbs", {"num_particles": 4})}
"""Moves of the tempered methods."""


def _moves(name: str) -> Any:
    if name not in KERNELS:
        from ..inference.util.validation import unknown_name

        raise unknown_name("kernel", name, KERNELS)
    kernel, arguments = KERNELS[name]
    return partial(_library(kernel), **arguments)


def parse_betas(text: str) -> Any:
    """``adaptive``, or powers such as ``0,0.3,1``.

    :raises ValueError: for anything else.
    """
    if text == "adaptive":
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--betas must be numbers separated by commas, such as 0,0.3,1, or adaptive, got {text!r}") from error


_PARTICLES = {"particles": 16}
_RESAMPLING: dict[str, Any] = {"resampler": None, "ess_threshold": None}

METHODS: dict[str, Method] = {
    "smc": Method(
        "SMC",
        "particle filter: resamples solutions by their scores while they are written",
        _smc,
        options={**_PARTICLES, **_RESAMPLING, "islands": 1, "max_tokens_total": None, "audit": False},
    ),
    "importance": Method(
        "Importance",
        "independent solutions, weighted by their scores (weighted best-of-N)",
        _importance,
        options={**_PARTICLES, "audit": False},
    ),
    "particle-gibbs": Method(
        "ParticleGibbs",
        "chain of particle filters, each around a solution that the one before drew",
        _particle_gibbs,
        "iteration",
        {**_PARTICLES, **_RESAMPLING, "iterations": 4, "warmup": 0, "ancestor_sampling": False, "references": 1},
    ),
    "pimh": Method(
        "PIMH",
        "chain of independent particle filters, each kept or left by its evidence",
        _pimh,
        "iteration",
        {**_PARTICLES, **_RESAMPLING, "iterations": 4, "warmup": 0},
    ),
    "suffix-mh": Method(
        "SuffixMH",
        "chain that writes the end of a solution anew and accepts by the scores",
        _suffix_mh,
        "iteration",
        {"iterations": 40, "warmup": 10},
    ),
    "tempered-smc": Method(
        "TemperedSMC",
        "whole solutions, reweighted and moved while the scores gain power",
        _tempered_smc,
        "stage",
        {**_PARTICLES, "resampler": "systematic", "ess_threshold": 0.5, "betas": "adaptive", "kernel": "suffix-mh"},
    ),
    "parallel-tempering": Method(
        "ParallelTempering",
        "chains at several powers of the scores that swap their solutions",
        _parallel_tempering,
        "iteration",
        {"betas": "0,0.3,1", "kernel": "suffix-mh", "iterations": 40, "warmup": 10},
    ),
    "beam-search": Method(
        "BeamSearch",
        "keeps the best beams at every step and copies them; no posterior",
        _beam_search,
        options={"beam_width": 4, "expand": 4},
    ),
    "dvts": Method(
        "DVTS", "independent greedy searches, each step the best of several; no posterior", _dvts, options={"subtrees": 4, "expand": 4}
    ),
    "best-of-n": Method("BestOfN", "independent solutions, the one with the best score; no posterior", _vote, options=_PARTICLES),
    "self-consistency": Method("SelfConsistency", "majority of independent solutions, without scores", _vote, options=_PARTICLES),
}

NOT_HERE = "In Python only: Enumeration (exact, for models that can be listed) and PMMH (for models with unknown parameters)."
"""Algorithms that make no sense for a language model given on the command line."""


def get_method(name: str) -> Method:
    """A method by name.

    :raises ValueError: for an unknown name, with the nearest known one.
    """
    if name not in METHODS:
        from ..inference.util.validation import unknown_name

        raise unknown_name("method", name, METHODS)
    return METHODS[name]
