"""How a generation waits for a task on behalf of a reader who may be woken meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any


async def done_or_woken(task: asyncio.Task[Any], woken: asyncio.Event, *, idle_s: float | None) -> bool:
    """Waits for a task; returns whether it is done, which it need not be where the reader was woken or nothing happened for long.

    Args:
        task: goes on if this is cancelled.
        woken: set to have this return; cleared.
        idle_s: seconds to wait at most; None = no limit.
    """
    waking = asyncio.create_task(woken.wait(), name="wake")
    try:
        await asyncio.wait({task, waking}, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        woken.clear()
        waking.cancel()
    return task.done()
