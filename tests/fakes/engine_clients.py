"""Engines in processes of their own, as a replica runs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from compute_svc.replica.engine_client import EngineClient, EngineListener
from compute_svc.settings import Settings

_PATIENCE_S = 60


@asynccontextmanager
async def running_engine(listener: EngineListener, settings: Settings) -> AsyncIterator[EngineClient]:
    """A client of an engine that has been started, and is stopped behind the block, which has a minute."""
    client = EngineClient(listener)
    await client.start(settings)
    async with asyncio.timeout(_PATIENCE_S):
        yield client
    await client.stop()
