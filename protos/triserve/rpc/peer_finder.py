"""Keeps the addresses of a stage's processes current while they come and go."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from triserve.rpc.dns_lookup import LookupFailed, look_up
from triserve.rpc.peer_names import PeerName

logger = logging.getLogger(__name__)

# Between two lookups, however often peers are lost.
_LEAST_GAP_S = 0.2


class PeerFinder:
    """Asks for names again and again, and at once when told that a peer was lost.

    A name for which DNS has no answer keeps its last one: what is gone shows by its session, and what is not serves on while DNS is down.

    Args:
        names: what is looked for.
        interval_s: between two lookups; a tenth more or less, so that gateways do not ask in step.
        on_found: gets all addresses whenever they have changed, "host:port" each, in a fixed order.
        look_up: asks DNS.

    Attributes:
        failures: Lookups that failed.
    """

    def __init__(
        self,
        names: Sequence[PeerName],
        *,
        interval_s: float,
        on_found: Callable[[tuple[str, ...]], None],
        look_up: Callable[[PeerName], Awaitable[frozenset[str]]] = look_up,
    ) -> None:
        self.failures = 0
        self._fixed = [name.target for name in names if name.kind == "address"]
        self._names = [name for name in names if name.kind != "address"]
        self._interval_s = interval_s
        self._on_found = on_found
        self._look_up = look_up
        self._answers: dict[PeerName, frozenset[str]] = {}
        self._failing: set[PeerName] = set()
        self._found: tuple[str, ...] | None = None
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Finds what needs no lookup, and looks for the rest from now on."""
        self._tell()
        if self._names:
            self._task = asyncio.create_task(self._run(), name="peer-finder")

    async def close(self) -> None:
        """Looks no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def look_now(self) -> None:
        """Does not wait for the interval to pass."""
        self._wanted.set()

    async def _run(self) -> None:
        while True:
            self._wanted.clear()
            await asyncio.gather(*(self._ask(name) for name in self._names))
            self._tell()
            await asyncio.sleep(min(_LEAST_GAP_S, self._interval_s))
            left_s = max(0.0, self._interval_s * random.uniform(0.9, 1.1) - _LEAST_GAP_S)
            try:
                await asyncio.wait_for(self._wanted.wait(), left_s)
            except TimeoutError:
                continue

    async def _ask(self, name: PeerName) -> None:
        try:
            self._answers[name] = await self._look_up(name)
        except Exception as error:
            if not isinstance(error, LookupFailed):
                logger.error("looking for %s failed", name.host, exc_info=error)
            self.failures += 1
            if name not in self._failing:
                self._failing.add(name)
                logger.warning("%s; %d addresses known before stay", error, len(self._answers.get(name, ())))
            return
        if name in self._failing:
            self._failing.remove(name)
            logger.info("DNS answers for %s again", name.host)

    def _tell(self) -> None:
        found = tuple(dict.fromkeys((*self._fixed, *sorted(frozenset().union(*self._answers.values())))))
        if found != self._found:
            self._found = found
            self._on_found(found)
