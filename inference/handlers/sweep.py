"""One pass over a model under a particle messenger: what all particle algorithms share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from pyro.poutine.messenger import Messenger

from ..particles.run_scope import current_scope, run_scope
from ..posterior.particle_posterior import ParticlePosterior
from ..util.process_state import isolated
from .particle_messenger import ParticleMessenger
from .particle_plate import particle_plate
from .proposal_messenger import ProposalMessenger
from .randomness_messenger import RandomnessMessenger
from .resume_messenger import ResumeMessenger


def sweep(
    model: Callable[..., Any],
    messenger: ParticleMessenger,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    outside: Messenger | None = None,
    resume: ResumeMessenger | None = None,
) -> ParticlePosterior:
    """Run ``model(*args, **kwargs)`` once with all particles and give the posterior.

    It is a separate program wherever it runs: handlers and plates around it do not act on it. Where the run executes the model along
    known values, the first pass of each kind is checked for random numbers outside of sites.

    :param outside: a handler around the particle filter; handles every barrier after the filter.
    :param resume: goes through the beginning of the sweep as it was in an earlier one.
    """
    options = messenger.options
    # Handlers that rewrite values sit outside the plate: they must see the broadcast distributions.
    proposed = ProposalMessenger(options.proposals) if options.proposals is not None else None
    scope = current_scope()
    randomness = RandomnessMessenger() if scope.replays and type(messenger) not in scope.checked else None
    with ExitStack() as stack:
        for handler in (isolated(), run_scope(scope), outside, messenger, proposed, resume):
            if handler is not None:
                stack.enter_context(handler)
        plate = stack.enter_context(particle_plate(options.num_particles, options.max_plate_nesting))
        if randomness is not None:
            stack.enter_context(randomness)
        value = model(*args, **kwargs)
        if randomness is not None:
            randomness.finish()
            scope.checked.add(type(messenger))
        if resume is not None:
            resume.finish(value)
        if proposed is not None and not scope.proposals_checked:
            latent = [site.name for site in messenger.system.sites if site.value is not None]
            scope.proposals_checked = proposed.finish(plate.met, latent)
        messenger.check_alive()
    return messenger.posterior(messenger.system.snapshot(value))
