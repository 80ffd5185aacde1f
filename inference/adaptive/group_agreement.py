"""Stop when all groups of candidates have settled on one answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable

from ..posterior.adaptive_posterior import AdaptivePosterior
from ..util.checked import checked
from ..util.validation import check_between
from .beta_majority import BetaMajority
from .stopping_rule import StoppingRule


class GroupAgreement(StoppingRule):
    """The vote is settled within every group of a :class:`TwoStageVote`, and all groups have the same answer: easy problems end early in a
    vote across temperatures [1].

    Within a group it is settled as :class:`BetaMajority` says, where the leader leads with this probability; without a dissenting vote 0.9
    takes 3 votes of each group, since 1 - 2^-4 = 0.9375. The published rule counts votes; this probability is of the present package.

    A group of which no candidate is drawn yet is not asked: batches should hold all groups, as many of each.

    :param float confidence: in (1/2, 1).
    :param str site: the latent site by whose value candidates are grouped.
    :raises ValueError: for a confidence out of range; when asked, for a run without the site.

    References

    [1] *On the Role of Temperature Sampling in Test-Time Scaling*, Yuheng Wu, Azalia Mirhoseini, Thierry Tambe (2025).
    """

    needs = "groups"

    @checked
    def __init__(self, confidence: float = 0.9, site: str = "temperature") -> None:
        check_between("confidence", confidence, 0.5, 1.0)
        self.confidence, self.site = float(confidence), site

    def __call__(self, posterior: AdaptivePosterior) -> bool:
        if self.site not in posterior.sites:
            raise ValueError(f"until: {self!r} compares groups by the latent site {self.site!r}, and the model has none of this name")
        groups = posterior.sites[self.site].flatten().tolist()
        counts: dict[float, Counter[Hashable]] = {group: Counter() for group in groups}
        for group, shares in zip(groups, posterior.votes.shares, strict=True):
            counts[group].update(answer for answer in shares if answer is not None)
        leaders = {self.leader(each) for each in counts.values()}
        return len(leaders) == 1 and None not in leaders

    def leader(self, counts: Counter[Hashable]) -> Hashable:
        """The answer on which a group has settled, ``None`` for none."""
        first, second = [*counts.most_common(2), (None, 0), (None, 0)][:2]
        settled = first[0] is not None and BetaMajority.probability(first[1], math.ceil(second[1])) >= self.confidence
        return first[0] if settled else None

    def __repr__(self) -> str:
        return f"GroupAgreement({self.confidence:g}{'' if self.site == 'temperature' else f', site={self.site!r}'})"
