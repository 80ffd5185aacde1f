"""What the user asked for, and the model and algorithm it stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .methods import METHODS, Callback, Run, get_method

if TYPE_CHECKING:
    from ..programs.models import ReasoningModel

_OPTIONS = {"num_particles": "--particles", "num_subtrees": "--subtrees", "num_references": "--references"} | {
    name: f"--{name.replace('_', '-')}"
    for name in ("max_steps", "max_tokens", "temperature", *{option for method in METHODS.values() for option in method.options})
}
"""Options by the name of the parameter in the library's messages."""

MAX_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of ``solve``. ``None`` leaves the choice to the method, the preset or the library."""

    lm: str = "demo"
    prm: str = "demo"
    method: str = "smc"
    preset: str = "exact"
    max_steps: int = 40
    max_tokens: int | None = None
    temperature: float = 1.0
    seed: int = 0
    particles: int | None = None
    resampler: str | None = None
    ess_threshold: float | None = None
    iterations: int | None = None
    warmup: int | None = None
    beam_width: int | None = None
    expand: int | None = None
    subtrees: int | None = None
    betas: str | None = None
    kernel: str | None = None
    ancestor_sampling: bool | None = None
    references: int | None = None
    islands: int | None = None
    max_tokens_total: int | None = None
    audit: bool | None = None
    dtype: str | None = None

    @property
    def title(self) -> str:
        """The method with its numbers."""
        return " ".join([self.method, *(f"{name.replace('_', ' ')} {n}" for name, n in self.chosen().items() if type(n) is int)])

    def chosen(self) -> dict[str, Any]:
        """The method's options: what was given, else the method's defaults, which may be ``None``.

        :raises ValueError: for an option that was given and that the method does not take.
        """
        method = get_method(self.method)
        for option in {name: None for each in METHODS.values() for name in each.options}:
            if getattr(self, option) is not None and option not in method.options:
                takers = ", ".join(name for name, each in METHODS.items() if option in each.options)
                raise ValueError(f"{_OPTIONS[option]} has no effect with --method {self.method}; it goes with {takers}")
        given = {name: getattr(self, name) for name in method.options}
        return {name: default if given[name] is None else given[name] for name, default in method.options.items()}

    def build(self, lm: Any, prm: Any, callback: Callback | None = None) -> tuple[ReasoningModel, Run]:
        """The Pyro model, and the run of the algorithm around it.

        :raises ValueError: for options out of range, in the library's words.
        """
        model = self._model(lm, prm)
        return model, get_method(self.method).start(model, self._effective(model), callback)

    def _model(self, lm: Any, prm: Any) -> ReasoningModel:
        from ..programs.models import reasoning

        get_method(self.method)
        given: dict[str, Any] = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return reasoning(lm, prm, preset=self.preset, max_steps=self.max_steps, temperature=self.temperature, **given)

    def _effective(self, model: ReasoningModel) -> dict[str, Any]:
        """The method's options, with the preset's where nothing was given."""
        preset = {"resampler": model.preset.resampler, "ess_threshold": model.preset.ess_threshold}
        return {name: preset.get(name) if value is None else value for name, value in self.chosen().items()}

    def check(self) -> None:
        """Everything that can be known before any model is loaded.

        :raises ValueError: for options out of range, naming the option.
        """
        from ..lm.loading import parse_dtype

        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"--seed must lie in 0 .. {MAX_SEED}, got {self.seed}")
        try:
            parse_dtype(self.dtype)
            self.build(None, None)
        except ValueError as error:
            parameter = re.match(r"\w+", str(error))
            option = _OPTIONS.get(parameter[0]) if parameter else None
            raise ValueError(option + str(error)[parameter.end() :] if parameter and option else str(error)) from error

    def describe(self) -> dict[str, Any]:
        """All settings as they take effect, the preset's included; ``None`` where the method takes no such option."""
        model = self._model(None, None)
        return {
            "lm": self.lm,
            "prm": self.prm,
            "method": self.method,
            "preset": self.preset,
            **{"particles": None, "resampler": None, "ess_threshold": None},
            **{name: value for name, value in self._effective(model).items() if name != "audit"},
            "max_steps": self.max_steps,
            "max_tokens": model.options.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            **({} if self.dtype is None else {"dtype": self.dtype}),
        }
