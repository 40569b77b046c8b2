"""Runs all parts of the pipeline: starts them together, keeps them up, stops them in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from typing import Any

from gateway.cli.console import Console
from gateway.cli.local.hang_watch import HangLimits
from gateway.cli.local.part import Part, PartProcess, RestartPause

_PROGRESS_S = 0.5


class Supervisor:
    """The parts of one pipeline.

    Args:
        parts: what to run.
        console: takes logs and progress.
        pause: between a part's death and its next start.
        hang: how long a part may keep silent before it is killed and started again; None = for ever.
        stop_s: seconds that all parts together have to end; then they are killed.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        console: Console,
        *,
        pause: RestartPause | None = None,
        hang: HangLimits | None = None,
        stop_s: float = 4.0,
    ) -> None:
        self._console = console
        self._stop_s = stop_s
        self._processes = [PartProcess(part, console, pause=pause or RestartPause(), hang=hang) for part in parts]

    async def run(self, stop: asyncio.Event, on_ready: Callable[[], Awaitable[None]]) -> None:
        """Runs all parts until `stop` is set; when it returns or raises, none of their processes is left.

        Args:
            stop: set by whoever wants an end.
            on_ready: called once, when every part is ready.

        Raises:
            PartFailed: a part ended before it was ever ready.
        """
        runs = [asyncio.create_task(process.run(), name=process.part.name) for process in self._processes]
        starting = asyncio.create_task(self._start(on_ready))
        stopping = asyncio.create_task(stop.wait())
        try:
            waiting: set[asyncio.Task[Any]] = {starting, stopping, *runs}
            while not stopping.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            self._console.status("")
            await self._stop(runs)

    def kill(self) -> None:
        """Ends every part at once."""
        for process in self._processes:
            process.kill()

    async def _start(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        """Shows which parts are awaited, then goes on to `on_ready`."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        awaited = {asyncio.create_task(process.ready.wait()): process.part.name for process in self._processes}
        try:
            while awaited:
                elapsed_s = loop.time() - began
                self._console.status(f"starting {', '.join(awaited.values())} ({elapsed_s:.0f} s)")
                done, _ = await asyncio.wait(awaited, timeout=_PROGRESS_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del awaited[task]
        finally:
            for task in awaited:
                task.cancel()
        self._console.status("")
        await on_ready()

    async def _stop(self, runs: Sequence[asyncio.Task[None]]) -> None:
        """Asks the parts to end, rank by rank; each rank has until its share of the time is over. Then kills what is left."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        ordered = sorted(zip(self._processes, runs, strict=True), key=lambda pair: pair[0].part.stop_rank)
        ranks = [list(group) for _, group in groupby(ordered, key=lambda pair: pair[0].part.stop_rank)]
        for index, rank in enumerate(ranks):
            for process, _ in rank:
                process.terminate()
            left_s = began + self._stop_s * (index + 1) / len(ranks) - loop.time()
            await asyncio.wait([run for _, run in rank], timeout=max(0.0, left_s))
        self.kill()
        await asyncio.gather(*runs, return_exceptions=True)
