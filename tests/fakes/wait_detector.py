"""Finds what would make the host wait for a device, without having one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Their results' sizes are values that the device has to tell.
_SIZED_BY_VALUES = (
    "nonzero",
    "masked_select",
    "unique",
    "_unique",
    "argwhere",
    "bincount",
    "repeat_interleave.self_Tensor",
    "repeat_interleave.Tensor",
)
# They give Python a value.
_READING = ("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose")
# They copy to a device, and do not wait if they are told so and the memory is pinned, which host_copy.py sees to: nobody else may tell them.
_COPYING = ("to", "_to_copy", "copy_")
# Data of Python's that becomes a tensor comes from memory that is not pinned.
_MAKING = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy}


class HostWaits(AssertionError):
    """An operation would wait."""


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's modes have no types
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        overload = f"{name}.{func._overloadname}"
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if name in _READING or name.startswith(_SIZED_BY_VALUES) or overload.startswith(_SIZED_BY_VALUES):
            raise HostWaits(f"{overload} needs values of the device")
        if name.startswith("where") and len(tensors) == 1:
            raise HostWaits(f"{overload} needs values of the device")
        if name.startswith("index") and any(one.dtype in (torch.bool, torch.uint8) for one in tensors[1:]):
            raise HostWaits(f"{overload} by truth values needs to count them")
        kinds = {one.device.type for one in tensors if one.dim()} | {torch.device(one).type for one in _devices(kwargs)}
        is_told_not_to_wait = name in _COPYING and bool((kwargs or {}).get("non_blocking"))
        if len(kinds) > 1 and not is_told_not_to_wait:
            raise HostWaits(f"{overload} crosses between {' and '.join(sorted(kinds))}")
        return func(*args, **(kwargs or {}))


class _HostData(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _MAKING:
            raise HostWaits(f"{func.__name__} copies memory that is not pinned")
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(one, list | np.ndarray | bool) for one in index):
                raise HostWaits(f"{func.__name__} copies an index from memory that is not pinned")
        return func(*args, **(kwargs or {}))


def _devices(kwargs: dict[str, Any] | None) -> list[Any]:
    given = (kwargs or {}).get("device")
    return [] if given is None else [given]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Fails on operations on tensors of the device "meta" that on a real one would wait for it, or copy from unpinned memory.

    Raises:
        HostWaits: There was one.
    """
    with torch.inference_mode(), _Operations(), _HostData():  # type: ignore[no-untyped-call]  # likewise
        yield


class CountedReads(TorchDispatchMode):  # type: ignore[no-untyped-call]  # likewise
    """Lets tensors of the device "meta" be read, as numbers that all differ.

    Attributes:
        count: How many reads there were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        run: Callable[..., Any] = func
        target = (kwargs or {}).get("device")
        source = next((one for one in args if isinstance(one, torch.Tensor)), None)
        if source is not None and source.device.type == "meta" and target is not None and torch.device(target).type == "cpu":
            self.count += 1
            return torch.arange(source.numel(), dtype=(kwargs or {}).get("dtype") or source.dtype, device="cpu").view(source.shape)
        return run(*args, **(kwargs or {}))
