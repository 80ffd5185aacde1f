"""A stand-in for CUDA graphs on the CPU: operations of a call are written down without effect, and carried out again on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::unique_dim", "aten::is_nonzero", "aten::equal"})
"""Operations whose result the host has to know before it can continue."""


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._before.append((value, value.clone()))
        output = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, tensors(output)))
        return output

    def undo(self) -> None:
        for tensor, before in reversed(self._before):
            tensor.copy_(before)
        self._before.clear()


def _is_view(operation: tuple[Any, Any, Any, list[Tensor]]) -> bool:
    _, args, _, outputs = operation
    memory = {tensor.untyped_storage().data_ptr() for tensor in tensors(args)}
    return bool(outputs) and all(output.untyped_storage().data_ptr() in memory for output in outputs)


def tape(body: Callable[[], None]) -> Callable[[], None]:
    """As :class:`~ppl_llm.lm.decoding.cuda_graphs.CudaCapture`: nothing of the host's part of ``body`` is run again."""
    recorder = _Recorder()
    try:
        with recorder:
            body()
    finally:
        recorder.undo()

    # Views of what is written in place need not be made again.
    operations = [each for each in recorder.operations if each[0]._schema.is_mutable or not _is_view(each)]

    def replay() -> None:
        for func, args, kwargs, recorded in operations:
            output = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for new, old in zip([output] if isinstance(output, Tensor) else tensors(output), recorded, strict=True):
                    old.copy_(new)

    return replay


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of another device: a number that goes to or comes from the host is such a tensor."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        others = [each for each in tensors((args, kwargs, output)) if each.device.type != self._device]
        if others:
            raise RuntimeError(f"{func} works with a tensor on {others[0].device}")
        self.operations += 1
        return output
