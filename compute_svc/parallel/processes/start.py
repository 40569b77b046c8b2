"""What a rank is told when it starts, and on which device it computes."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict

from compute_svc.settings import Settings


class Start(BaseModel):
    """What a rank is told.

    Attributes:
        rank: Who it is.
        place: Where it meets the others, see `Meeting`.
        settings: The first rank's, as JSON.
    """

    model_config = ConfigDict(frozen=True)

    rank: int
    place: str
    settings: str


def rank_device(settings: Settings, rank: int) -> torch.device:
    """Where a rank computes: of CUDA devices each has its own, from that of the settings on."""
    device = torch.device(settings.device)
    if settings.tensor_parallel == 1 or device.type == "cpu":
        return device
    return torch.device(device.type, (device.index or 0) + rank)


def require_devices(settings: Settings) -> None:
    """Refuses more ranks than there are devices, or where torch knows no ranks.

    Raises:
        ValueError: naming the variable.
    """
    size = settings.tensor_parallel
    if not torch.distributed.is_available():
        raise ValueError(f"COMPUTE_TENSOR_PARALLEL is {size}, this build of torch has no torch.distributed")
    last = rank_device(settings, size - 1)
    if last.type == "cuda" and (last.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(
            f"COMPUTE_TENSOR_PARALLEL is {size}, with COMPUTE_DEVICE={settings.device} that takes the CUDA devices up to {last}, there are {count}"
        )
