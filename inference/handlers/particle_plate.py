"""The plate of the particles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ..particles.plates import PLATE
from ..particles.run_scope import current_scope, inside_model
from ..particles.site_util import base_name, is_one

# What ``plate`` does for these is nothing once they have its batch shape: torch has broadcast their parameters. Another distribution may
# leave that to ``expand``, and draw one value for all particles until it is called.
_SPREAD_OUT = frozenset(
    (
        dist.Bernoulli,
        dist.Beta,
        dist.Categorical,
        dist.Dirichlet,
        dist.Exponential,
        dist.Gamma,
        dist.Laplace,
        dist.Normal,
        dist.Poisson,
        dist.StudentT,
        dist.Uniform,
        dist.Unit,
    )
)


class ParticlePlate(pyro.plate):
    """``pyro.plate("_particles", N, dim=dim)``, around one execution of a model, without its cost where there is nothing to do.

    Sites are known by their names, so each is met once. Plates with ``subsample_size`` draw indices once for a run, whatever its number of
    executions. At a site of a common distribution that has its batch shape already ``pyro.plate`` takes some 15 microseconds to find out
    and to expand it nonetheless, this one 1: a tenth of a sweep with 64 particles.

    :param dict subsamples: indices that plates of the run drew so far, by the plate's name; new ones are added.
    :ivar set met: names of the sites met so far.
    """

    def __init__(self, num_particles: int, dim: int, subsamples: dict[str, Tensor]) -> None:
        super().__init__(PLATE, num_particles, dim=dim)
        self._subsamples = subsamples
        self._frame = CondIndepStackFrame(PLATE, dim, num_particles, 0, num_particles)
        self._alone = (self._frame,)

    def __enter__(self) -> ParticlePlate:
        self.met: set[str] = set()
        super().__enter__()
        return self

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            if type(msg["fn"]) is _Subsample:
                self._hold(msg)
            else:
                before = len(self.met)
                self.met.add(msg["name"])
                if len(self.met) == before:
                    name = msg["name"]
                    raise ValueError(
                        f"site {name!r} is met twice in one execution; give every step a name of its own, e.g. f'{base_name(name)}_{{t}}'"
                    )
        inner = msg["cond_indep_stack"]
        stack = (self._frame, *inner) if inner else self._alone
        if is_one(msg["scale"]) and (msg["type"] == "barrier" or _is_spread_over(stack, msg["fn"])):
            msg["cond_indep_stack"] = stack
        else:
            try:
                super()._process_message(msg)
            except ValueError as error:
                if f"mismatch inside plate('{PLATE}')" not in str(error):
                    raise
                raise ValueError(
                    f"the distribution of site {msg['name']!r} has batch shape {tuple(msg['fn'].batch_shape)}, and there are {self.size} "
                    f"particles: give its parameters, such as a temperature, as numbers or with one value for each particle ({error})"
                ) from error

    def _hold(self, msg: Any) -> None:
        """A plate gets the indices that it drew before in this run."""
        name, fn = msg["name"], msg["fn"]
        if msg["value"] is None and fn.subsample_size is not None and fn.subsample_size < fn.size:
            if name not in self._subsamples:
                self._subsamples[name] = fn.sample()
            msg["value"] = self._subsamples[name].clone()


def _is_spread_over(stack: tuple[CondIndepStackFrame, ...], fn: Any) -> bool:
    """Whether plates would leave the distribution of a site as it is."""
    if type(fn) not in _SPREAD_OUT:
        return False
    shape = fn.batch_shape
    return all(frame.dim is None or (len(shape) >= -frame.dim and shape[frame.dim] == frame.size) for frame in stack)


@contextmanager
def particle_plate(num_particles: int, max_plate_nesting: int) -> Iterator[ParticlePlate]:
    """The plate of the particles, to the left of the model's own, around one execution of a model.

    :raises ValueError: for a plate of the model at the particles' dimension.
    """
    dim = -1 - max_plate_nesting
    try:
        with ParticlePlate(num_particles, dim, current_scope().subsamples) as plate, inside_model():
            yield plate
    except ValueError as error:
        if f'"{PLATE}", collide' not in str(error):
            raise
        raise ValueError(
            f"a plate of the model lies at dim {dim}, where the particles are: pass max_plate_nesting, the number of nested plates of the "
            f"model (now {max_plate_nesting}); enumeration takes models without plates"
        ) from error
