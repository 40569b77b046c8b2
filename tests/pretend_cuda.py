"""A CUDA device that is not there: tensors that say they are on it, and lie in the host's memory.

What the product does on a device is then run where there is none, whole steps of whole models: Triton kernels in the interpreter, torch's own
operations on the CPU, graphs by computing again what they recorded. What mixes tensors of host and device is refused, as a device refuses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from triton.runtime.interpreter import InterpretedFunction

from compute_svc.engine.steps import decode_graphs
from compute_svc.kernels import device_features
from compute_svc.kernels.backend import backend_for
from tests import triton_sanitizer
from tests.triton_device import DEVICE as REAL_DEVICE

DEVICE = torch.device("cuda", 0)
# A Hopper of few multiprocessors: the interpreter runs one program after the other.
CAPABILITY, MULTIPROCESSORS = (9, 0), 4
_HOST = torch.device("cpu")
# What takes tensors of both: copies, and indices, which are copied.
_MIXING = {torch.Tensor.copy_, torch.Tensor.__getitem__, torch.Tensor.__setitem__}
# What makes the host wait for the device.
_WAITS = {
    torch.Tensor.cpu, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.nonzero, torch.Tensor.unique, torch.unique, torch.nonzero,
    torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__,
}  # fmt: skip


class DeviceTensor(torch.Tensor):
    """A tensor of the host that says it is on the device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it says it is."""
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """As `device` says."""
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        """As `device` says."""
        return False


class PretendedDevice(TorchFunctionMode):
    """What is asked of the device, computed on the host.

    Attributes:
        waits: What made the host wait, by name.
        refuses_waits: Whether that is an error.
    """

    device = DEVICE

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.refuses_waits = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        is_of_device = any(isinstance(one, DeviceTensor) for one in given)
        if is_of_device and func in _WAITS:
            self.waits.append(func.__name__)
            if self.refuses_waits:
                raise RuntimeError(f"{func.__name__} waits for the device")
        if func is torch.Tensor.numpy and is_of_device:
            raise TypeError("a tensor of the device has no array")
        if func is torch.Tensor.cpu:
            return torch.Tensor.as_subclass(args[0], torch.Tensor).clone() if is_of_device else args[0]
        if func is torch.Tensor.to or "device" in kwargs:
            return _placed(func, args, kwargs, is_of_device=is_of_device)
        if is_of_device and func not in _MIXING:
            _refuse_mixed(func, given)
        kwargs.pop("pin_memory", None)
        if func is torch.bmm and "out_dtype" in kwargs:
            # A CPU has no such product.
            return torch.bmm(*(one.to(kwargs["out_dtype"]) for one in args))
        return func(*args, **kwargs)


def _placed(func: Any, args: Any, kwargs: dict[str, Any], *, is_of_device: bool) -> Any:
    """What is asked for at a place: a new tensor, or a copy of one."""
    places = [one for one in (*args[func is torch.Tensor.to :], kwargs.get("device")) if isinstance(one, (str, torch.device))]
    goes_to_device = torch.device(places[0]).type == "cuda" if places else is_of_device
    args = tuple(_HOST if isinstance(one, (str, torch.device)) else one for one in args)
    kwargs = {name: _HOST if name == "device" and value is not None else value for name, value in kwargs.items() if name != "pin_memory"}
    if func is torch.Tensor.to and goes_to_device != is_of_device:
        kwargs["copy"] = True
    made = func(*args, **kwargs)
    return made.as_subclass(DeviceTensor if goes_to_device else torch.Tensor)


def _refuse_mixed(func: Any, given: list[torch.Tensor]) -> None:
    for one in given:
        if type(one) is torch.Tensor and one.dim() > 0:
            raise RuntimeError(f"{func} mixes tensors of host and device: one of the host has the shape {tuple(one.shape)}")


class _Recorder:
    """Graphs that compute again what they recorded, and leave the result where it was; a replay launches what was recorded, or a graph would not."""

    def record(self, compute: Callable[[], torch.Tensor]) -> decode_graphs.Recorded:
        """See `Recorder`."""
        output, recorded = self._run(compute)

        def replay() -> None:
            again, launches = self._run(compute)
            assert launches == recorded, f"a graph of {len(recorded)} launches is replayed as one of {len(launches)}, or with other numbers"
            output.copy_(again)

        return decode_graphs.Recorded(replay, output)

    def _run(self, compute: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, list[Any]]:
        launches: list[Any] = []
        run = InterpretedFunction.run

        def told(kernel: Any, *arguments: Any, grid: Any, **options: Any) -> Any:
            given = [one for one in (*arguments, *options.values()) if not isinstance(one, torch.Tensor)]
            launches.append((kernel.fn.__name__, grid, given))
            return run(kernel, *arguments, grid=grid, **options)

        with mock.patch.object(InterpretedFunction, "run", told):
            return compute(), launches


class _Event:
    """Nothing is under way when the host gets there."""

    def record(self, stream: object = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


@contextlib.contextmanager
def pretend_cuda() -> Iterator[PretendedDevice]:
    """A device until this ends; what is on it must not be used any more then. Not where there is a real one: kernels would be compiled for that."""
    assert REAL_DEVICE.type == "cpu", "there is a device"
    pretended = PretendedDevice()
    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS, name="pretended", total_memory=1 << 30)
    told = {
        "is_available": lambda: True,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda **options: True,
        "synchronize": lambda device=None: None,
        "set_sync_debug_mode": lambda mode: setattr(pretended, "refuses_waits", mode == "error"),
        "Event": _Event,
    }
    with contextlib.ExitStack() as stack:
        for name, value in told.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(decode_graphs, "CudaRecorder", _Recorder))
        for cached in (backend_for, device_features.has_wgmma):
            cached.cache_clear()
            stack.callback(cached.cache_clear)
        stack.enter_context(triton_sanitizer.off())
        yield stack.enter_context(pretended)
