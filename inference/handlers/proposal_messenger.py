"""Per-site proposals."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.util import site_is_subsample

from ..particles.site_util import base_name, is_masked

Proposal = Any
"""A distribution, or a function of the site's message that returns one (or ``None`` for the prior)."""

Proposals = Mapping[str, Proposal] | Callable[[Any], Any]


def check_proposals(proposals: Any) -> None:
    """
    :raises ValueError: for anything but a function, or a mapping from names of sites to distributions and functions.
    """
    if not isinstance(proposals, Mapping):
        if not callable(proposals):
            raise ValueError(
                "proposals must be a mapping from sites to distributions, or a function of a site, as a StepProposal or a constraint is, "
                f"got {proposals!r}"
            )
        return
    for name, proposal in proposals.items():
        if not isinstance(name, str):
            raise ValueError(f"proposals must be a mapping from names of sites, got the key {name!r}")
        if proposal is not None and not callable(proposal) and not hasattr(proposal, "log_prob"):
            raise ValueError(f"proposals must be distributions, or functions of a site that return one, got {proposal!r} for site {name!r}")


def are_restricted(proposals: Proposals | None) -> bool:
    """Whether some proposal does not draw all that its site can be, and so is a part of the target."""
    each = proposals.values() if isinstance(proposals, Mapping) else [proposals]
    return any(getattr(proposal, "restricted", False) for proposal in each)


def check_given_values(proposals: Proposals | None, everywhere: bool = False) -> None:
    """Whether proposals can score values that they did not draw, as chains do that keep a trajectory; see :class:`ProposalMessenger`.

    :param bool everywhere: also values that some other proposal drew after another past, as ancestor sampling does.
    :raises ValueError: if they cannot.
    """
    for proposal in proposals.values() if isinstance(proposals, Mapping) else [proposals]:
        if getattr(proposal, "estimated", False):
            raise ValueError(
                f"proposals: the weights of {_named(proposal)} are estimates, which belong to a draw and not to a value: they are for SMC, "
                "PIMH and PMMH, not for chains that keep a trajectory. Propose with a constraint that lists what may follow"
            )
        if everywhere and getattr(proposal, "restricted", False):
            raise ValueError(
                f"proposals: {_named(proposal)} draws only a part of what the site can be, and ancestor_sampling scores futures after "
                "other pasts, where it could not have drawn them. Leave out ancestor_sampling, or put the constraint into the model's steps"
            )


def _named(proposal: Any) -> str:
    return str(getattr(proposal, "__name__", repr(proposal)))


class ProposalMessenger(Messenger):
    """Draws latent sites from proposals q instead of the prior p; the particle filter adds ``log p - log q`` to the weights.

    Enter it between :class:`~ppl_llm.inference.ParticleMessenger` and the particle plate, so that it sees the broadcast prior.

    :param proposals: a mapping from site name to a distribution or to a function ``site -> distribution``, or one such function for all
        sites; ``None`` means the prior. A function reads the prior as ``site["fn"]`` and the site's name as ``site["name"]``. It may say
        that it is ``restricted`` (it cannot draw all that the prior can) or that its weights are ``estimated`` for what it draws. A prior
        with a method ``proposed_by`` is told its proposal before the draw.
    """

    def __init__(self, proposals: Proposals) -> None:
        super().__init__()
        check_proposals(proposals)
        self.proposals = proposals
        self.left_early = False

    def finish(self, met: Collection[str], latent: list[str]) -> bool:
        """The model has come to its end, or to where :func:`until` leaves it: then it may have more sites than were met.

        :param met: names of all sites.
        :param list latent: those of the latent ones.
        :returns: whether all its sites are known.
        :raises ValueError: for a proposal of a site that does not occur. A name that differs from one that does by its number only may be
            a step that was not reached.
        """
        if self.left_early or not isinstance(self.proposals, Mapping):
            return not self.left_early
        steps = set(map(base_name, met))
        unknown = [name for name in self.proposals if name not in met and base_name(name) not in steps]
        if unknown:
            shown = ", ".join(map(repr, latent[:12])) + (", .." if len(latent) > 12 else "")
            near = difflib.get_close_matches(unknown[0], latent, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"proposals has a site {unknown[0]!r}, which the model does not{hint} Its latent sites are {shown or 'none'}")
        return True

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
        if hasattr(msg["fn"], "proposed_by"):
            msg["fn"].proposed_by(proposal)
        # The particle filter draws the value, and only for the particles that need one.
        msg["infer"] = {**msg["infer"], "proposal": proposal.expand(msg["fn"].batch_shape)}


def leave_early() -> None:
    """Tell the proposals of this execution that the model is left before its end."""
    for handler in _PYRO_STACK:
        if isinstance(handler, ProposalMessenger):
            handler.left_early = True
