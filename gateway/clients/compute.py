"""The stream to one compute replica: requests and cancels out, parcels of text in."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import grpc

from gateway.clients.peer import Peer
from gateway.clients.prefix_index import PageBudget, PrefixIndex
from gateway.flow.generations.answer import Answer, FinishReason, Started
from triserve.rpc.delta_frame import read_delta_frame
from triserve.rpc.errors import Internal, Unavailable, from_proto
from triserve.rpc.limits import MAX_TOLD_TOKENS
from triserve.rpc.session import MalformedMessage, read_message
from triserve.rpc.tls.ends import ClientTls
from triserve.v1 import common_pb2, compute_pb2, compute_pb2_grpc, sampler_pb2

logger = logging.getLogger(__name__)

# Of a new value in the mean.
_MEAN_WEIGHT = 0.1
_WATCH_AGAIN_S = 5.0
# Requests in one message: with prompts of a megabyte each it stays under the channel's limit.
_MAX_SUBMITS_PER_MESSAGE = 32
# As many as a replica takes.
_MAX_CANCELS_PER_MESSAGE = 4096

_FINISH_REASONS: dict[int, FinishReason | None] = {
    common_pb2.FINISH_REASON_UNSPECIFIED: None,
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
}


class Attempt(NamedTuple):
    """One attempt at a choice, under way on a replica."""

    peer: ComputePeer
    number: int
    epoch: int
    answer: Answer
    prompt_tokens: int

    def cancel(self) -> None:
        """Aborts it, unless it has ended."""
        self.peer.cancel(self.number)


class ComputePeer(Peer):
    """One compute replica.

    Args:
        target: "host:port".
        hello: what we tell it that our tokenizer is; waits until that is known.
        on_change: see `Peer`.
        on_stale: called with the number of deltas that belong to no attempt under way.
        prefixes: is told what KV pages the replica holds.
        wants_prefixes: set while somebody wants to know of them; None = nobody ever does.
        tls: see `PeerSession`.
    """

    stage = "compute"
    service = "triserve.v1.ComputeService"

    def __init__(
        self,
        target: str,
        *,
        hello: Callable[[], Any],
        on_change: Callable[[], None],
        on_stale: Callable[[int], None],
        prefixes: PrefixIndex | None = None,
        wants_prefixes: asyncio.Event | None = None,
        tls: ClientTls | None = None,
    ) -> None:
        super().__init__(target, on_change=on_change, tls=tls)
        self.prefixes = PrefixIndex(PageBudget(0)) if prefixes is None else prefixes
        self._wants_prefixes = wants_prefixes
        # Of the prompts that it has begun.
        self.mean_prefill_tokens = 0.0
        self.info: compute_pb2.GetComputeInfoResponse | None = None
        self.load = compute_pb2.ComputeLoad()
        # Requests of other gateways, as far as the last report tells.
        self.others = 0
        # Requests given to it since the start.
        self.submitted = 0
        self._hello = hello
        self._on_stale = on_stale
        self._greeting: compute_pb2.GatewayHello | None = None
        self._stream: grpc.aio.StreamStreamCall[Any, Any] | None = None
        self._attempts: dict[int, Attempt] = {}
        # Those of them that wait for admission, or for their first token.
        self._unstarted: set[int] = set()
        self._submits: dict[int, compute_pb2.SubmitRequest] = {}
        self._cancels: list[int] = []
        self._wake = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Requests of ours that have not left it."""
        return len(self._attempts)

    @property
    def waiting(self) -> int:
        """Requests that wait there: as many as it says, or as we have given it since."""
        return max(self.load.waiting_requests, len(self._unstarted))

    @property
    def page_size_tokens(self) -> int:
        """Of its KV pages; 0 = it has none that it tells of."""
        return self.info.page_size_tokens if self.info is not None else 0

    def submit(self, request: compute_pb2.SubmitRequest, answer: Answer) -> Attempt:
        """Gives the replica a request; its deltas go to the answer.

        Args:
            request: complete but for its number, which is set here.
            answer: fails if the stream is lost.

        Raises:
            Unavailable: there is no session.
        """
        if not self._open:
            raise Unavailable("there is no session with the compute replica")
        self.submitted += 1
        request.request = self.submitted
        attempt = Attempt(self, self.submitted, request.epoch, answer, len(request.token_ids) + len(request.generated_token_ids))
        self._attempts[attempt.number] = attempt
        self._unstarted.add(attempt.number)
        self._submits[attempt.number] = request
        self._wake.set()
        return attempt

    def cancel(self, number: int) -> None:
        """Aborts a request; one that has ended is left alone."""
        attempt = self._attempts.get(number)
        if attempt is None or attempt.answer.finish_reason is not None:
            return
        self._forget(number)
        if self._submits.pop(number, None) is None and self._open:
            self._cancels.append(number)
            self._wake.set()

    async def _prepare(self) -> None:
        self._greeting = await self._hello()

    async def _greet(self, channel: grpc.aio.Channel) -> None:
        self._stream = compute_pb2_grpc.ComputeServiceStub(channel).Generate()
        self._prefix_cache = compute_pb2_grpc.PrefixCacheServiceStub(channel)
        await self._stream.write(compute_pb2.GenerateRequest(hello=self._greeting))
        message = await read_message(self._stream, compute_pb2.GenerateResponse, before=" before its hello")
        if not message.HasField("hello"):
            raise MalformedMessage("hello is missing in the first message")
        info = message.hello
        for field, value, least in (("logits_width", info.logits_width, 1), ("max_model_len_tokens", info.max_model_len_tokens, 2)):
            if value < least:
                raise MalformedMessage(f"{field} is {value}, the least is {least}")
        self.info, self.fingerprint = info, info.fingerprint
        self._see_load(info.load)

    def _parts(self) -> Sequence[Coroutine[Any, Any, None]]:
        assert self._stream is not None, "the replica has said hello"
        watch = () if self._wants_prefixes is None else (self._watch_prefixes(self._wants_prefixes),)
        return (self._read(self._stream), self._write(self._stream), *watch)

    async def _read(self, stream: grpc.aio.StreamStreamCall[Any, Any]) -> None:
        while True:
            self._receive(await read_message(stream, compute_pb2.GenerateResponse))

    def _receive(self, message: compute_pb2.GenerateResponse) -> None:
        for started in message.started:
            attempt = self._attempts.get(started.request)
            if attempt is not None and attempt.epoch == started.epoch:
                self._unstarted.discard(started.request)
                computed = max(0, attempt.prompt_tokens - started.cached_tokens)
                self.mean_prefill_tokens += _MEAN_WEIGHT * (computed - self.mean_prefill_tokens)
                attempt.answer.begin(Started(started.cached_tokens, started.queue_us, started.prefill_us))
        # All are read before the first is delivered: of a message that is malformed nobody gets anything.
        assert self.info is not None, "the replica has said hello"
        for hidden in message.hidden_states:
            self._take_hidden(hidden, self.info.hidden_size)
        for frame in [read_delta_frame(parcel, logits_width=self.info.logits_width) for parcel in message.parcels]:
            self._deliver(frame)
        for ended in message.ended:
            self._end(ended)
        if message.HasField("load"):
            self._see_load(message.load)

    def _take_hidden(self, hidden: compute_pb2.RequestHiddenStates, width: int) -> None:
        num_bytes = len(hidden.vectors)
        if hidden.width != width or not width or num_bytes % (4 * width) or num_bytes > 4 * width * MAX_TOLD_TOKENS:
            raise MalformedMessage(f"{len(hidden.vectors)} bytes of hidden states are no vectors of {width} numbers")
        attempt = self._attempts.get(hidden.request)
        if attempt is not None and attempt.epoch == hidden.epoch:
            attempt.answer.hidden += hidden.vectors
            if len(attempt.answer.hidden) > 4 * width * attempt.prompt_tokens:
                raise MalformedMessage("a request has more hidden states than tokens")

    def _deliver(self, frame: sampler_pb2.DeltaFrame) -> None:
        now = time.monotonic()
        tokens = list(frame.token)
        columns = zip(
            frame.request,
            frame.epoch,
            frame.first_position,
            frame.num_tokens,
            frame.text,
            frame.finish_reason,
            _dealt(frame.num_logprobs, frame.logprobs, len(frame.request)),
            frame.first_prompt_position or [0] * len(frame.request),
            _dealt(frame.num_prompt_logprobs, frame.prompt_logprobs, len(frame.request)),
            strict=True,
        )
        end = stale = 0
        for number, epoch, first_position, num_tokens, text, finish_reason, logprobs, first_of_prompt, of_prompt in columns:
            begin, end = end, end + num_tokens
            attempt = self._attempts.get(number)
            if attempt is None or attempt.epoch != epoch:
                stale += 1
                continue
            if of_prompt:
                if first_of_prompt + len(of_prompt) > attempt.prompt_tokens:
                    raise MalformedMessage("a parcel tells of more tokens than a prompt has")
                attempt.answer.tell_prompt(first_of_prompt, of_prompt)
                # Of the prompt alone: the answer has not begun.
                if not (num_tokens or text or finish_reason or logprobs):
                    continue
            attempt.answer.push(first_position, tokens[begin:end], text, _FINISH_REASONS[finish_reason], logprobs, now=now)
        if stale:
            self._on_stale(stale)

    def _end(self, ended: compute_pb2.RequestEnded) -> None:
        attempt = self._attempts.get(ended.request)
        if attempt is None or attempt.epoch != ended.epoch:
            return
        self._forget(ended.request)
        if ended.outcome == compute_pb2.REQUEST_OUTCOME_FAILED:
            attempt.answer.fail(from_proto(ended.error))
        else:
            # Without effect on an answer that has its finish reason, as all have that end well.
            attempt.answer.fail(Internal("the answer ended without a finish reason"))

    def _forget(self, number: int) -> None:
        del self._attempts[number]
        self._unstarted.discard(number)

    def _see_load(self, load: compute_pb2.ComputeLoad) -> None:
        self.load = load
        self.others = max(0, load.running_requests + load.waiting_requests - self.in_flight)

    async def _write(self, stream: grpc.aio.StreamStreamCall[Any, Any]) -> None:
        while True:
            await self._wake.wait()
            # Whoever else is to submit in this turn of the event loop does: a message costs more than what is in it.
            await asyncio.sleep(0)
            self._wake.clear()
            while self._submits or self._cancels:
                submits = [self._submits.pop(number) for number in list(self._submits)[:_MAX_SUBMITS_PER_MESSAGE]]
                cancels, self._cancels = self._cancels[:_MAX_CANCELS_PER_MESSAGE], self._cancels[_MAX_CANCELS_PER_MESSAGE:]
                await stream.write(compute_pb2.GenerateRequest(submit=submits, cancel=cancels))

    async def _watch_prefixes(self, wanted: asyncio.Event) -> None:
        """Keeps the index current. A replica that does not tell is one of which nothing is known."""
        while True:
            await wanted.wait()
            try:
                events = self._prefix_cache.WatchKvEvents(compute_pb2.WatchKvEventsRequest())
                while True:
                    message = await read_message(events, compute_pb2.WatchKvEventsResponse)
                    if message.reset:
                        self.prefixes.clear()
                    self.prefixes.change(removed=message.removed, stored=message.stored)
            except grpc.aio.AioRpcError as error:
                logger.info("what compute %s holds is not known: %s", self.target, error.code().name)
            except Unavailable as error:
                logger.info("what compute %s holds is not known: %s", self.target, error.message)
            self.prefixes.clear()
            await asyncio.sleep(_WATCH_AGAIN_S)

    def _lost(self, error: Unavailable) -> None:
        self.prefixes.clear()
        self._submits.clear()
        self._cancels.clear()
        attempts, self._attempts = self._attempts, {}
        self._unstarted.clear()
        self.load = compute_pb2.ComputeLoad()
        self.others = 0
        for attempt in attempts.values():
            attempt.answer.fail(error)


def _dealt(
    counts: Sequence[int], column: Sequence[sampler_pb2.TokenLogprobs], num_deltas: int
) -> list[list[sampler_pb2.TokenLogprobs]] | list[tuple[()]]:
    """The log-probabilities of each delta."""
    if not column:
        return [()] * num_deltas
    rows: list[list[sampler_pb2.TokenLogprobs]] = []
    entries = list(column)
    end = 0
    for count in counts:
        begin, end = end, end + count
        rows.append(entries[begin:end])
    return rows
