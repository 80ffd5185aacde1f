"""What an explanation of a posterior is made of."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Competitor:
    """An answer.

    :ivar float probability: under the weights; of a search its share of the votes.
    :ivar int particles: that have it and a weight.
    :ivar tuple steps: of its heaviest solution.
    :ivar tuple scores: of these steps; ``None`` where they are not known.
    """

    answer: Hashable
    probability: float
    particles: int
    steps: tuple[str, ...]
    scores: tuple[float | None, ...]


@dataclass(frozen=True)
class Parting:
    """Where the solutions of the first two answers part: of all pairs, those that stay together longest.

    :ivar int step: the first that differs, from 1.
    :ivar tuple shared: the steps before it.
    :ivar str first: that step of the leading answer; empty where its solution has ended.
    :ivar str second: of the other one.
    :ivar int common: of the shared steps those that both have from one particle, which was resampled; ``None`` where nothing was.
    """

    step: int
    shared: tuple[str, ...]
    first: str
    second: str
    common: int | None


@dataclass(frozen=True)
class Disliked:
    """A step with a low score.

    :ivar int step: from 1.
    :ivar float score: the reward's probability that it is right.
    :ivar answer: that most of the weight of the solutions with this step has; ``None`` for none.
    :ivar bool dropped: whether no solution with a weight has it any more.
    """

    step: int
    text: str
    score: float
    answer: Hashable
    dropped: bool


@dataclass(frozen=True)
class Explanation:
    """What :meth:`ParticlePosterior.explain` found, for a single problem; ``str()`` says it in words.

    :ivar str kind: ``exact``, ``posterior``, ``votes`` of a search, or ``scores`` where the best one decides.
    :ivar list competitors: answers, the most probable first.
    :ivar float no_answer: weight without an answer.
    :ivar float entropy: of the answers, in nats; what has no answer counts as one.
    :ivar float ess: effective sample size of the weights.
    :ivar int num_particles: N, over all parts.
    :ivar int distinct: different solutions with a weight.
    :ivar int ancestors: particles of the first step from which those with a weight descend; of a chain the distinct iterations.
    :ivar bool chain: whether particles are those of the iterations of a Markov chain.
    :ivar float error: standard error of the leader's probability; ``None`` where the run cannot tell.
    :ivar float lead_error: of its lead over the second answer.
    :ivar float log_evidence: ``None`` where there is none.
    :ivar list part_log_evidences: of independent parts.
    :ivar Parting parting: ``None`` with fewer than two answers, or where nothing is known of the steps.
    :ivar list disliked: steps of solutions with a weight, the least score first.
    :ivar Disliked dropped: the least of those that died out.
    :ivar int more_particles: of average weight with the second answer that would put it ahead.
    :ivar float reward_margin: log-factor, in nats, by which every solution of the leader would have to be worth less for a tie; where the
        best score decides, the difference of the two best.
    :ivar list unknown: what cannot be said, and why.
    :ivar list lines: all of it in words, a sentence or a few in each.
    """

    kind: str
    competitors: list[Competitor]
    no_answer: float
    entropy: float
    ess: float
    num_particles: int
    distinct: int
    ancestors: int
    chain: bool
    error: float | None
    lead_error: float | None
    log_evidence: float | None
    part_log_evidences: list[float]
    parting: Parting | None
    disliked: list[Disliked]
    dropped: Disliked | None
    more_particles: int | None
    reward_margin: float | None
    unknown: list[str]
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
