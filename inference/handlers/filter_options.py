"""The options of a particle filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..resampling import Resampler, systematic
from ..resampling.base import is_scheme
from ..resampling.selection import Selection
from ..util.checked import check_fields
from ..util.fingerprint import name_of
from ..util.validation import check_particles
from .proposal_messenger import Proposals, check_proposals


@dataclass(frozen=True)
class FilterOptions:
    """Options that all particle filters of an algorithm share.

    :param int num_particles: N.
    :param int max_plate_nesting: number of nested plates in the model.
    :param resampler: a resampling scheme.
    :param float ess_threshold: resample at a barrier where ESS <= threshold * N; 1 is always, 0 never.
    :param proposals: per-site proposals, see :class:`ProposalMessenger`; the prior where there is none.
    :param bool resample_finished: also resample populations whose every particle is done.
    :param bool record_log_probs: keep every site's log-probability, for the audit.
    :param Selection selection: weights to resample in proportion to, instead of the particles' own.
    :param bool may_die: whether a sweep continues where every population is dead; otherwise it raises :class:`SMCFailed`.
    :raises ValueError: for numbers out of range.
    """

    num_particles: int
    max_plate_nesting: int = 0
    resampler: Resampler = systematic
    ess_threshold: float = 0.5
    proposals: Proposals | None = None
    resample_finished: bool = False
    record_log_probs: bool = False
    selection: Selection | None = None
    may_die: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_particles(self.num_particles, self.ess_threshold, self.max_plate_nesting)
        selection, resampler = self.selection, self.resampler
        if selection is not None and not (callable(selection) and hasattr(selection, "keeps_target")):
            raise ValueError(f"selection must be a function with an attribute keeps_target, such as EntropicAnnealing, got {selection!r}")
        # A scheme may be for conditional filters alone.
        if not is_scheme(resampler) and not callable(getattr(resampler, "conditional", None)):
            raise ValueError(f"resampler must be the name of a scheme, or a function with num_uniforms(n), got {resampler!r}")
        if self.proposals is not None:
            check_proposals(self.proposals)

    def settings(self, **others: Any) -> dict[str, Any]:
        """As plain values, those of the algorithm among them: a run that is resumed must have the same."""
        return {
            "num_particles": self.num_particles,
            **others,
            "max_plate_nesting": self.max_plate_nesting,
            "resampler": name_of(self.resampler),
            "ess_threshold": float(self.ess_threshold),
            "resample_finished": self.resample_finished,
            "proposals": sorted(self.proposals) if isinstance(self.proposals, Mapping) else name_of(self.proposals),
            "selection": name_of(self.selection),
            "record_log_probs": self.record_log_probs,
        }
