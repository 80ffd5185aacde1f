"""Tempered targets."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..util.checked import checked


class TemperMessenger(Messenger):
    """Raises the likelihood and the prior of a model to powers: the target becomes ``p(x)^prior p(y | x)^likelihood``.

    Unlike ``poutine.scale``, which scales all sites alike. Wrap the model with it::

        SMC(TemperMessenger(likelihood=0.5)(model), num_particles=64).run(data)

    Values are still proposed from the untempered prior; the weights correct for the difference.

    :param likelihood: power of observed sites; a number, or a tensor that broadcasts over particles (``[N, *plates]``).
    :param prior: power of latent sites, likewise.
    """

    @checked
    def __init__(self, likelihood: float | Tensor = 1.0, prior: float | Tensor = 1.0) -> None:
        super().__init__()
        self.likelihood, self.prior = likelihood, prior

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        power = self.likelihood if msg["is_observed"] else self.prior
        if isinstance(power, Tensor) or power != 1:
            msg["infer"] = {**msg["infer"], "untempered_scale": msg["scale"]}
            msg["scale"] = msg["scale"] * power
