"""What a method is: an algorithm, its options, how ``solve`` builds it, and what a budget of completions means for ``evaluate``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .options import KERNELS, Option

if TYPE_CHECKING:
    from ..inference import Equivalent, ParticlePosterior
    from ..programs.models import ReasoningModel

Options = Mapping[str, Any]
Callback = Callable[["ParticlePosterior"], None]
Run = Callable[[Any], Any]
"""From a problem, or a list of them, to the posterior; of a list with ``until`` to a list of posteriors, one for each problem."""


class Call(NamedTuple):
    """How an algorithm is called, whatever it is.

    :ivar callback: called with the posterior so far after each step, iteration or stage.
    :ivar int max_plate_nesting: 0 for a problem, 1 for a list of them.
    :ivar proposals: of its steps; for methods that take them, see :attr:`Method.proposes`.
    :ivar equivalent: when two answers are the same, for rules that count votes while it runs.
    :ivar bool may_die: whether a run of a list of problems ends with a posterior also where all of them are dead, as where some are: what
        a problem is recorded as must not depend on those that share its batch, and votes that ask no reward need the samples.
    """

    callback: Callback | None = None
    max_plate_nesting: int = 0
    proposals: Any = None
    equivalent: Equivalent | None = None
    may_die: bool = False

    def keywords(self) -> dict[str, Any]:
        """Of an algorithm; proposals only where there are any, as not all take them."""
        own = {"callback": self.callback, "max_plate_nesting": self.max_plate_nesting}
        return own if self.proposals is None else {**own, "proposals": self.proposals}

    def run_of(self, algorithm: Any) -> Run:
        """The run of an algorithm that was made with these keywords."""
        if self.may_die and hasattr(getattr(algorithm, "options", None), "may_die"):
            algorithm.options = replace(algorithm.options, may_die=True)
        run: Run = algorithm.run
        return run


Build = Callable[[Any, "ReasoningModel", Options, Call], Run]
"""From the algorithm's class, a model and options to a run."""


@dataclass(frozen=True)
class Budget:
    """How a method spends a budget of B complete solutions per problem.

    :ivar str line: in words, for tables.
    :ivar str vote: how the answer is chosen from the candidates, see ``VOTES`` in :mod:`ppl_llm.evaluation.votes`; ``preset`` leaves it
        to the preset.
    :ivar sizes: from B and the options that do not depend on it to those that do.
    :ivar least: from the options to the smallest B.
    :ivar tuple free: the method's options that a name may set under a budget; the others follow from B. Of a shared vote only with
        ``until``, since its batches are not those that others share.
    :ivar tuple extra: options that there are only under a budget.
    :ivar dict defaults: of the method's options, in place of those of ``solve``.
    :ivar bool shared: a vote over independent samples, which all such methods share.
    :ivar tuple voting: options of the vote alone, which shared samples do not depend on.
    """

    line: str
    vote: str
    sizes: Callable[[int, Options], dict[str, Any]] = lambda budget, options: {"particles": budget}
    least: Callable[[Options], int] = lambda options: 1
    free: tuple[str, ...] = ()
    extra: tuple[Option, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    voting: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """An algorithm of :mod:`ppl_llm.inference` as the command line and evaluations run it.

    :ivar str name: on the command line.
    :ivar str algorithm: name of the class.
    :ivar str line: what it does, in a line.
    :ivar tuple options: that ``solve`` offers, with the method's defaults.
    :ivar build: makes a run; ``None`` for a vote that only evaluations have.
    :ivar str unit: what it reports after: ``step``, or ``iteration`` of a chain, or ``stage`` of a ladder.
    :ivar Budget budget: what a budget means; ``None`` where evaluations do not have it.
    :ivar bool proposes: whether it takes proposals.
    :ivar bool scored: whether it asks a reward; one that does not needs none.
    :ivar bool settles: whether every solution at the end continues one of those that its callback sees after each step. What all of
        these begin with is settled then: whatever is chosen begins with it.
    :ivar float power: of the target, where none is given; a method with a power asks the reward that there is, and needs none.
    :ivar bool tempers: whether it can draw solutions at the temperature that fits a power.
    :ivar bool embeds: whether it compares solutions by the language model's hidden states.
    """

    name: str
    algorithm: str
    line: str
    options: tuple[Option, ...]
    build: Build | None
    unit: str = "step"
    budget: Budget | None = None
    proposes: bool = False
    scored: bool = True
    settles: bool = False
    power: float = 1.0
    tempers: bool = False
    embeds: bool = False

    def needs_reward(self, power: float | None = None) -> bool:
        """Whether it can do nothing without a reward.

        :param float power: of the model, where one was given.
        """
        return self.scored and self.power == 1 and power in (None, 1)

    @property
    def votes_by_weight(self) -> bool:
        """Whether answers under a budget come with a posterior probability."""
        return self.budget is not None and self.budget.vote in ("posterior", "preset")

    def option(self, name: str) -> Option | None:
        """The option of this name, if it takes one."""
        return next((option for option in self.options if option.name == name), None)

    def settled(self, model: ReasoningModel, given: Options) -> dict[str, Any]:
        """All options: what was given, else the method's defaults, else the preset's."""
        preset = {"resampler": model.preset.resampler, "ess_threshold": model.preset.ess_threshold}
        chosen = {option.name: given.get(option.name) for option in self.options}
        chosen = {o.name: o.default if chosen[o.name] is None else chosen[o.name] for o in self.options}
        return {name: preset.get(name) if value is None else value for name, value in chosen.items()}

    def unit_under(self, given: Options) -> str:
        """What it reports after with these options."""
        return "batch" if given.get("until") is not None else self.unit

    def settles_under(self, given: Options) -> bool:
        """Whether it :attr:`settles` with these options. A later batch begins new solutions, and moves rewrite the ends of old ones."""
        return self.settles and self.unit_under(given) == "step" and not given.get("moves")

    def check_lm(self, lm: Any) -> None:
        """
        :param lm: a language model, or ``None`` where it is not loaded yet.
        :raises ValueError: for one that lacks what the method asks of it.
        """
        if self.embeds and lm is not None and not hasattr(lm, "hidden_states"):
            raise ValueError(
                f"method {self.name} compares solutions by hidden states, which {type(lm).__name__} does not give: choose rebase, or a "
                "language model that runs here"
            )

    def start(self, model: ReasoningModel, given: Options, call: Call | None = None) -> Run:
        """The algorithm around a model, ready to run.

        :param dict given: options in place of the defaults.
        :raises ValueError: for options out of range, in the library's words; for a preset that is no model of a single solution under an
            algorithm that needs one; for a power under a method that weighs nothing; for a language model as in :meth:`check_lm`.
        """
        assert self.build is not None, self.name
        self.check_lm(model.lm)
        in_batches = self.unit_under(given) == "batch" and self.scored
        if (self.unit != "step" or in_batches) and model.preset.finished != "neutral":
            raise ValueError(
                f"--preset {model.preset.name} weighs a solution by when the last of its population finishes, and "
                f"{'--until' if in_batches else self.algorithm} needs weights of its own for each; choose --preset exact or twisted, or "
                f"--method {'self-consistency' if in_batches else 'smc'}"
            )
        if not self.scored and model.power != 1:
            raise ValueError(
                f"--power {model.power:g} has no effect with --method {self.name}, which draws solutions as the language model writes "
                "them and weighs none; choose --method power-smc or power-mh, or a lower --temperature"
            )
        call = call or Call()
        if self.tempers and call.proposals is None:
            call = call._replace(proposals=at_power(model))
        return self.build(library(self.algorithm), model, self.settled(model, given), call)


def at_power(model: ReasoningModel) -> Any:
    """Proposals that fit a power target: steps at the temperature divided by the power.

    ``None`` for a model without a power, and for one that is truncated (``top_p``, ``top_k``): what a lower temperature finds probable may
    lie outside of it, and the model's own steps are exact as well.
    """
    o = model.options
    if model.power == 1 or o.top_p < 1 or o.top_k is not None or not isinstance(o.temperature, float | int):
        return None
    from ..programs.step_proposal import StepProposal

    return StepProposal(temperature=o.temperature / model.power)


def library(name: str) -> Any:
    """A name of ``ppl_llm.inference`` or ``ppl_llm``, imported on first use: the command line must not wait for torch to show its help."""
    inference = importlib.import_module("ppl_llm.inference")
    return getattr(inference, name) if hasattr(inference, name) else getattr(importlib.import_module("ppl_llm"), name)


def moves(name: str) -> Any:
    """The kernel of this name, see ``KERNELS``."""
    kernel, arguments = KERNELS[name]
    return partial(library(kernel), **arguments)


def scheme(o: Options) -> dict[str, Any]:
    """The resampling keywords."""
    return {"resampler": o["resampler"], "ess_threshold": o["ess_threshold"]}


def chain(kernel: Any, o: Options, call: Call) -> Run:
    """A kernel run for ``iterations`` after ``warmup``."""
    return lambda problem: kernel.run(o["iterations"], problem, warmup_steps=o["warmup"], callback=call.callback)
