"""Which implementation of an operation runs where, and why."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from typing import Literal

Backend = Literal["cpu", "aten", "triton"]
TritonMode = Literal["auto", "off", "required"]

_log = logging.getLogger(__name__)

_triton_mode: TritonMode = "auto"
_is_batch_invariant = False


class TritonKernelsError(ValueError):
    """Triton kernels are needed and cannot be used; the message names the setting and the reason."""


def use_triton_kernels(mode: TritonMode, device_type: str) -> None:
    """Says whether this process computes with Triton kernels on a device that Triton compiles for: where it is installed, never, or always.

    Raises:
        TritonKernelsError: They are required, and Triton is not installed or does not compile for the device.

    Effects: on the whole process, for plans and weights made from now on.
    """
    global _triton_mode
    _triton_mode = mode
    backend_for.cache_clear()
    reason = _why_no_triton(device_type)
    if mode == "required" and reason is not None:
        raise TritonKernelsError(f"COMPUTE_TRITON_KERNELS is required, but {reason}")


def uses_triton(device_type: str) -> bool:
    """Whether operations that have Triton kernels run on them on a device."""
    return _why_no_triton(device_type) is None


def use_batch_invariance(wanted: bool, device_type: str) -> None:
    """Says whether kernels of this process that would sum in another order for another batch keep to one order, at a price.

    On a CPU they do anyway, and this changes nothing.

    Raises:
        TritonKernelsError: It is wanted on another device, and Triton kernels are not used there.

    Effects: on the whole process, for plans, weights and products made from now on.
    """
    global _is_batch_invariant
    reason = _why_no_triton(device_type)
    is_needed = wanted and device_type != "cpu"
    if is_needed and reason is not None:
        raise TritonKernelsError(f"COMPUTE_BATCH_INVARIANT is set, but {reason}")
    _is_batch_invariant = is_needed


def is_batch_invariant() -> bool:
    """Whether kernels keep to one order of sums, whatever the batch."""
    return _is_batch_invariant


@cache
def backend_for(operation: str, device_type: str, *, has_triton: bool = False) -> Backend:
    """The backend of an operation that has one for CPUs and one, of torch's own operations, for all other devices; some have one in Triton, too.

    Operations that are the same few of torch's everywhere do not ask. No device runs a reference: those are there to compare with.

    Args:
        operation: Its name.
        device_type: Where its tensors are.
        has_triton: Whether it has a Triton kernel, for this model.

    Effects: logs the choice, with its reason, the first time it is made.
    """
    if device_type == "cpu":
        _log.debug("%s runs on its cpu backend: the tensors are on the cpu", operation)
        return "cpu"
    reason = _why_no_triton(device_type) if has_triton else "it has no Triton kernel"
    if reason is None:
        _log.info("%s runs on its Triton kernel", operation)
        return "triton"
    _log.info("%s runs on its aten backend, torch's own operations: %s", operation, reason)
    return "aten"


def _why_no_triton(device_type: str) -> str | None:
    """Why no Triton kernel runs on a device; None = they do."""
    if _triton_mode == "off":
        return "Triton kernels are off"
    if device_type != "cuda":
        return f"there is no Triton kernel for {device_type}"
    return None if find_spec("triton") is not None else "Triton is not installed"
