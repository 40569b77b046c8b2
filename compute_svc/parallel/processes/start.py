"""What a rank is told when it starts, where it meets the others, and on which device it computes."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict

from compute_svc.parallel.groups.collectives import Meeting
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


def meeting_of(settings: Settings, rank: int, place: str) -> Meeting:
    """Where a rank meets the others, in a file that is not there yet."""
    return Meeting(
        rank=rank,
        tensor_size=settings.tensor_parallel,
        num_stages=settings.pipeline_parallel,
        place=place,
        device=rank_device(settings, rank),
        timeout_s=settings.step_timeout_s,
    )


def rank_device(settings: Settings, rank: int) -> torch.device:
    """Where a rank computes: of CUDA devices each has its own, from that of the settings on."""
    device = torch.device(settings.device)
    if settings.num_ranks == 1 or device.type == "cpu":
        return device
    return torch.device(device.type, (device.index or 0) + rank)


def require_devices(settings: Settings) -> None:
    """Refuses more ranks than there are devices, or where torch knows no ranks.

    Raises:
        ValueError: naming the variable.
    """
    sizes = {"COMPUTE_TENSOR_PARALLEL": settings.tensor_parallel, "COMPUTE_PIPELINE_PARALLEL": settings.pipeline_parallel}
    wanted = " and ".join(f"{name} is {size}" for name, size in sizes.items() if size > 1)
    if not torch.distributed.is_available():
        raise ValueError(f"{wanted}, this build of torch has no torch.distributed")
    last = rank_device(settings, settings.num_ranks - 1)
    if last.type == "cuda" and (last.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"{wanted}, with COMPUTE_DEVICE={settings.device} that takes the CUDA devices up to {last}, there are {count}")
