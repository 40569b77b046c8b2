"""Which implementation of an operation runs where, and why."""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

Backend = Literal["cpu", "reference"]

_log = logging.getLogger(__name__)


@cache
def backend_for(operation: str, device_type: str) -> Backend:
    """The backend of an operation on a kind of device.

    Effects: logs the choice, with its reason, the first time it is made.
    """
    if device_type == "cpu":
        _log.debug("%s runs on its cpu backend: the tensors are on the cpu", operation)
        return "cpu"
    _log.warning("%s runs on its reference backend: it has no kernel for %s", operation, device_type)
    return "reference"
