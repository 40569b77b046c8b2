"""A sampler over real gRPC that draws the likeliest token and does, on demand, what a sampler should not do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import grpc
import numpy as np

from triserve.rpc.errors import Internal, to_proto
from triserve.rpc.server import ServiceServer
from triserve.v1 import common_pb2, sampler_pb2, sampler_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class _Open:
    opening: sampler_pb2.OpenRequest
    tokens: list[int] = field(default_factory=list)


class FakeSampler(sampler_pb2_grpc.SamplerServiceServicer):
    """One sampler; attributes may be changed while it runs.

    Args:
        fingerprint: What it says it serves.

    Attributes:
        frames: Every frame it got, hello apart.
        hellos: First messages it got.
        may_answer: Cleared, it reads and does not answer.
        finish_after: It ends a request after so many tokens, as if a stop string matched; None = never.
        fail_at: It fails a request at this position; None = never.
        ends_requests: Whether it ever says that a request has ended.
        text_bytes: Bytes of padding in each delta's text.
        spoil: Changes each answer before it is sent; returns what is sent in its place.
        logprobs: Whether each token comes with its log-probability, 0, and two likeliest tokens: itself and id 0.
        greets: Whether it says hello; if not, it ends the stream at once.
    """

    def __init__(self, fingerprint: common_pb2.Fingerprint) -> None:
        self.fingerprint = fingerprint
        self.frames: list[sampler_pb2.SampleRequest] = []
        self.hellos: list[sampler_pb2.ComputeHello] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.finish_after: int | None = None
        self.fail_at: int | None = None
        self.ends_requests = True
        self.text_bytes = 0
        self.spoil: Callable[[sampler_pb2.SampleResponse], Sequence[sampler_pb2.SampleResponse]] | None = None
        self.logprobs = False
        self.greets = True
        self.open: dict[int, _Open] = {}
        self._server: ServiceServer | None = None

    async def start(self, listen: str = "127.0.0.1:0", **options: Any) -> str:
        """Listens; returns where. Options are those of `ServiceServer`."""
        self._server = ServiceServer(["triserve.v1.SamplerService"], self._register, listen, **options)
        await self._server.start()
        await self._server.health.set_ready(True)
        return f"127.0.0.1:{self._server.port}"

    @property
    def server(self) -> ServiceServer:
        """It listens."""
        assert self._server is not None, "the test has started it"
        return self._server

    async def stop(self) -> None:
        """Breaks all streams."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def GetSamplerInfo(self, request: sampler_pb2.GetSamplerInfoRequest, context: Context) -> sampler_pb2.GetSamplerInfoResponse:
        """Its fingerprint."""
        return sampler_pb2.GetSamplerInfoResponse(fingerprint=self.fingerprint, open_requests=len(self.open))

    async def Sample(
        self, request_iterator: AsyncIterator[sampler_pb2.SampleRequest], context: Context
    ) -> AsyncIterator[sampler_pb2.SampleResponse]:
        """Answers each frame by itself."""
        first = await anext(aiter(request_iterator), None)
        if first is None:
            return
        self.hellos.append(first.hello)
        if not self.greets:
            return
        self.open.clear()
        yield sampler_pb2.SampleResponse(hello=await self.GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest(), context))
        unanswered: asyncio.Queue[sampler_pb2.SampleRequest | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(request_iterator, unanswered))
        try:
            while (frame := await unanswered.get()) is not None:
                await self.may_answer.wait()
                answer = self._answer(frame)
                for response in [answer] if self.spoil is None else self.spoil(answer):
                    yield response
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(
        self, frames: AsyncIterator[sampler_pb2.SampleRequest], unanswered: asyncio.Queue[sampler_pb2.SampleRequest | None]
    ) -> None:
        async for frame in frames:
            self.frames.append(frame)
            unanswered.put_nowait(frame)
        unanswered.put_nowait(None)

    def _answer(self, frame: sampler_pb2.SampleRequest) -> sampler_pb2.SampleResponse:
        response = sampler_pb2.SampleResponse(frame=frame.frame)
        for opening in frame.open:
            self.open[opening.request] = _Open(opening)
        for request in frame.close:
            self.open.pop(request, None)
        deltas: dict[int, sampler_pb2.DeltaFrame] = {}
        logits = {one.row: np.frombuffer(one.logits, "<f4") for one in frame.logits}
        tokens = iter(frame.token)
        rows = zip(frame.request, frame.position, frame.num_tokens or [1] * len(frame.request), strict=True)
        for row, (request, position, count) in enumerate(rows):
            drawn = list(islice(tokens, count))
            state = self.open.get(request)
            if state is None:
                continue
            assert position == len(state.opening.generated_token_ids) + len(state.tokens), "rows come in order"
            if not drawn:
                drawn = [int(logits[row].argmax())]
                response.request.append(request)
                response.position.append(position)
                response.token.append(drawn[0])
            for place, token in enumerate(drawn):
                if request in self.open:
                    self._advance(response, deltas, state, position + place, token)
        response.parcels.extend(
            sampler_pb2.Parcel(gateway=gateway, delta_frame=delta.SerializeToString()) for gateway, delta in deltas.items()
        )
        return response

    def _advance(
        self, response: sampler_pb2.SampleResponse, deltas: dict[int, sampler_pb2.DeltaFrame], state: _Open, position: int, token: int
    ) -> None:
        opening, stopping = state.opening, state.opening.stopping
        state.tokens.append(token)
        if position == self.fail_at:
            failure = sampler_pb2.SampleFailure(request=opening.request, error=to_proto(Internal("the sampler was told to fail")))
            response.failed.append(failure)
            del self.open[opening.request]
            return
        finish = common_pb2.FINISH_REASON_UNSPECIFIED
        if position + 1 == self.finish_after or (token in stopping.stop_token_ids and position + 1 > stopping.min_tokens):
            finish = common_pb2.FINISH_REASON_STOP
        elif position + 1 == stopping.max_tokens:
            finish = common_pb2.FINISH_REASON_LENGTH
        if not self.ends_requests:
            finish = common_pb2.FINISH_REASON_UNSPECIFIED
        delta = deltas.setdefault(opening.gateway, sampler_pb2.DeltaFrame())
        delta.request.append(opening.gateway_request)
        delta.epoch.append(opening.epoch)
        delta.first_position.append(position)
        delta.num_tokens.append(1)
        delta.text.append(f"<{token}>" + "." * self.text_bytes)
        delta.finish_reason.append(finish)
        delta.token.append(token)
        delta.num_logprobs.append(int(self.logprobs))
        if self.logprobs:
            tops = [sampler_pb2.TopLogprob(token=one) for one in (token, 0)][: opening.sampling.top_logprobs]
            delta.logprobs.append(sampler_pb2.TokenLogprobs(token=token, top=tops))
        if finish != common_pb2.FINISH_REASON_UNSPECIFIED:
            response.finished.append(opening.request)
            del self.open[opening.request]

    def _register(self, server: grpc.aio.Server) -> None:
        add: Any = sampler_pb2_grpc.add_SamplerServiceServicer_to_server
        add(self, server)
