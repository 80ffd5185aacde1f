"""The replay audit: does the reconstructed genealogy have the log-probabilities that the sweep accumulated?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..errors import AuditError
from ..posterior.audit_report import AuditReport
from ..util.process_state import isolated
from .particle_plate import particle_plate

_ATOL, _RTOL = 1e-3, 1e-4
"""What different batches of the same float32 forward pass may differ by; a stale state differs by nats."""


class AuditMessenger(Messenger):
    """Replays a model on the values of a posterior's lineages and compares the log-probability of every site and particle.

    A model that forgets to thread a value through the barrier keeps using the values of dead particles after resampling. The evidence
    estimate does not show this; the audit does.

    :param dict values: ``[N, *plates, *event]`` per latent site, along the lineages.
    :param dict log_probs: ``[N, *plates]`` per site, as accumulated, along the lineages.
    """

    def __init__(self, values: dict[str, Tensor], log_probs: dict[str, Tensor]) -> None:
        super().__init__()
        self.values, self.log_probs = values, log_probs

    def __enter__(self) -> AuditMessenger:
        self.remaining = dict(self.log_probs)
        self.error = self.rounding = 0.0
        self.num_sites = 0
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["is_observed"]:
            return
        if msg["name"] not in self.values:
            raise AuditError(
                f"site {msg['name']!r} is met in the replay but was not in the sweep: the model's control flow depends on stale state"
            )
        msg["value"] = self.values[msg["name"]]

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["infer"].get("_deterministic", False):
            return
        replayed = scale_and_mask(msg["fn"].log_prob(msg["value"]), 1.0, msg["mask"]).to(torch.float64)
        self._compare(msg["name"], self.remaining.pop(msg["name"], None), replayed)

    def _compare(self, name: str, accumulated: Tensor | None, replayed: Tensor) -> None:
        if accumulated is None:
            accumulated = torch.zeros_like(replayed)
        accumulated, replayed = torch.broadcast_tensors(accumulated.to(torch.float64), replayed)
        difference = torch.where(accumulated == replayed, 0.0, (accumulated - replayed).abs())
        excess = difference - (_ATOL + _RTOL * torch.where(accumulated.isfinite(), accumulated, 0.0).abs())
        wrong = ~(excess <= 0)
        if wrong.any():
            where = tuple(wrong.nonzero()[0].tolist())
            raise AuditError(
                f"site {name!r}, particle {where[0] if len(where) == 1 else where}: the sweep accumulated a log-probability of "
                f"{accumulated[where]:.6g}, the replay of its lineage gives {replayed[where]:.6g}. The model uses a value that it does not "
                "thread through barrier(): after resampling that value belongs to another particle."
            )
        self.error = max(self.error, float(excess.max()))
        self.rounding = max(self.rounding, float(difference.max()))
        self.num_sites += 1

    def report(self) -> AuditReport:
        """
        :raises AuditError: if the sweep met a site that the replay did not and that did not have probability one.
        """
        for name, accumulated in self.remaining.items():
            self._compare(name, accumulated, torch.zeros_like(accumulated))
        return AuditReport(self.error, self.rounding, self.num_sites)


def audit(
    model: Callable[..., Any],
    values: dict[str, Tensor],
    log_probs: dict[str, Tensor],
    num_particles: int,
    max_plate_nesting: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> AuditReport:
    """Replay ``model(*args, **kwargs)`` on the values of lineages; see :class:`AuditMessenger`.

    :raises AuditError: if a log-probability differs.
    """
    auditor = AuditMessenger(values, log_probs)
    with isolated(), auditor, particle_plate(num_particles, max_plate_nesting):
        model(*args, **kwargs)
    return auditor.report()
