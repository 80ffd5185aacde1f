"""The beginning of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from ..util.checked import checked
from ..util.validation import check_count
from .bound_model import BoundModel
from .power_messenger import BRIDGE


class Reached(BaseException):
    """Leaves the model. Not an ``Exception``, which a model may catch."""


class UntilMessenger(Messenger):
    """Leaves a model right after its barrier number ``barriers``. A bridge of powers stands at the power of that barrier.

    :ivar list state: what the last barrier returned, if one has been reached.
    """

    def __init__(self, barriers: int) -> None:
        super().__init__()
        self.barriers = barriers

    def __enter__(self) -> UntilMessenger:
        self.count = 0
        self.state: list[Any] = []
        super().__enter__()
        return self

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) and (shares := msg["infer"].get(BRIDGE)):
            share = shares[self.barriers - 1] if self.barriers <= len(shares) else 1.0
            msg["scale"], msg["infer"] = msg["scale"] * share, {**msg["infer"], BRIDGE: ()}

    def _pyro_post_barrier(self, msg: Any) -> None:
        self.count, self.state = self.count + 1, [msg["value"]]
        if self.count == self.barriers:
            raise Reached


class Beginning(BoundModel):
    """See :func:`until`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        ended = None
        with self.make() as messenger:
            try:
                ended = self.model(*args, **kwargs)
            except Reached:
                if messenger.count != messenger.barriers:  # that of another beginning around this one
                    raise
        return messenger.state[0] if messenger.state else ended


@checked
def until(model: Callable[..., Any], barriers: int) -> Beginning:
    """The model up to its barrier number ``barriers``, whose state it returns: its target is that of a particle filter there.

    Where the model ends earlier, it returns the state of its last barrier; without any, what the model returns.

    :param model: as for :class:`SMC`.
    :param int barriers: counted from 1.
    :raises ValueError: if it is less than 1.
    """
    check_count("barriers", barriers)
    return Beginning(model, lambda: UntilMessenger(barriers), f"until {barriers}")
