"""One pass over a model under a particle messenger: what SMC and its conditional form share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.poutine as poutine

from .particle_messenger import ParticleMessenger
from .particle_posterior import ParticlePosterior
from .populations import PLATE
from .proposal_messenger import ProposalMessenger, Proposals


@contextmanager
def particle_plate(num_particles: int, max_plate_nesting: int) -> Iterator[None]:
    """The plate of the particles, to the left of the model's own.

    :raises ValueError: for a plate of the model at the particles' dimension.
    """
    dim = -1 - max_plate_nesting
    try:
        with pyro.plate(PLATE, num_particles, dim=dim):
            yield
    except ValueError as error:
        if f'"{PLATE}", collide' not in str(error):
            raise
        raise ValueError(
            f"a plate of the model lies at dim {dim}, where the particles are: pass max_plate_nesting, the number of nested plates of the "
            f"model (now {max_plate_nesting}); enumeration takes models without plates"
        ) from error


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
