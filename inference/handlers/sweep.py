"""One pass over a model under a particle messenger: what SMC and its conditional form share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro.poutine as poutine
from pyro.poutine.runtime import am_i_wrapped

from ..posterior.particle_posterior import ParticlePosterior
from .particle_messenger import ParticleMessenger
from .particle_plate import particle_plate
from .pause_messenger import PauseMessenger
from .proposal_messenger import ProposalMessenger, Proposals
from .resume_messenger import ResumeMessenger


def sweep(
    model: Callable[..., Any],
    messenger: ParticleMessenger,
    proposals: Proposals | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    pause: PauseMessenger | None = None,
    resume: ResumeMessenger | None = None,
) -> ParticlePosterior:
    """Run ``model(*args, **kwargs)`` once with all particles and give the posterior.

    :param pause: hears of every barrier and may end the sweep there.
    :param resume: goes through the beginning of the sweep as it was in an earlier one.
    """
    # Handlers that rewrite values sit outside the plate: they must see the broadcast distributions.
    proposed = ProposalMessenger(proposals) if proposals is not None else None
    plate = particle_plate(messenger.num_particles, messenger.max_plate_nesting)
    with ExitStack() as stack:
        hidden = poutine.block() if am_i_wrapped() else None
        for handler in (hidden, pause, messenger, proposed, resume, plate):
            if handler is not None:
                stack.enter_context(handler)
        value = model(*args, **kwargs)
        if resume is not None:
            resume.finish(value)
        messenger.check_alive()
    return messenger.posterior(value)
