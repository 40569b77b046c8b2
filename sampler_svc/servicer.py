"""SamplerService on the wire: one session per stream, and all frames that wait answered at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import grpc

from sampler_svc.frame_queue import FrameQueue
from sampler_svc.grammar_check.checker import GrammarChecker
from sampler_svc.grammars import GrammarCompiler, GrammarState
from sampler_svc.metrics import Metrics
from sampler_svc.request_slots import RequestSlots
from sampler_svc.session import Audits, Compiled, Frame, Session, ToCompile
from sampler_svc.text.vocabulary import Vocabulary
from sampler_svc.wire import read_frame, write_outcome
from triserve.rpc.errors import Internal, InvalidRequest, ServiceError, Unavailable
from triserve.rpc.fingerprint import require_same
from triserve.rpc.traces.spans import Tracer
from triserve.v1 import common_pb2, sampler_pb2, sampler_pb2_grpc

logger = logging.getLogger(__name__)

# Far above any vocabulary.
_MAX_LOGITS_WIDTH = 1 << 22
_MAX_NAME_LENGTH = 64

Context = grpc.aio.ServicerContext[Any, Any]
# What waits on a stream: the replica's frames, and grammars of its requests.
_Message: TypeAlias = sampler_pb2.SampleRequest | Compiled


class SamplerServicer(sampler_pb2_grpc.SamplerServiceServicer):
    """Handlers of SamplerService.

    Args:
        vocabulary: of the tokenizer.
        grammars: for the same tokenizer.
        checker: of grammars, before they are compiled.
        fingerprint: of the model folder.
        slots: of the process.
        max_queued_frames: frames of one stream that may wait.
        metrics: where to count.
        tracer: records spans; None = nothing is traced.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        grammars: GrammarCompiler,
        checker: GrammarChecker,
        fingerprint: common_pb2.Fingerprint,
        slots: RequestSlots,
        max_queued_frames: int,
        metrics: Metrics,
        tracer: Tracer | None = None,
    ) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._vocabulary = vocabulary
        self._grammars = grammars
        self._checker = checker
        # Grammars that are being checked or compiled.
        self._opening: set[asyncio.Task[GrammarState]] = set()
        self._fingerprint = fingerprint
        self._slots = slots
        self._audits = Audits()
        self._max_queued_frames = max_queued_frames
        self._queues: set[FrameQueue[_Message]] = set()

    async def GetSamplerInfo(self, request: sampler_pb2.GetSamplerInfoRequest, context: Context) -> sampler_pb2.GetSamplerInfoResponse:
        """What this sampler is."""
        return self._info()

    async def Sample(
        self, request_iterator: AsyncIterator[sampler_pb2.SampleRequest], context: Context
    ) -> AsyncIterator[sampler_pb2.SampleResponse]:
        """Serves one compute replica until it ends the stream or the sampler leaves.

        Raises:
            FingerprintMismatch: the replica serves another tokenizer or other weights.
            InvalidRequest: a message is malformed; frames before it are answered.
            Unavailable: the sampler leaves while requests are under way.
        """
        hello = await self._read_hello(request_iterator)
        session = Session(self._vocabulary, hello.logits_width, self._slots, self._audits, self._tracer)

        def drop_requests(_: object) -> None:
            session.close()

        # A stream that breaks while a response is being written must free its requests at once too.
        context.add_done_callback(drop_requests)  # type: ignore[arg-type]  # the stubs ask for a class of their own
        queue: FrameQueue[_Message] = FrameQueue(self._max_queued_frames)
        self._queues.add(queue)
        reader = asyncio.create_task(queue.fill(request_iterator))
        name = hello.compute_name[:_MAX_NAME_LENGTH]
        logger.info("stream of compute %r begins, %d logits", name, hello.logits_width)
        try:
            yield sampler_pb2.SampleResponse(hello=self._info())
            async for response in self._answers(session, queue, hello.logits_width):
                yield response
            error = reader.exception() if reader.done() and not reader.cancelled() else None
            if isinstance(error, ServiceError):
                raise error
            if self._slots.closing and session.num_requests:
                raise Unavailable("the sampler is leaving")
        finally:
            reader.cancel()
            self._queues.discard(queue)
            session.close()
            logger.info("stream of compute %r ends", name)

    @property
    def oldest_frame_s(self) -> float:
        """For how long the oldest frame has waited."""
        return max((queue.oldest_s for queue in self._queues), default=0.0)

    @property
    def has_streams(self) -> bool:
        """Whether a replica is connected."""
        return bool(self._queues)

    async def drain(self, timeout_s: float) -> None:
        """Takes no more requests, lets those under way end, then ends all streams.

        Args:
            timeout_s: how long the requests under way may take.
        """
        self._slots.close()
        try:
            async with asyncio.timeout(timeout_s):
                await self._slots.wait_idle()
        except TimeoutError:
            logger.warning("%d requests did not end within %.1f s", self._slots.open_requests, timeout_s)
        for queue in self._queues:
            queue.close()

    def _info(self) -> sampler_pb2.GetSamplerInfoResponse:
        return sampler_pb2.GetSamplerInfoResponse(
            fingerprint=self._fingerprint,
            open_requests=self._slots.open_requests,
            audited_rows=self._audits.rows,
            audit_disagreements=self._audits.disagreements,
        )

    async def _read_hello(self, stream: AsyncIterator[sampler_pb2.SampleRequest]) -> sampler_pb2.ComputeHello:
        if self._slots.closing:
            raise Unavailable("the sampler is leaving")
        message = await anext(aiter(stream), sampler_pb2.SampleRequest())
        if not message.HasField("hello"):
            raise InvalidRequest("hello is missing in the first message", field="hello")
        if message.frame or message.request or message.open or message.close:
            raise InvalidRequest("hello comes with a frame; frames begin with the second message", field="hello")
        hello = message.hello
        if not 1 <= hello.logits_width <= _MAX_LOGITS_WIDTH:
            raise InvalidRequest(f"logits_width is {hello.logits_width}, the limits are 1 and {_MAX_LOGITS_WIDTH}", field="logits_width")
        require_same(self._fingerprint, hello.fingerprint, peer="compute")
        return hello

    async def _answers(self, session: Session, queue: FrameQueue[_Message], logits_width: int) -> AsyncIterator[sampler_pb2.SampleResponse]:
        done = 0
        while messages := await queue.take_all():
            compiled = [message for message in messages if isinstance(message, Compiled)]
            frames, error = _read_frames([message for message in messages if not isinstance(message, Compiled)], done, logits_width)
            if frames or compiled:
                began = time.perf_counter()
                await session.prepare(frames)
                outcome = session.process(frames, compiled)
                for one in outcome.to_compile:
                    self._compile(one, logits_width, queue)
                if frames:
                    done = frames[-1].number
                    self._metrics.frames.inc(len(frames))
                    self._metrics.rows.inc(sum(len(frame.request) for frame in frames))
                    self._metrics.frame_seconds.observe(time.perf_counter() - began)
                if frames or not outcome.is_empty:
                    yield write_outcome(outcome, done, self._vocabulary)
            if error is not None:
                raise error

    def _compile(self, wanted: ToCompile, logits_width: int, queue: FrameQueue[_Message]) -> None:
        """Has a grammar compiled; what comes of it goes into the queue."""
        task = asyncio.create_task(self._opened(wanted, logits_width))
        self._opening.add(task)

        def put(done: asyncio.Task[GrammarState]) -> None:
            self._opening.discard(done)
            if done.cancelled():
                return
            error = done.exception()
            if error is not None and not isinstance(error, ServiceError):
                logger.error("a grammar could not be compiled", exc_info=error)
                error = Internal("the grammar could not be compiled")
            queue.put(Compiled(wanted.request, done.result() if error is None else error))

        task.add_done_callback(put)

    async def _opened(self, wanted: ToCompile, logits_width: int) -> GrammarState:
        checked = await self._checker.check(wanted.grammar)
        work = partial(self._grammars.open, wanted.grammar, logits_width, wanted.stop_token_ids, list(wanted.generated), checked)
        return await asyncio.get_running_loop().run_in_executor(self._grammars.threads, work)


def _read_frames(messages: Sequence[sampler_pb2.SampleRequest], done: int, logits_width: int) -> tuple[list[Frame], ServiceError | None]:
    """The frames up to the first malformed message, and what is wrong with that."""
    frames: list[Frame] = []
    for message in messages:
        try:
            frame = read_frame(message, logits_width)
            if frame.number != done + 1 + len(frames):
                raise InvalidRequest(f"frame is {frame.number}, the next is {done + 1 + len(frames)}", field="frame")
        except InvalidRequest as error:
            return frames, error
        frames.append(frame)
    return frames, None
