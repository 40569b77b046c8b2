"""A compute replica over real gRPC that says what a test writes for it."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import grpc

from tests.fakes.fake_tokenizer import EOS, FINGERPRINT, VOCAB_SIZE
from triserve.rpc.errors import ServiceError, to_proto
from triserve.rpc.server import HANDSHAKE_TIMEOUT_S, ServiceServer
from triserve.rpc.tls.ends import ServerTls
from triserve.v1 import common_pb2, compute_pb2, compute_pb2_grpc, sampler_pb2


class Say(NamedTuple):
    """One delta."""

    text: str
    token_ids: Sequence[int] = ()
    finish: common_pb2.FinishReason.ValueType = common_pb2.FINISH_REASON_UNSPECIFIED


# What becomes of a request: its deltas, or deltas and then a failure.
Script: TypeAlias = Callable[[compute_pb2.SubmitRequest], Sequence[Say | ServiceError]]


def echo(request: compute_pb2.SubmitRequest) -> list[Say]:
    """The prompt's bytes, one token in a delta, then end-of-text unless it is no stop id; a new line for every round."""
    spoken = [token for token in request.token_ids if token < 256]
    wanted = request.stopping.max_tokens
    if not wanted:
        return [Say("", [], common_pb2.FINISH_REASON_LENGTH)]
    says: list[Say] = []
    while len(says) < wanted:
        for token in spoken:
            says.append(Say(chr(token) if token < 128 else "", [token]))
        if EOS in request.stopping.stop_token_ids:
            says.append(Say("", [EOS], common_pb2.FINISH_REASON_STOP))
            break
    if len(says) > wanted or says[-1].finish == common_pb2.FINISH_REASON_UNSPECIFIED:
        says = says[:wanted]
        says[-1] = says[-1]._replace(finish=common_pb2.FINISH_REASON_LENGTH)
    return says


class FakeCompute(compute_pb2_grpc.ComputeServiceServicer):
    """Implements the stage's interface. Every request is recorded; a test may hold deltas back and let them go one by one.

    Args:
        script: what becomes of a request.
        listen: "host:port".
        tls: as of `ServiceServer`.
        handshake_timeout_s: as of `ServiceServer`.
        info: fields of the info that differ from a plain model's.
    """

    def __init__(
        self,
        script: Script = echo,
        listen: str = "127.0.0.1:0",
        *,
        tls: ServerTls | None = None,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        **info: Any,
    ) -> None:
        known = {"fingerprint": FINGERPRINT, "max_model_len_tokens": 4096, "logits_width": VOCAB_SIZE, "dtype": "float32", "device": "cpu"}
        self.info = compute_pb2.GetComputeInfoResponse(**{**known, **info})
        self.script = script
        # Deltas wait while it is cleared, apart from those let through.
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._passes = asyncio.Semaphore(0)
        self.hellos: list[compute_pb2.GatewayHello] = []
        self.submitted: list[compute_pb2.SubmitRequest] = []
        self.cancelled: list[int] = []
        self._streams: list[asyncio.Queue[compute_pb2.GenerateResponse]] = []
        self.host = listen.rpartition(":")[0]
        # What its prefix cache tells those who watch it; None = it has none.
        self.kv_events: asyncio.Queue[compute_pb2.WatchKvEventsResponse] | None = None
        self.server = ServiceServer(
            ["triserve.v1.ComputeService"], self._register, listen, tls=tls, handshake_timeout_s=handshake_timeout_s
        )

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"{self.host}:{self.server.port}"

    async def start(self) -> None:
        """Listens, ready."""
        await self.server.start()
        await self.server.health.set_ready(True)

    async def kill(self) -> None:
        """Ends every stream at once."""
        await self.server.stop(0)

    def let_through(self, count: int = 1) -> None:
        """Lets some deltas go although the rest is held back."""
        for _ in range(count):
            self._passes.release()

    def send(self, message: compute_pb2.GenerateResponse) -> None:
        """Sends a message of the test's own to every gateway."""
        for stream in self._streams:
            stream.put_nowait(message)

    def _register(self, server: grpc.aio.Server) -> None:
        compute_pb2_grpc.add_ComputeServiceServicer_to_server(self, server)
        compute_pb2_grpc.add_PrefixCacheServiceServicer_to_server(_PrefixCache(self), server)

    async def GetComputeInfo(self, request: Any, context: Any) -> compute_pb2.GetComputeInfoResponse:
        """What it says it is."""
        return self.info

    async def Generate(
        self, request_iterator: AsyncIterator[compute_pb2.GenerateRequest], context: Any
    ) -> AsyncIterator[compute_pb2.GenerateResponse]:
        """Plays the script for every request."""
        stream: asyncio.Queue[compute_pb2.GenerateResponse] = asyncio.Queue()
        self._streams.append(stream)
        reader = asyncio.create_task(self._read(request_iterator, stream))
        try:
            yield compute_pb2.GenerateResponse(hello=self.info)
            while True:
                yield await stream.get()
        finally:
            self._streams.remove(stream)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(
        self, requests: AsyncIterator[compute_pb2.GenerateRequest], stream: asyncio.Queue[compute_pb2.GenerateResponse]
    ) -> None:
        playing: dict[int, asyncio.Task[None]] = {}
        try:
            async for message in requests:
                if message.HasField("hello"):
                    self.hellos.append(message.hello)
                for request in message.submit:
                    self.submitted.append(request)
                    playing[request.request] = asyncio.create_task(self._play(request, stream))
                for number in message.cancel:
                    self.cancelled.append(number)
                    playing[number].cancel()
                    stream.put_nowait(compute_pb2.GenerateResponse(ended=[_ended(number, 0, compute_pb2.REQUEST_OUTCOME_CANCELLED)]))
        finally:
            for task in playing.values():
                task.cancel()

    async def _play(self, request: compute_pb2.SubmitRequest, stream: asyncio.Queue[compute_pb2.GenerateResponse]) -> None:
        number, epoch = request.request, request.epoch
        position, replayed = len(request.generated_token_ids), len(request.generated_token_ids)
        outcome: compute_pb2.RequestOutcome.ValueType = compute_pb2.REQUEST_OUTCOME_FINISHED
        error: common_pb2.Error | None = None
        for say in self.script(request):
            if isinstance(say, Say) and replayed:
                # What an earlier attempt delivered is not said again.
                replayed -= len(say.token_ids)
                assert replayed >= 0, "a test's earlier attempts end where a delta does"
                continue
            await self._turn()
            if isinstance(say, ServiceError):
                outcome, error = compute_pb2.REQUEST_OUTCOME_FAILED, to_proto(say)
                break
            is_first = position == len(request.generated_token_ids)
            prompt = request.token_ids if is_first and request.sampling.HasField("prompt_logprobs") else ()
            message = compute_pb2.GenerateResponse(parcels=[frame(number, epoch, position, say, logprobs=request.sampling, prompt=prompt)])
            if is_first and request.hidden_states:
                message.hidden_states.add(request=number, epoch=epoch, vectors=self.vector(request), width=self.info.hidden_size)
            if is_first:
                message.started.add(request=number, epoch=epoch, cached_tokens=2, queue_us=3000, prefill_us=7000)
            position += len(say.token_ids)
            stream.put_nowait(message)
        stream.put_nowait(compute_pb2.GenerateResponse(ended=[_ended(number, epoch, outcome, error)]))

    def vector(self, request: compute_pb2.SubmitRequest) -> bytes:
        """What it says of a request's hidden states: their kind and the number of ids, then zeros; where it gives some."""
        numbers = [float(request.hidden_states), float(len(request.token_ids)), *[0.0] * max(0, self.info.hidden_size - 2)]
        return struct.pack(f"<{len(numbers)}f", *numbers)

    async def _turn(self) -> None:
        waits = [asyncio.ensure_future(self.flowing.wait()), asyncio.ensure_future(self._passes.acquire())]
        try:
            if not self.flowing.is_set():
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(0)
        finally:
            for wait in waits:
                wait.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*waits, return_exceptions=True)


class _PrefixCache(compute_pb2_grpc.PrefixCacheServiceServicer):
    """Tells what a test says."""

    def __init__(self, compute: FakeCompute) -> None:
        self._compute = compute

    async def PinPrefix(self, request: Any, context: Any) -> Any:
        """Pins nothing."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "nothing is pinned")

    async def UnpinPrefix(self, request: Any, context: Any) -> Any:
        """Pins nothing."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "nothing is pinned")

    async def GetPrefixStats(self, request: Any, context: Any) -> compute_pb2.GetPrefixStatsResponse:
        """Counts nothing."""
        return compute_pb2.GetPrefixStatsResponse()

    async def WatchKvEvents(self, request: Any, context: Any) -> AsyncIterator[compute_pb2.WatchKvEventsResponse]:
        """The test's events."""
        if self._compute.kv_events is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no prefix cache")
        else:
            while True:
                yield await self._compute.kv_events.get()


def frame(
    number: int,
    epoch: int,
    first_position: int,
    say: Say,
    *,
    logprobs: common_pb2.SamplingParams | None = None,
    prompt: Sequence[int] = (),
) -> bytes:
    """A parcel with one delta, which tells of a prompt too."""
    wanted = logprobs is not None and logprobs.HasField("top_logprobs")
    entries = (
        [
            _logprob(token, logprobs.top_logprobs, first_position + index, logprobs.logprob_token_ids)
            for index, token in enumerate(say.token_ids)
        ]
        if wanted and logprobs is not None
        else []
    )
    return sampler_pb2.DeltaFrame(
        request=[number],
        epoch=[epoch],
        first_position=[first_position],
        num_tokens=[len(say.token_ids)],
        text=[say.text],
        finish_reason=[say.finish],
        token=say.token_ids,
        logprobs=entries,
        num_logprobs=[len(entries)],
        prompt_logprobs=[_of_prompt(token, logprobs.prompt_logprobs, index) for index, token in enumerate(prompt)] if logprobs else (),
        num_prompt_logprobs=[len(prompt)] if prompt else (),
        first_prompt_position=[0] if prompt else (),
    ).SerializeToString()


def _of_prompt(token: int, top: int, position: int) -> sampler_pb2.TokenLogprobs:
    """Each is its position's likeliest token, the first nobody knows."""
    if not position:
        return sampler_pb2.TokenLogprobs(token=token, token_bytes=bytes([token % 256]), text=chr(token % 128))
    entry = _logprob(token % 256, top, position)
    entry.rank = 1
    return entry


def _logprob(token: int, top: int, offset: int, named_ids: Sequence[int] = ()) -> sampler_pb2.TokenLogprobs:
    named = [sampler_pb2.TopLogprob(token=one, logprob=-float(one), token_bytes=bytes([one % 256])) for one in named_ids]
    own = bytes([token]) if token < 256 else b""
    likeliest = [
        sampler_pb2.TopLogprob(token=(token + rank) % 256, logprob=-0.5 - rank, token_bytes=bytes([(token + rank) % 256]))
        for rank in range(top)
    ]
    text = own.decode(errors="ignore")
    return sampler_pb2.TokenLogprobs(logprob=-0.5, token_bytes=own, top=likeliest, token=token, text=text, text_offset=offset, named=named)


def _ended(
    number: int, epoch: int, outcome: compute_pb2.RequestOutcome.ValueType, error: common_pb2.Error | None = None
) -> compute_pb2.RequestEnded:
    return compute_pb2.RequestEnded(request=number, epoch=epoch, outcome=outcome, error=error)
