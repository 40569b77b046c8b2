"""One long-lived stream to one sampler: frames out, checked answers in, and what becomes of requests when it breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

import grpc

from compute_svc.replica.outgoing_frames import OutgoingFrames
from compute_svc.replica.parcels import TextKey
from compute_svc.replica.sampler_ledger import SamplerAnswer, SamplerLedger
from compute_svc.wire.step_output import Rows
from triserve.rpc.errors import Unavailable
from triserve.rpc.fingerprint import require_same
from triserve.rpc.session import MalformedMessage, PeerSession, read_message
from triserve.rpc.tls.ends import ClientTls
from triserve.v1 import sampler_pb2, sampler_pb2_grpc

# A sampler that has left its frames unanswered for so long gets no new requests while another does better.
_LATE_S = 1.0

Call = grpc.aio.StreamStreamCall[sampler_pb2.SampleRequest, sampler_pb2.SampleResponse]


class SamplerListener(Protocol):
    """Hears what happens on the links; called on the event loop."""

    def on_sampler_changed(self, link: SamplerLink) -> None:
        """The sampler takes new requests from now on, or does so no longer."""

    def on_sampler_answer(self, link: SamplerLink, answer: SamplerAnswer) -> None:
        """Some frames are done. All that the answer names was open on this link."""

    def on_sampler_behind(self, link: SamplerLink, behind: bool) -> None:
        """The sampler has as many frames to answer as it may have, or it has caught up."""

    def on_sampler_silent(self, link: SamplerLink, numbers: Sequence[int]) -> None:
        """The sampler answered the last rows of these requests and did not end them."""

    def on_sampler_lost(self, link: SamplerLink, numbers: Sequence[int], error: Unavailable) -> None:
        """The stream is gone, and with it the state of these requests: all that were open on the link."""


class SamplerLink(PeerSession):
    """Keeps a stream to one sampler, connecting again for as long as the link is not closed.

    Args:
        target: The sampler's host:port.
        hello: What the replica says first.
        listener: Who hears about it.
        max_unanswered: Frames that may be on their way at once.
        answer_timeout_s: A frame that is unanswered for so long means that the sampler is lost.
        tls: See `PeerSession`.
        clock: Seconds, monotonic.
    """

    stage = "sampler"
    service = "triserve.v1.SamplerService"

    def __init__(
        self,
        target: str,
        hello: sampler_pb2.ComputeHello,
        listener: SamplerListener,
        *,
        max_unanswered: int,
        answer_timeout_s: float,
        tls: ClientTls | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(target, tls)
        self._hello = hello
        self._listener = listener
        self._max_unanswered = max_unanswered
        self._answer_timeout_s = answer_timeout_s
        self._clock = clock
        self._call: Call | None = None
        self._has_work = asyncio.Event()
        self._reset()

    @property
    def requests(self) -> Iterable[int]:
        """Requests that are open at the sampler."""
        return self._ledger.requests

    @property
    def in_flight(self) -> int:
        """How many they are."""
        return len(self._ledger)

    @property
    def lags(self) -> bool:
        """Whether the sampler is behind, or has answered nothing for a while although it should."""
        is_late = self._unanswered > 0 and self._clock() - self._progress_at > _LATE_S
        return self.is_behind or is_late

    def has(self, number: int) -> bool:
        """Whether a request is open at the sampler."""
        return number in self._ledger

    def is_leaving(self, key: TextKey) -> bool:
        """Whether text of an attempt that was closed may still come."""
        return self._ledger.is_leaving(key)

    def open(self, opening: sampler_pb2.OpenRequest) -> None:
        """Begins a request."""
        self._frames.add_open(opening)
        key = TextKey(opening.gateway, opening.gateway_request, opening.epoch)
        first = len(opening.generated_token_ids) if opening.sampling.HasField("grammar") else None
        self._ledger.open(opening.request, key, self._last_frame, first_position=first)
        self._has_work.set()

    def close_request(self, number: int) -> None:
        """Drops a request that the sampler has not ended itself."""
        if number in self._ledger:
            self._frames.add_close(number)
            self._ledger.close(number, self._last_frame)
            self._has_work.set()

    def send_rows(self, rows: Rows) -> None:
        """Sends what one step gave for this sampler."""
        self._frames.add_rows(rows)
        self._has_work.set()
        self._tell_if_behind()

    def expect_end(self, number: int) -> None:
        """All rows of a request are given to `send_rows`: the answer to the last must end it."""
        self._ledger.expect_end(number, self._last_frame)
        silent = self._ledger.take_silent()
        if silent:
            self._listener.on_sampler_silent(self, silent)

    @property
    def _unanswered(self) -> int:
        return self._ledger.sent - self._ledger.answered

    @property
    def _last_frame(self) -> int:
        """The number of the frame that carries the last of what waits, or was sent last."""
        return self._ledger.sent + len(self._frames)

    def _reset(self) -> None:
        self._frames = OutgoingFrames()
        self._ledger = SamplerLedger(self._hello.logits_width)
        self._has_work.clear()
        self.is_behind = False
        self._progress_at = self._clock()

    async def _greet(self, channel: grpc.aio.Channel) -> None:
        stub: Any = sampler_pb2_grpc.SamplerServiceStub(channel)
        self._call = stub.Sample()
        await self._call.write(sampler_pb2.SampleRequest(hello=self._hello))
        response = await read_message(self._call, sampler_pb2.SampleResponse, before=" before its hello")
        if not response.HasField("hello"):
            raise MalformedMessage("hello is missing in the first message")
        require_same(self._hello.fingerprint, response.hello.fingerprint, peer=self.stage)

    def _parts(self) -> Sequence[Coroutine[Any, Any, None]]:
        assert self._call is not None, "the sampler has said hello"
        return (self._write(self._call), self._read(self._call), self._watch_answers())

    def _changed(self) -> None:
        self._listener.on_sampler_changed(self)

    def _lost(self, error: Unavailable) -> None:
        numbers = list(self._ledger.requests)
        self._reset()
        if numbers:
            self._listener.on_sampler_lost(self, numbers, error)

    async def _write(self, call: Call) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            while self._frames and self._unanswered < self._max_unanswered:
                if not self._unanswered:
                    self._progress_at = self._clock()
                frame = self._frames.take(self._ledger.sent + 1)
                self._ledger.note_sent(frame)
                await call.write(frame)

    async def _read(self, call: Call) -> None:
        while True:
            answer = self._ledger.read(await read_message(call, sampler_pb2.SampleResponse))
            self._progress_at = self._clock()
            self._has_work.set()
            self._listener.on_sampler_answer(self, answer)
            self._tell_if_behind()

    async def _watch_answers(self) -> None:
        while True:
            now = self._clock()
            left_s = (self._progress_at if self._unanswered else now) + self._answer_timeout_s - now
            if left_s <= 0:
                raise Unavailable(f"it left frame {self._ledger.answered + 1} unanswered for {self._answer_timeout_s:g} s")
            await asyncio.sleep(left_s)

    def _tell_if_behind(self) -> None:
        backlog = self._unanswered + self._frames.num_batches
        # It has caught up only when half is answered, so that it does not go to and fro.
        behind = backlog >= self._max_unanswered or (self.is_behind and 2 * backlog > self._max_unanswered)
        if behind != self.is_behind:
            self.is_behind = behind
            self._listener.on_sampler_behind(self, behind)
