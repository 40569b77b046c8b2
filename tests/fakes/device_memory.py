"""The memory of a device that is not there."""

from __future__ import annotations


class FakeDeviceMemory:
    """Implements `DeviceMemory`: every step takes what it is told to.

    Args:
        total_bytes: Of the device.
        taken_bytes: By whatever is there when steps are measured, the store of a few pages included.
        step_bytes: That steps take besides, one after the other; the last stays.
    """

    def __init__(self, total_bytes: int, taken_bytes: int, step_bytes: list[int]) -> None:
        self.total_bytes = total_bytes
        self._taken_bytes = taken_bytes
        self._step_bytes = step_bytes
        self.num_measured = 0

    def free_bytes(self) -> int:
        """See `DeviceMemory`."""
        return self.total_bytes - self._taken_bytes

    def tensor_bytes(self) -> int:
        """See `DeviceMemory`."""
        return self._taken_bytes

    def reset_peak(self) -> None:
        """See `DeviceMemory`."""
        self.num_measured += 1

    def peak_bytes(self) -> int:
        """See `DeviceMemory`."""
        assert self.num_measured, "a peak is since its reset"
        return self._taken_bytes + self._step_bytes[min(self.num_measured, len(self._step_bytes)) - 1]
