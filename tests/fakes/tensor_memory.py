"""What tensors take on a CPU, as a GPU's allocator counts it."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory:
    """Implements `DeviceMemory` within its block: every operation's results are watched until they are gone.

    Args:
        total_bytes: Of the device that it stands for.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._live: dict[StorageWeakRef, int] = {}
        # Those that are gone are counted until somebody asks.
        self._total = 0
        self._peak = 0
        self._watcher = _Watcher(self)

    def __enter__(self) -> TensorMemory:
        self._watcher.__enter__()  # type: ignore[no-untyped-call]  # torch's modes have no types
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._watcher.__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]

    def free_bytes(self) -> int:
        """See `DeviceMemory`."""
        return self.total_bytes - self.tensor_bytes()

    def tensor_bytes(self) -> int:
        """See `DeviceMemory`."""
        self._live = {one: size for one, size in self._live.items() if not one.expired()}  # type: ignore[no-untyped-call]
        self._total = sum(self._live.values())
        return self._total

    def reset_peak(self) -> None:
        """See `DeviceMemory`."""
        self._peak = self.tensor_bytes()

    def peak_bytes(self) -> int:
        """See `DeviceMemory`."""
        return self._peak

    def note(self, tensor: torch.Tensor) -> None:
        """A tensor is there that has memory of its own."""
        storage = tensor.untyped_storage()
        self._live[StorageWeakRef(storage)] = storage.nbytes()  # type: ignore[no-untyped-call]
        self._total += storage.nbytes()
        if self._total > self._peak:
            self._peak = max(self._peak, self.tensor_bytes())


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, memory: TensorMemory) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # What is written in place, and views, have the memory of an argument.
        known = {leaf.untyped_storage().data_ptr() for leaf in _with_memory((args, kwargs))}
        for leaf in _with_memory(result):
            if leaf.untyped_storage().data_ptr() not in known:
                self._memory.note(leaf)
        return result


def _with_memory(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided]
