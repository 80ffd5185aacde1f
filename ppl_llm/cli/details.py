"""What a posterior tells besides its answers; it depends on the algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..inference import ParticlePosterior


class Details(NamedTuple):
    """
    :ivar float log_evidence: ``None`` where the algorithm gives none.
    :ivar str no_evidence: why, in the library's words.
    :ivar str unit: what ``ess`` and ``resampled`` are a list over: ``step``, ``iteration`` or ``stage``.
    :ivar bool estimates: whether the weights estimate the model's posterior; those of a search are votes.
    :ivar list ess: effective sample size; the least of several islands.
    :ivar dict values: what else there is, for programs.
    :ivar list lines: the same for people.
    """

    log_evidence: float | None
    no_evidence: str | None
    unit: str
    estimates: bool
    ess: list[float]
    resampled: list[bool]
    values: dict[str, Any]
    lines: list[str]


def details(posterior: ParticlePosterior) -> Details:
    """Of the posterior of a single problem."""
    from ..inference.posterior.search_posterior import SearchPosterior

    try:
        log_evidence, reason = float(posterior.log_evidence), None
    except ValueError as error:
        log_evidence, reason = None, str(error)
    values: dict[str, Any] = {}
    lines = []
    unit, ess, resampled = "step", posterior.ess.tolist(), posterior.resampled.bool().tolist()
    if hasattr(posterior, "iterations"):
        unit = "iteration"
        ess = [float(each.get_ESS()) for each in posterior.iterations]
        resampled = [bool(each.resampled.any()) for each in posterior.iterations]
        values["iterations"] = len(posterior.iterations)
        values["distinct_iterations"] = len(posterior.parts)
        if len(posterior.parts) < len(posterior.iterations):
            lines.append(f"{len(posterior.parts)} of {len(posterior.iterations)} iterations differ: the others kept the state before")
    if hasattr(posterior, "islands"):
        islands = posterior.islands
        ess = [min(each) for each in zip(*(island.ess.tolist() for island in islands), strict=True)]
        resampled = [any(each) for each in zip(*(island.resampled.tolist() for island in islands), strict=True)]
        values["islands"] = [{"log_evidence": float(each.log_evidence), "ess": each.ess.tolist()} for each in islands]
        lines.append("log evidence of the islands " + _numbers([each["log_evidence"] for each in values["islands"]]))
    if hasattr(posterior, "betas"):
        values["betas"] = [float(beta) for beta in posterior.betas]
        lines.append("powers " + _numbers(values["betas"]))
    if hasattr(posterior, "move_rates"):
        unit = "stage"
        values["move_rates"] = posterior.move_rates.tolist()
        lines.append("moved " + _numbers(values["move_rates"]))
    for name, text in (("swap_rates", "swap rates"), ("acceptance_rate", "accepted")):
        if hasattr(posterior, name):
            rate = getattr(posterior, name)
            values[name] = rate.tolist() if hasattr(rate, "tolist") else rate
            lines.append(f"{text} {_numbers(values[name] if isinstance(values[name], list) else [values[name]])}")
    if not getattr(posterior, "complete", True):
        values["complete"] = False
        lines.append("stopped before every solution was finished")
    if getattr(posterior, "scores", None) is not None:
        values["scores"] = posterior.scores.tolist()
    return Details(log_evidence, reason, unit, not isinstance(posterior, SearchPosterior), ess, resampled, values, lines)


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
