"""What one gateway is told: collected while it reads, merged while it does not, cut off when it does not read at all."""

from __future__ import annotations

import asyncio

from triserve.rpc.errors import Overloaded, ServiceError
from triserve.v1 import compute_pb2

# A small message's share of the bytes that wait: fields, tags and the space around them.
_ITEM_BYTES = 64


class GatewayLink:
    """One gateway's stream, from the replica's side.

    Everything said between two reads goes out as one message.

    Args:
        number: The replica's own number of the gateway.
        name: As the gateway calls itself.
        max_backlog_bytes: Most bytes that wait.
    """

    def __init__(self, number: int, name: str, max_backlog_bytes: int) -> None:
        self.number = number
        self.name = name
        # The gateway's request -> the engine's number.
        self.requests: dict[int, int] = {}
        self.cut_off = asyncio.Event()
        self._max_backlog_bytes = max_backlog_bytes
        self._waiting = compute_pb2.GenerateResponse()
        self._backlog_bytes = 0
        self._has_news = asyncio.Event()
        self._closed = False
        self._error: ServiceError | None = None

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will be sent than what waits now."""
        return self._closed

    def add_started(self, started: compute_pb2.RequestStarted) -> None:
        """A request has its first token; goes out with the text that follows, or with the next load."""
        self._waiting.started.append(started)
        self._grow(_ITEM_BYTES)

    def add_parcel(self, parcel: bytes) -> None:
        """Text from a sampler."""
        self._waiting.parcels.append(parcel)
        self._grow(len(parcel) + _ITEM_BYTES)
        self._has_news.set()

    def add_hidden(self, hidden: compute_pb2.RequestHiddenStates) -> None:
        """Hidden states that a request asked for."""
        self._waiting.hidden_states.append(hidden)
        self._grow(len(hidden.vectors) + _ITEM_BYTES)
        self._has_news.set()

    def add_ended(self, ended: compute_pb2.RequestEnded) -> None:
        """A request has ended."""
        self._waiting.ended.append(ended)
        self._grow(ended.ByteSize() + _ITEM_BYTES)
        self._has_news.set()

    def set_load(self, load: compute_pb2.ComputeLoad) -> None:
        """The replica's load; replaces one that still waits."""
        self._waiting.load.CopyFrom(load)
        self._has_news.set()

    def close(self, error: ServiceError | None = None) -> None:
        """Ends the stream after what waits now, with a status if there is an error."""
        if not self._closed:
            self._closed = True
            self._error = error
            self._has_news.set()

    async def next_response(self) -> compute_pb2.GenerateResponse | None:
        """What has gathered; waits for it.

        Returns:
            None when the stream is over.

        Raises:
            ServiceError: The stream is over, with this status.
        """
        await self._has_news.wait()
        self._has_news.clear()
        if self._closed:
            self._has_news.set()
            if not self._backlog_bytes:
                if self._error is not None:
                    raise self._error
                return None
        response, self._waiting = self._waiting, compute_pb2.GenerateResponse()
        self._backlog_bytes = 0
        return response

    def _grow(self, num_bytes: int) -> None:
        self._backlog_bytes += num_bytes
        if self._backlog_bytes > self._max_backlog_bytes and not self._closed:
            self._waiting = compute_pb2.GenerateResponse()
            self._backlog_bytes = 0
            self.close(Overloaded(f"the gateway has not read {self._max_backlog_bytes} bytes"))
            self.cut_off.set()
