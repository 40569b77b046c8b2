"""One answer being made, in the process: filled by its maker, read by any number of readers, each at its own pace."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prompt_cache.entry import CachedDelta, FinishReason


class Finished(NamedTuple):
    """The answer is whole."""

    finish_reason: FinishReason
    # Tokens of the prompt, for the usage report.
    prompt_tokens: int


class Failed(NamedTuple):
    """The answer will not be made."""

    reason: str


class Vacant(NamedTuple):
    """Whoever made the answer is gone; it goes on when somebody takes over."""

    reason: str


class Batch(NamedTuple):
    """What a reader gets: the deltas it has not had, and what follows them."""

    deltas: tuple[CachedDelta, ...]
    # None = more will come.
    state: Finished | Failed | Vacant | None


class Flight:
    """An answer being made. Pure asyncio, one event loop.

    It holds each delta once, however many readers there are and however slow they are. It begins without a maker.

    Args:
        on_abandoned: called when the last reader leaves before the end.
    """

    def __init__(self, *, on_abandoned: Callable[[], None] | None = None) -> None:
        self._deltas: list[CachedDelta] = []
        self._state: Finished | Failed | Vacant | None = Vacant("nobody has begun")
        self._num_readers = 0
        self._on_abandoned = on_abandoned
        # What readers wait for; None = nobody waits.
        self._changed: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._deltas)

    @property
    def end(self) -> Finished | Failed | None:
        """How the answer ended; None while it goes on."""
        return None if isinstance(self._state, Vacant) else self._state

    @property
    def vacant(self) -> bool:
        """Whether nobody makes it, and somebody may take over."""
        return isinstance(self._state, Vacant)

    @property
    def num_readers(self) -> int:
        """Readers now."""
        return self._num_readers

    @property
    def token_ids(self) -> list[int]:
        """All ids so far: whoever takes over goes on behind them."""
        return [token_id for delta in self._deltas for token_id in delta.token_ids]

    def since(self, after: int) -> tuple[CachedDelta, ...]:
        """The deltas from number `after` on that are here."""
        return tuple(self._deltas[after:])

    def take_over(self) -> bool:
        """Makes the caller the maker if there is none; of several callers, the first."""
        if not self.vacant:
            return False
        self._state = None
        return True

    def put(self, deltas: Iterable[CachedDelta]) -> None:
        """Adds what was made. After the end, or without a maker, it is dropped."""
        if self._state is None:
            before = len(self._deltas)
            self._deltas.extend(deltas)
            if len(self._deltas) > before:
                self._wake()

    def finish(self, finish_reason: FinishReason, prompt_tokens: int) -> None:
        """Ends the answer, unless it has ended."""
        self._turn(Finished(finish_reason, prompt_tokens))

    def fail(self, reason: str) -> None:
        """Ends the answer without its rest, unless it has ended: every reader is told."""
        self._turn(Failed(reason))

    def vacate(self, reason: str) -> None:
        """Says that the maker is gone, unless the answer has ended: a reader may take over."""
        if self._state is None:
            self._turn(Vacant(reason))

    @contextlib.contextmanager
    def reader(self) -> Iterator[None]:
        """Counts a reader for the time of the body."""
        self._num_readers += 1
        try:
            yield
        finally:
            self._num_readers -= 1
            if not self._num_readers and self.end is None and self._on_abandoned is not None:
                self._on_abandoned()

    async def read(self, after: int) -> Batch:
        """Waits for deltas from number `after` on, or for what is left to say where there are none.

        Args:
            after: how many the reader has had.

        Raises:
            ValueError: the reader cannot have had so many.
        """
        if not 0 <= after <= len(self._deltas):
            raise ValueError(f"after is {after}, the flight has {len(self._deltas)} deltas")
        while after == len(self._deltas) and self._state is None:
            if self._changed is None:
                self._changed = asyncio.Event()
            await self._changed.wait()
        return Batch(self.since(after), self._state)

    def _turn(self, state: Finished | Failed | Vacant) -> None:
        if self.end is None:
            self._state = state
            self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
