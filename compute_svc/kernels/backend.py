"""Which implementation of an operation runs where, and why."""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

Backend = Literal["cpu", "aten"]

_log = logging.getLogger(__name__)


@cache
def backend_for(operation: str, device_type: str) -> Backend:
    """The backend of an operation that has one for CPUs and one, of torch's own operations, for all other devices.

    Operations that are the same few of torch's everywhere do not ask. No device runs a reference: those are there to compare with.

    Effects: logs the choice, with its reason, the first time it is made.
    """
    if device_type == "cpu":
        _log.debug("%s runs on its cpu backend: the tensors are on the cpu", operation)
        return "cpu"
    _log.info("%s runs on its aten backend, torch's own operations: it has no kernel for %s", operation, device_type)
    return "aten"
