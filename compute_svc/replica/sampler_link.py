"""One long-lived stream to one sampler: frames out, answers in, and what becomes of requests when it breaks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, Protocol

import grpc

from compute_svc.replica.outgoing_frames import OutgoingFrames
from compute_svc.wire.step_output import Rows
from triserve.rpc.channel import open_channel
from triserve.rpc.errors import Internal, ServiceError, Unavailable, from_rpc_error
from triserve.rpc.fingerprint import require_same
from triserve.v1 import sampler_pb2, sampler_pb2_grpc

logger = logging.getLogger(__name__)

_HELLO_TIMEOUT_S = 5.0
_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 1.0

Call = grpc.aio.StreamStreamCall[sampler_pb2.SampleRequest, sampler_pb2.SampleResponse]


class SamplerListener(Protocol):
    """Hears what happens on the links; called on the event loop."""

    def on_sampler_ready(self, link: SamplerLink) -> None:
        """Requests may be opened."""

    def on_sampler_answer(self, link: SamplerLink, response: sampler_pb2.SampleResponse) -> None:
        """Frames up to `response.frame` are done."""

    def on_sampler_behind(self, link: SamplerLink, behind: bool) -> None:
        """The sampler has as many frames to answer as it may have, or it has caught up."""

    def on_sampler_silent(self, link: SamplerLink, numbers: list[int]) -> None:
        """The sampler answered the last rows of these requests and did not end them."""

    def on_sampler_lost(self, link: SamplerLink, error: ServiceError) -> None:
        """The stream is gone, and with it the state of all requests of the link."""


class SamplerLink:
    """Keeps a stream to one sampler, connecting again for as long as the link is not stopped.

    Args:
        target: The sampler's host:port.
        hello: What the replica says first.
        listener: Who hears about it.
        max_unanswered: Frames that may be on their way at once.
        answer_timeout_s: A frame that is unanswered for so long means that the sampler is lost.
    """

    def __init__(
        self, target: str, hello: sampler_pb2.ComputeHello, listener: SamplerListener, *, max_unanswered: int, answer_timeout_s: float
    ) -> None:
        self.target = target
        self.is_ready = False
        self.is_behind = False
        # Requests that are open at the sampler.
        self.requests: set[int] = set()
        self._hello = hello
        self._listener = listener
        self._max_unanswered = max_unanswered
        self._answer_timeout_s = answer_timeout_s
        self._task: asyncio.Task[None] | None = None
        self._last_failure = ""
        self._has_work = asyncio.Event()
        self._reset()

    def start(self) -> None:
        """Begins to connect."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends the stream; nobody hears of it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.is_ready = False

    def open(self, opening: sampler_pb2.OpenRequest) -> None:
        """Begins a request."""
        self.requests.add(opening.request)
        self._frames.add_open(opening)
        self._has_work.set()

    def close(self, number: int) -> None:
        """Drops a request that the sampler has not ended itself."""
        if number in self.requests:
            self.forget(number)
            self._frames.add_close(number)
            self._has_work.set()

    def forget(self, number: int) -> None:
        """The sampler has ended a request."""
        self.requests.discard(number)
        self._last_rows.pop(number, None)

    def send_rows(self, rows: Rows, chosen: list[int] | None) -> None:
        """Sends rows of one step.

        Args:
            rows: Of the step.
            chosen: Indices of those that are this sampler's; None = all.
        """
        self._frames.add_rows(rows, chosen)
        self._has_work.set()
        self._tell_if_behind()

    def expect_end(self, number: int) -> None:
        """All rows of a request are given to `send_rows`: the answer to the last must end it."""
        if self._frames:
            self._last_rows[number] = None
        else:
            self._last_rows[number] = self._sent
            self._require_ends()

    def _reset(self) -> None:
        self._frames = OutgoingFrames()
        self._has_work.clear()
        self.requests.clear()
        self.is_behind = False
        self._sent = 0
        self._answered = 0
        self._progress_at = 0.0
        # The frame that carries a request's last row; None while that waits to be sent.
        self._last_rows: dict[int, int | None] = {}

    async def _run(self) -> None:
        backoff = _FIRST_BACKOFF_S
        while True:
            error = await self._serve_once()
            if self.is_ready:
                backoff = _FIRST_BACKOFF_S
                self.is_ready = False
                logger.warning("sampler %s is lost: %s", self.target, error.message)
                self._listener.on_sampler_lost(self, error)
            elif error.message != self._last_failure:
                logger.warning("sampler %s is not to be had: %s", self.target, error.message)
            self._last_failure = error.message
            self._reset()
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LAST_BACKOFF_S)

    async def _serve_once(self) -> ServiceError:
        """Connects and serves until the stream breaks; returns why it did."""
        try:
            async with open_channel(self.target) as channel:
                stub: Any = sampler_pb2_grpc.SamplerServiceStub(channel)
                call: Call = stub.Sample()
                try:
                    await asyncio.wait_for(self._greet(call), _HELLO_TIMEOUT_S)
                    await _first_to_fail(self._write(call), self._read(call), self._watch())
                finally:
                    call.cancel()
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error, peer=f"sampler {self.target}")
        except ServiceError as error:
            return error
        except (TimeoutError, asyncio.InvalidStateError):
            return Unavailable(f"sampler {self.target} did not answer")
        except Exception:
            # A fault of ours costs this link's requests, not the replica; nobody waits for the task to tell of it.
            logger.exception("the link to sampler %s failed", self.target)
            return Internal(f"the link to sampler {self.target} failed")
        raise AssertionError("a stream is served until it breaks")

    async def _greet(self, call: Call) -> None:
        await call.write(sampler_pb2.SampleRequest(hello=self._hello))
        response = await call.read()
        if not isinstance(response, sampler_pb2.SampleResponse) or not response.HasField("hello"):
            raise Unavailable(f"sampler {self.target} does not say hello")
        require_same(self._hello.fingerprint, response.hello.fingerprint, peer=f"sampler {self.target}")
        self.is_ready = True
        self._last_failure = ""
        logger.info("sampler %s is ready", self.target)
        self._listener.on_sampler_ready(self)

    async def _write(self, call: Call) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            while self._frames and self._sent - self._answered < self._max_unanswered:
                frame = self._frames.take(self._sent + 1)
                if self._sent == self._answered:
                    self._progress_at = time.monotonic()
                self._sent += 1
                if not self._frames:
                    self._last_rows = {number: self._sent if last is None else last for number, last in self._last_rows.items()}
                await call.write(frame)

    async def _read(self, call: Call) -> None:
        while True:
            response = await call.read()
            if not isinstance(response, sampler_pb2.SampleResponse):
                raise Unavailable(f"sampler {self.target} has ended the stream")
            if not self._answered <= response.frame <= self._sent:
                raise Unavailable(
                    f"sampler {self.target} answered frame {response.frame}, {self._sent} are sent and {self._answered} answered"
                )
            self._answered = response.frame
            self._progress_at = time.monotonic()
            self._has_work.set()
            self._listener.on_sampler_answer(self, response)
            self._require_ends()
            self._tell_if_behind()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._answer_timeout_s / 4)
            if self._sent > self._answered and time.monotonic() - self._progress_at > self._answer_timeout_s:
                raise Unavailable(f"sampler {self.target} left frame {self._answered + 1} unanswered for {self._answer_timeout_s:g} s")

    def _tell_if_behind(self) -> None:
        backlog = self._sent - self._answered + self._frames.num_batches
        # It has caught up only when half is answered, so that it does not go to and fro.
        behind = backlog >= self._max_unanswered or (self.is_behind and 2 * backlog > self._max_unanswered)
        if behind != self.is_behind:
            self.is_behind = behind
            self._listener.on_sampler_behind(self, behind)

    def _require_ends(self) -> None:
        if not self._last_rows:
            return
        silent = [number for number, last in self._last_rows.items() if last is not None and last <= self._answered]
        if silent:
            for number in silent:
                del self._last_rows[number]
            self._listener.on_sampler_silent(self, silent)


async def _first_to_fail(*parts: Coroutine[Any, Any, None]) -> None:
    """Runs endless parts side by side until one raises; the others are ended."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
