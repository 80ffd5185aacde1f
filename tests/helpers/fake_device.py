"""A device that is none: tensors on it are computed on the CPU, and refuse to meet those of the CPU as a real device's would.

It is called ``meta``, the one device that every build of torch knows and that the library treats as an accelerator; with a build for CUDA
on a machine without a GPU it is ``cuda:0``, so that what is done for CUDA alone is run, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.helpers.tape import WAITING

CUDA = torch.backends.cuda.is_built() and not torch.cuda.is_available() and hasattr(torch._C, "_ensureCUDADeviceGuardSet")
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("meta")
if CUDA:
    torch._C._ensureCUDADeviceGuardSet()  # as torch's own fake tensors do

_MOVES = frozenset({"aten::_to_copy", "aten::copy_", "aten::_copy_from"})
_INDEXED = frozenset({"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"})
"""Whose indices may lie on the host."""


class OnDevice(Tensor):
    """A tensor whose data lies in ``held``, on the CPU."""

    held: Tensor
    is_meta = False  # as it has data

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.held!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a tensor of the device where there is none: enter FakeDevice, in every thread")


def put(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, OnDevice) else OnDevice(tensor)


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == DEVICE.type


class _Functions(TorchFunctionMode):
    """What torch does for a real device before anybody can stop it, or not at all for tensors like these."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            return func(*args, **kwargs).to(device)
        if func is Tensor.to and not isinstance(args[0], OnDevice):
            device, *_ = torch._C._nn._parse_to(*args[1:], **{name: value for name, value in kwargs.items() if name != "copy"})
            if _is_device(device):
                return put(func(args[0], torch.device("cpu"), *[each for each in args[1:] if isinstance(each, torch.dtype)]))
        if func is Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].cpu().tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnDevice):
            # A list of numbers would become an index in memory that does not exist.
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = args[0], tuple(put(torch.tensor(each)) if isinstance(each, list) else each for each in index), *args[2:]
        return func(*args, **kwargs)


class FakeDevice(TorchDispatchMode):
    """While it is entered there is such a device.

    :ivar int operations: on it so far.
    :ivar list waits: functions for which the host has waited.
    """

    def __init__(self) -> None:
        super().__init__()
        if CUDA:
            self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # keeps torch from looking for a driver
        self.operations = 0
        self.waits: list[str] = []
        self._functions = _Functions()

    def __enter__(self) -> FakeDevice:
        self._functions.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *arguments: Any) -> None:
        super().__exit__(*arguments)
        self._functions.__exit__(*arguments)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
        device = kwargs.get("device")
        if not ours and not _is_device(device):
            return func(*args, **kwargs)
        to_host = device is not None and not _is_device(device)
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        if ours and name not in _MOVES:
            met = [args[0], *args[2:]] if name in _INDEXED else leaves
            strangers = [each for each in tree_leaves(met) if isinstance(each, Tensor) and not isinstance(each, OnDevice) and each.dim()]
            if strangers:
                raise RuntimeError(f"{func}: expected all tensors on one device, got one of the host, {tuple(strangers[0].shape)}")
        if to_host or name in WAITING:
            self.waits.append(name)
        self.operations += 1
        found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        by_memory = {id(leaf.held): leaf for leaf in ours}
        host = to_host or (name in ("aten::copy_", "aten::_copy_from") and not isinstance(args[0], OnDevice))

        def back(value: Any) -> Any:
            if not isinstance(value, Tensor) or host:
                return value
            same = by_memory.get(id(value))
            if same is not None and (same.shape, same.stride()) != (value.shape, value.stride()):
                raise AssertionError(f"{func} changes the shape of what it is given")
            return put(value) if same is None else same

        return tree_map(back, found)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


def move(module: nn.Module) -> nn.Module:
    """Put a model's weights and buffers on the device."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(put(weight.detach()), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = put(buffer)
    return module


def on_device(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same in a thread of its own."""

    def there() -> Any:
        with FakeDevice():
            return run()

    return there
