"""Matrix products of networks on CPUs by oneDNN, with weights in its own layout."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_SHARE = 16
"""Packed weights of a network take at most this part of the machine's memory: one in so many."""
_SMALLEST = 100_000
"""Numbers in a weight from which packing pays for a few rows of float32: a call has more to do, 10 microseconds."""
_LIMIT = Path("/sys/fs/cgroup/memory.max")


class PackedLinear:
    """Computes what a ``torch.nn.Linear`` does, in place of its ``forward``, wherever no gradient is wanted.

    ``torch.nn.functional.linear`` multiplies float32 by MKL, which uses half of the width of other makers' processors, and reads bfloat16
    weights in a layout that oneDNN rearranges at every call. Here the weight is rearranged once. It is a second copy: the layer's own
    stays what users see, save and train. A weight that changes is packed again, except where it changes behind autograd's back, through
    ``weight.data``: see :func:`unpack`.
    """

    _weight: Tensor | None = None
    _state: tuple[int, int, torch.dtype] | None = None
    _numbers: Tensor | None = None
    """Of the weight when it was packed, held so that no others come to lie where they lie."""
    _packed: Tensor | None = None

    def __init__(self, layer: torch.nn.Linear) -> None:
        self._layer = layer

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles of a network pack its weights themselves."""
        return {"_layer": self._layer}

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        weight = layer._parameters.get("weight")  # a parametrised weight is another tensor at every call
        special = torch.is_grad_enabled() or not x.numel() or torch.is_autocast_enabled("cpu")
        if special or weight is None or x.dtype != weight.dtype or not self._holds(weight):
            return functional.linear(x, layer.weight, layer.bias)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, layer.bias, "none", [], "")
        return found

    def _holds(self, weight: Tensor) -> bool:
        """Whether the packed weight is this one as it is now; it is packed where it is not, if it can be."""
        if weight is self._weight and self._state == _state_of(weight):
            return True
        if not _can_pack(weight):
            return False
        self._numbers = weight.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self._numbers, None)
        self._weight, self._state = weight, _state_of(weight)
        return True

    def release(self) -> None:
        """Drop the packed weight; the next call packs it as it is then."""
        self._weight = self._numbers = self._packed = None


def pack(model: torch.nn.Module) -> None:
    """Let the linear layers of a network multiply by packed weights, from their first call on, where that pays and the memory allows it.

    Layers elsewhere than on the CPU, of other types than float32 and bfloat16, or with hooks of accelerate stay as they are.
    """
    layers = [
        module
        for module in model.modules()
        if type(module) is torch.nn.Linear
        and "forward" not in vars(module)
        and module.weight.numel() >= _SMALLEST
        and _can_pack(module.weight)
    ]
    if sum(layer.weight.nbytes for layer in layers) <= _machine_memory() // _SHARE:
        for layer in layers:
            layer.forward = PackedLinear(layer)  # type: ignore[assignment, method-assign]


def unpack(model: torch.nn.Module) -> None:
    """Drop the packed weights of a network, whose next pass then sees what its weights are by now."""
    for module in model.modules():
        if isinstance(forward := vars(module).get("forward"), PackedLinear):
            forward.release()


def _state_of(weight: Tensor) -> tuple[int, int, torch.dtype]:
    """What changes when the numbers of a weight do, but for those written behind autograd's back."""
    return weight._version, weight.data_ptr(), weight.dtype


def _can_pack(weight: Tensor) -> bool:
    # The weights of a network that was made in inference mode do not tell when they change.
    return weight.device.type == "cpu" and weight.layout == torch.strided and not weight.is_inference() and _works(weight.dtype)


@cache
@torch.no_grad()
def _works(dtype: torch.dtype) -> bool:
    """Whether this build of torch has the functions, which it uses for compiled networks, and they give products of such numbers."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    x, weight = (torch.linspace(-1, 1, 6 * rows, dtype=torch.float64).view(rows, 6).to(dtype) for rows in (3, 4))
    try:
        found = torch.ops.mkldnn._linear_pointwise(x, torch.ops.mkldnn._reorder_linear_weight(weight, None), None, "none", [], "")
        return found.dtype == dtype and torch.allclose(found.float(), x.float() @ weight.float().T, atol=0.05)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _machine_memory() -> int:
    """Bytes that this process may use at most: the machine's, or what its container allows."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 33
    try:
        return min(physical, int(_LIMIT.read_text()))
    except (OSError, ValueError):
        return physical
