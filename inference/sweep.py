"""One pass over a model under a particle messenger: what SMC and its conditional form share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.poutine as poutine

from .particle_messenger import PLATE, ParticleMessenger
from .particle_posterior import ParticlePosterior
from .proposal_messenger import ProposalMessenger, Proposals


def particle_plate(num_particles: int, max_plate_nesting: int) -> Any:
    """The plate of the particles, to the left of the model's own."""
    return pyro.plate(PLATE, num_particles, dim=-1 - max_plate_nesting)


def sweep(
    model: Callable[..., Any], messenger: ParticleMessenger, proposals: Proposals | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ParticlePosterior:
    """Run ``model(*args, **kwargs)`` once with all particles and give the posterior."""
    # Handlers that rewrite values sit outside the plate: they must see the broadcast distributions.
    plate = particle_plate(messenger.num_particles, messenger.max_plate_nesting)
    with poutine.block(), messenger, ProposalMessenger(proposals if proposals is not None else {}), plate:
        value = model(*args, **kwargs)
        messenger.check_alive()
    return messenger.posterior(value)
