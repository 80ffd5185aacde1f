"""What the user asked for, and the model and algorithm it stands for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .methods import get_method

if TYPE_CHECKING:
    from ..inference import SMC, ParticlePosterior
    from ..models import ReasoningModel

_OPTIONS = {
    "num_particles": "--particles",
    "ess_threshold": "--ess-threshold",
    "max_steps": "--max-steps",
    "max_tokens": "--max-tokens",
    "temperature": "--temperature",
}
"""Options that stand for a parameter of another name in the library's messages."""

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Settings:
    """The options of ``solve``. ``None`` leaves the choice to the preset or the library."""

    lm: str = "demo"
    prm: str = "demo"
    method: str = "smc"
    particles: int = 16
    preset: str = "exact"
    ess_threshold: float | None = None
    resampler: str | None = None
    max_steps: int = 40
    max_tokens: int | None = None
    temperature: float = 1.0
    seed: int = 0
    audit: bool = False

    def build(self, lm: Any, prm: Any, callback: Callable[[ParticlePosterior], None] | None = None) -> tuple[ReasoningModel, SMC]:
        """The Pyro model and the algorithm around it.

        :raises ValueError: for options out of range, in the library's words.
        """
        from ..models import reasoning

        method = get_method(self.method)
        given: dict[str, Any] = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        model = reasoning(lm, prm, preset=self.preset, max_steps=self.max_steps, temperature=self.temperature, **given)
        overrides = {"resampler": self.resampler, "ess_threshold": self.ess_threshold}
        overrides = {name: value for name, value in overrides.items() if value is not None}
        if overrides and not method.resamples:
            unused = " and ".join(f"--{name.replace('_', '-')}" for name in overrides)
            raise ValueError(f"method {self.method!r} never resamples, so {unused} has no effect; leave it out, or choose --method smc")
        scheme = {**model.preset.smc, **overrides} if method.resamples else {}
        return model, method.load()(model, self.particles, audit=self.audit, callback=callback, **scheme)

    def check(self) -> None:
        """Everything that can be known before any model is loaded.

        :raises ValueError: for options out of range, naming the option.
        """
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"--seed must lie in 0 .. {MAX_SEED}, got {self.seed}")
        try:
            self.build(None, None)
        except ValueError as error:
            parameter = re.match(r"\w+", str(error))
            option = _OPTIONS.get(parameter[0]) if parameter else None
            raise ValueError(option + str(error)[parameter.end() :] if parameter and option else str(error)) from error

    def describe(self) -> dict[str, Any]:
        """All settings as they take effect, the preset's included."""
        method = get_method(self.method)
        model, _ = self.build(None, None)
        resampling = {"resampler": self.resampler or model.preset.resampler, "ess_threshold": self.ess_threshold}
        if resampling["ess_threshold"] is None:
            resampling["ess_threshold"] = model.preset.ess_threshold
        return {
            "lm": self.lm,
            "prm": self.prm,
            "method": self.method,
            "preset": self.preset,
            "particles": self.particles,
            **(resampling if method.resamples else {"resampler": None, "ess_threshold": None}),
            "max_steps": self.max_steps,
            "max_tokens": model.options.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }
