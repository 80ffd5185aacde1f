"""Replays the part of a sweep before a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..cost import Uncounted
from ..particles.checkpoint import Checkpoint
from ..particles.pytree import reorder
from ..util.process_state import set_rng_state
from .particle_messenger import ParticleMessenger
from .randomness_messenger import generators, require_same


class ResumeMessenger(Messenger):
    """Runs a model up to the barrier of a checkpoint as an earlier sweep did, then lets the particle filter continue.

    Every particle gets the values that it had then, every barrier permutes as it did then, so that all that the model computes is what it
    was, unless it draws random numbers outside of its sites, which is refused. No distribution draws or scores,
    nothing is counted, and the particle filter hears of none of it: it is set to the checkpoint's weights at the end. Enter it between the
    particle filter and the particle plate.

    :param ParticleMessenger messenger: the particle filter.
    :param Checkpoint start: where to continue.
    :param dict rng: state of the random number generators to continue with.
    """

    def __init__(self, messenger: ParticleMessenger, start: Checkpoint, rng: dict[str, Any]) -> None:
        super().__init__()
        self.messenger, self.start, self.rng = messenger, start, rng
        self.records = start.snapshot.records
        # Trajectories that were moved at a barrier are known from the start on, in the places that they had after it.
        self.moved_at = max((i for i, record in enumerate(self.records) if record.move_rate is not None), default=-1)
        self.values = _copies({site.name: site.value for site in start.snapshot.sites if site.value is not None})
        resampled = [record.resampled.flatten() for record in self.records]
        self.resampled = torch.stack(resampled).any(1).tolist() if resampled else []

    def __enter__(self) -> ResumeMessenger:
        self.active, self.barriers = True, 0
        set_rng_state(self.rng)  # what follows from the seed, such as the critiques of a judge, is then what it was
        self.generators = generators()
        self.uncounted = Uncounted().__enter__()
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self.uncounted.end()
        super().__exit__(*args)

    def _pyro_sample(self, msg: Any) -> None:
        if not self.active:
            return
        if site_is_subsample(msg):
            return
        msg["stop"] = True  # the particle filter has seen this site
        if not msg["is_observed"]:
            if msg["name"] not in self.values:
                raise self._differs(f"it now has a site {msg['name']!r}, which was not there")
            msg["value"] = self.values[msg["name"]]

    def _pyro_barrier(self, msg: Any) -> None:
        if not self.active:
            return
        if self.barriers == len(self.records):
            raise self._differs("it now makes more steps")
        state = msg["args"][0] if msg["args"] else msg["kwargs"]["data"]
        if self.barriers > self.moved_at and self.resampled[self.barriers]:
            state = reorder(state, self.records[self.barriers].ancestors)
        self.barriers += 1
        if self.barriers == len(self.records) and not self.start.complete:
            state = self.start.state(state)
            self._proceed(state)
        msg["value"], msg["done"], msg["stop"] = state, True, True

    def finish(self, value: Any) -> None:
        """The model has come to its end.

        :raises ValueError: if the checkpoint lies further on.
        """
        if self.active:
            ended_early = self.barriers <= self.moved_at  # moves left no execution that comes so far
            if not ended_early and (self.barriers < len(self.records) or not self.start.complete):
                raise self._differs(f"it now ends after {self.barriers} barriers")
            self._proceed(value)

    def _proceed(self, value: Any) -> None:
        require_same("the start of the model", self.generators, f"its barrier {len(self.records)}", generators())
        self.messenger.system.restore(self.start.snapshot._replace(value=value))
        set_rng_state(self.rng)
        self.uncounted.end()
        self.active = False

    def _differs(self, how: str) -> ValueError:
        return ValueError(
            f"the model does not run as it did up to the state it is resumed from: {how}. A model that is run in slices must be the same, "
            "and depend on its arguments and sites only."
        )


def _copies(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that the model may write to; those of one form are copied together."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name, value in values.items():
        alike.setdefault((value.shape, value.dtype, value.device), []).append(name)
    return {name: copy for names in alike.values() for name, copy in zip(names, torch.stack([values[n] for n in names]), strict=True)}
