"""Exact inference by enumeration."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .cost import CostMeter
from .handlers.particle_plate import particle_plate
from .handlers.randomness_messenger import RandomnessMessenger
from .particles.history import Site
from .particles.run_scope import RunScope, run_scope
from .particles.site_util import give, is_deterministic, is_given, read_site, scaled
from .particles.weighted_particles import WeightedParticles
from .particles.weights import Weights
from .posterior.particle_posterior import ParticlePosterior
from .util.checked import checked
from .util.process_state import isolated
from .util.validation import check_count


class Enumeration:
    """The exact posterior and evidence of a model whose latent sites can be enumerated: the oracle for every other algorithm.

    The paths of the program grow breadth first, one execution of the model per latent site with all paths so far as particles. The result
    is an ordinary :class:`ParticlePosterior` with one particle per path of positive prior probability, whose weights are exact.

    :param model: as for :class:`SMC`; every latent site's distribution must have ``enumerate_support``, and no plates.
    :param int max_paths: more paths than this are an error.
    :raises ValueError: for a site that cannot be enumerated, or too many paths.
    """

    @checked
    def __init__(self, model: Callable[..., Any], *, max_paths: int = 1_000_000) -> None:
        check_count("max_paths", max_paths)
        self.model = model
        self.max_paths = max_paths

    @torch.no_grad()
    def run(self, *args: Any, **kwargs: Any) -> ParticlePosterior:
        """Enumerate ``model(*args, **kwargs)``.

        :raises ValueError: see above.
        """
        start = time.perf_counter()
        with CostMeter() as meter:
            posterior = self._enumerated(args, kwargs)
        posterior.cost = {**meter.totals, "seconds": time.perf_counter() - start}
        return posterior

    def _enumerated(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ParticlePosterior:
        values: dict[str, Tensor] = {}
        num_paths = 1
        with run_scope(RunScope()):
            while True:
                messenger = _PathMessenger(values, num_paths)
                with isolated(), messenger, particle_plate(num_paths, 0), RandomnessMessenger() as randomness:
                    try:
                        value = self.model(*args, **kwargs)
                    except _Branch as branch:
                        open_site = branch
                    else:
                        randomness.finish()
                        break
                values, num_paths = self._branch(values, open_site)
        # One particle per path: the mean weight is the evidence.
        weights = Weights(messenger.log_joint.expand(num_paths) + math.log(num_paths))
        sites = tuple(Site(name, path_values, None, 0) for name, path_values in values.items())
        observed = messenger.log_likelihood.expand(num_paths)
        posterior = ParticlePosterior(WeightedParticles(weights, sites=sites, value=value, log_likelihood=observed))
        posterior.exact = True
        return posterior

    def _branch(self, values: dict[str, Tensor], site: _Branch) -> tuple[dict[str, Tensor], int]:
        """Every path with every value of positive probability."""
        support = site.fn.enumerate_support(expand=True)
        value, path = (site.fn.log_prob(support) > -torch.inf).nonzero(as_tuple=True)
        if len(path) > self.max_paths:
            raise ValueError(
                f"{len(path)} paths at site {site.name!r} exceed max_paths={self.max_paths}; the model is too large to enumerate"
            )
        grown = {name: known[path] for name, known in values.items()}
        grown[site.name] = support[value, path]
        return grown, len(path)


class _Branch(Exception):
    """Leaves the model at the first site without a value."""

    def __init__(self, name: str, fn: Any) -> None:
        super().__init__(name)
        self.name, self.fn = name, fn


class _PathMessenger(Messenger):
    """Gives sites the values of the paths so far, adds up the log joint, and leaves the model at the first site without values."""

    def __init__(self, values: dict[str, Tensor], num_paths: int) -> None:
        super().__init__()
        self.values, self.num_paths = values, num_paths
        self.log_joint = self.log_likelihood = torch.zeros((), dtype=torch.float64)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]].clone()
            return
        if msg["done"]:
            give(msg)
            return
        fn = read_site(msg).fn
        if not getattr(fn, "has_enumerate_support", False):
            raise ValueError(f"site {msg['name']!r} ({type(fn).__name__}) has no finite support to enumerate; use SMC or Importance")
        if fn.batch_shape != (self.num_paths,):
            raise ValueError(
                f"site {msg['name']!r} has batch shape {tuple(fn.batch_shape[1:])}; enumeration takes models without plates, "
                "one problem at a time"
            )
        raise _Branch(msg["name"], fn)

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or is_deterministic(msg) or is_given(msg):
            return
        parts = read_site(msg)
        log_prob = scaled(parts.log_probs(msg["value"])[0], parts.scale) if msg["is_observed"] else parts.log_density(msg["value"])
        # Plates of observed sites are to the left of the paths.
        own = log_prob.to(torch.float64).reshape(-1, self.num_paths).sum(0)
        self.log_joint = self.log_joint + own
        if msg["is_observed"]:
            self.log_likelihood = self.log_likelihood + own
