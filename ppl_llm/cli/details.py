"""What a posterior tells besides its answers; it depends on the algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..inference import ParticlePosterior


class Details(NamedTuple):
    """
    :ivar float log_evidence: ``None`` where the algorithm gives none.
    :ivar str no_evidence: why, in the library's words.
    :ivar str unit: what ``ess`` and ``resampled`` are a list over: ``step``, ``batch``, ``iteration`` or ``stage``.
    :ivar bool estimates: whether the weights estimate the model's posterior; those of a search are votes.
    :ivar list ess: effective sample size; the least of several islands.
    :ivar dict values: what else there is, for programs.
    :ivar list lines: the same as text.
    """

    log_evidence: float | None
    no_evidence: str | None
    unit: str
    estimates: bool
    ess: list[float]
    resampled: list[bool]
    values: dict[str, Any]
    lines: list[str]


_LINES = {
    "betas": "powers",
    "move_rates": "moved",
    "swap_rates": "swap rates",
    "acceptance_rate": "accepted",
    "step_size_scale": "step size times",
}
"""How people read the diagnostics of some algorithms."""


def details(posterior: ParticlePosterior) -> Details:
    """Of the posterior of a single problem."""
    values = posterior.diagnostics()
    log_evidence, reason = values.pop("log_evidence", None), values.pop("no_evidence", None)
    ess, resampled, complete = values.pop("ess"), values.pop("resampled"), values.pop("complete")
    if not values["dead"]:
        values.pop("dead")
    values = {name: value for name, value in values.items() if name not in ("num_particles", "method")}
    lines = []
    if "dead" in values:
        lines.append("every particle has weight zero: none satisfies what is observed, so there is no answer")
    if values.get("distinct_iterations", 0) < values.get("iterations", 0):
        lines.append(f"{values['distinct_iterations']} of {values['iterations']} iterations differ: the others kept the state before")
    if "islands" in values:
        lines.append("log evidence of the islands " + _numbers([island["log_evidence"] for island in values["islands"]]))
    if "batches" in values:
        end = "the vote was settled" if values["stopped"] else "the vote was not settled"
        lines.append(f"{values['num_drawn']} solutions in {values['batches']} batches: {end}")
    for name, text in _LINES.items():
        if name in values:
            lines.append(f"{text} {_numbers(values[name] if isinstance(values[name], list) else [values[name]])}")
    if not complete:
        values["complete"] = False
        drafts = "draft_0_step_0" in posterior.sites and "step_0" not in posterior.sites
        lines.append("stopped before every solution was finished" if not drafts else "stopped at the drafts: no solution follows them yet")
    return Details(log_evidence, reason, posterior.unit, posterior.estimates_posterior, ess, resampled, values, lines)


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
