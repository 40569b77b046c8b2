"""A thread that does one piece of work after the other, so that the event loop never waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from prompt_cache.embedding.embedder import EmbeddingFailed

_Result = TypeVar("_Result")


class WorkerThread:
    """One thread, started by its first piece of work."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._is_closed = False

    async def run(self, work: Callable[[], _Result]) -> _Result:
        """Does the work in the thread, after what it was given before; a caller that is cancelled does not wait for it.

        Raises:
            EmbeddingFailed: the thread is closed, or the work raised what is no Exception, as a library written in Rust does when it panics.
            Exception: whatever else the work raises.
        """
        if self._is_closed:
            raise EmbeddingFailed("the embedder is closed")
        return await asyncio.get_running_loop().run_in_executor(self._executor, _guarded, work)

    async def close(self) -> None:
        """Ends the thread once the piece of work in progress is done; what waits is cancelled."""
        self._is_closed = True
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)


def _guarded(work: Callable[[], _Result]) -> _Result:
    try:
        return work()
    except Exception:
        raise
    except BaseException as error:
        # In the event loop it would end the task, or the process.
        raise EmbeddingFailed(f"the embedder failed: {type(error).__name__}") from error
