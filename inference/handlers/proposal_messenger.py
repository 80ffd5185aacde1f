"""Per-site proposals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from ..particles.site_util import is_masked

Proposal = Any
"""A distribution, or a function of the site's message that returns one (or ``None`` for the prior)."""

Proposals = Mapping[str, Proposal] | Callable[[Any], Any]


def check_proposals(proposals: Any) -> None:
    """
    :raises ValueError: for anything but a function, or a mapping from names of sites to distributions and functions.
    """
    if not isinstance(proposals, Mapping):
        if not callable(proposals):
            raise ValueError(f"proposals must be a mapping from sites to distributions, or a function of a site, got {proposals!r}")
        return
    for name, proposal in proposals.items():
        if not isinstance(name, str):
            raise ValueError(f"proposals must be a mapping from names of sites, got the key {name!r}")
        if not callable(proposal) and not hasattr(proposal, "log_prob"):
            raise ValueError(f"proposals must be distributions, or functions of a site that return one, got {proposal!r} for site {name!r}")


class ProposalMessenger(Messenger):
    """Draws latent sites from proposals q instead of the prior p; the particle filter adds ``log p - log q`` to the weights.

    Enter it between :class:`~ppl_llm.inference.ParticleMessenger` and the particle plate, so that it sees the broadcast prior.

    :param proposals: a mapping from site name to a distribution or to a function ``site -> distribution``, or one such function for all
        sites; ``None`` means the prior. A function reads the prior as ``site["fn"]`` and the site's name as ``site["name"]``.
    """

    def __init__(self, proposals: Proposals) -> None:
        super().__init__()
        check_proposals(proposals)
        self.proposals = proposals

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        proposal = self.proposals(msg) if callable(self.proposals) else self.proposals.get(msg["name"])
        if proposal is not None and not hasattr(proposal, "log_prob"):
            proposal = proposal(msg)
        if proposal is None:
            return
        if is_masked(proposal):
            raise ValueError(f"the proposal of site {msg['name']!r} is masked; mask the site itself, its proposal follows")
        if proposal.event_shape != msg["fn"].event_shape:
            raise ValueError(
                f"the proposal of site {msg['name']!r} has event shape {tuple(proposal.event_shape)}, "
                f"the prior {tuple(msg['fn'].event_shape)}"
            )
        # The particle filter draws the value, and only for the particles that need one.
        msg["infer"] = {**msg["infer"], "proposal": proposal.expand(msg["fn"].batch_shape)}
