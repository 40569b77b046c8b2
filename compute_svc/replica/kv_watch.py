"""What the prefix cache holds, for everybody who watches it. Runs on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from compute_svc.wire.step_output import KvChanges
from triserve.rpc.errors import Overloaded, ServiceError
from triserve.v1 import compute_pb2

MAX_WATCHERS = 64
# Of one message: half a megabyte.
_MAX_HASHES = 1 << 16


class _Watcher:
    """Somebody who watches, and the difference between what was said and what is so: never more than both together."""

    def __init__(self) -> None:
        self.has_news = asyncio.Event()
        self._needs_reset = True
        self._stored: set[int] = set()
        self._removed: set[int] = set()

    def reset(self, pages: set[int]) -> None:
        """All that was said is void; these pages are cached."""
        self._needs_reset = True
        self._stored, self._removed = set(pages), set()
        self.has_news.set()

    def change(self, changes: KvChanges) -> None:
        """Pages have come and gone. One that does so between two messages is not spoken of."""
        for page in changes.removed:
            if page in self._stored:
                self._stored.remove(page)
            else:
                self._removed.add(page)
        for page in changes.stored:
            if page in self._removed:
                self._removed.remove(page)
            else:
                self._stored.add(page)
        self.has_news.set()

    def take(self) -> list[compute_pb2.WatchKvEventsResponse]:
        """What is to be said, in messages of a bounded size."""
        self.has_news.clear()
        stored, removed, is_reset = list(self._stored), list(self._removed), self._needs_reset
        self._stored, self._removed, self._needs_reset = set(), set(), False
        messages = [
            compute_pb2.WatchKvEventsResponse(removed=removed[start : start + _MAX_HASHES]) for start in range(0, len(removed), _MAX_HASHES)
        ]
        messages += [
            compute_pb2.WatchKvEventsResponse(stored=stored[start : start + _MAX_HASHES]) for start in range(0, len(stored), _MAX_HASHES)
        ]
        if is_reset and not messages:
            messages.append(compute_pb2.WatchKvEventsResponse())
        if is_reset:
            messages[0].reset = True
        return messages


class KvWatch:
    """Tells watchers what is cached, and from then on how that changes.

    The engine tells of changes only while somebody watches. A watcher that reads slowly gets them merged, so what waits for it is bounded
    by the pages there are.

    Args:
        watch: Asks the engine to tell of changes, from a reset on, or to tell of them no longer.
    """

    def __init__(self, watch: Callable[[bool], None]) -> None:
        self._watch = watch
        self._watchers: set[_Watcher] = set()
        # What is cached, as far as it was told; None = a reset is to come.
        self._pages: set[int] | None = None
        self._end: ServiceError | None = None

    def on_changes(self, changes: KvChanges) -> None:
        """The engine has told of changes."""
        if changes.is_reset:
            self._pages = set(changes.stored)
            for watcher in self._watchers:
                watcher.reset(self._pages)
        elif self._pages is not None:
            self._pages.difference_update(changes.removed)
            self._pages.update(changes.stored)
            for watcher in self._watchers:
                watcher.change(changes)

    def close(self, error: ServiceError) -> None:
        """Ends what all watchers are told, now and from now on, with this error."""
        self._end = error
        for watcher in self._watchers:
            watcher.has_news.set()

    async def messages(self) -> AsyncGenerator[compute_pb2.WatchKvEventsResponse]:
        """What one watcher is told, for as long as it listens.

        Raises:
            ServiceError: There are too many, or this is over.
        """
        if self._end is not None:
            raise self._end
        if len(self._watchers) >= MAX_WATCHERS:
            raise Overloaded(f"{len(self._watchers)} watch already, the limit is {MAX_WATCHERS}")
        watcher = _Watcher()
        if not self._watchers:
            self._watch(True)
        elif self._pages is not None:
            watcher.reset(self._pages)
        self._watchers.add(watcher)
        try:
            while True:
                await watcher.has_news.wait()
                if self._end is not None:
                    raise self._end
                for message in watcher.take():
                    yield message
        finally:
            self._watchers.remove(watcher)
            if not self._watchers:
                self._pages = None
                self._watch(False)
