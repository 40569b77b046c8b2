"""Every request of the replica while it is under way: between its gateway, the engine and its sampler. Runs on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from compute_svc.replica.dispatcher_ports import EnginePort, SamplerPort
from compute_svc.replica.flight_spans import FlightSpans, open_spans
from compute_svc.replica.gateway_link import GatewayLink
from compute_svc.replica.parcels import TextKey
from compute_svc.replica.sampler_ledger import SamplerAnswer
from compute_svc.replica.submission import read_submission
from compute_svc.wire.step_output import Hidden, Released, Started, StepOutput
from triserve.rpc.errors import DeadlineExceeded, Internal, InvalidRequest, ServiceError, Unavailable, to_proto
from triserve.rpc.traces.context import read_traceparent
from triserve.rpc.traces.spans import Tracer
from triserve.v1 import compute_pb2, sampler_pb2

logger = logging.getLogger(__name__)


@dataclass
class _Flight:
    """A request under way.

    It has ended when its KV is free and it is known how it ended: by the sampler's word, by a failure or by its gateway.
    """

    number: int
    gateway: GatewayLink
    gateway_request: int
    epoch: int
    request_id: str
    deadline: float | None
    # What its sampler is told at its admission; gone after that.
    message: compute_pb2.SubmitRequest | None
    num_tokens: int
    submitted_at: float
    # None = it is not traced.
    spans: FlightSpans | None = None
    sampler: SamplerPort | None = None
    first_token_at: float | None = None
    preemptions: int = 0
    is_free: bool = False
    outcome: compute_pb2.RequestOutcome.ValueType | None = None
    error: ServiceError | None = None


class QueuedPrefill(NamedTuple):
    """Requests whose first token is not computed yet: their prompts' tokens, cached or not, and for how long the oldest has waited."""

    tokens: int
    oldest_s: float


class Dispatcher:
    """Routes between gateways, engine and samplers; listens to all of them.

    Args:
        engine: Of the replica.
        logits_width: Number of logits.
        hidden_size: Of vectors of hidden states; 0 = the engine gives none.
        max_request_tokens: Most tokens of prompt and answer together.
        max_backlog_bytes: Of each gateway.
        on_samplers_change: Called when a sampler has become ready or is lost.
        tracer: Records spans; None = nothing is traced.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        engine: EnginePort,
        *,
        logits_width: int,
        hidden_size: int,
        max_request_tokens: int,
        max_backlog_bytes: int,
        on_samplers_change: Callable[[], None],
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._logits_width = logits_width
        self._hidden_size = hidden_size
        self._max_request_tokens = max_request_tokens
        self._max_backlog_bytes = max_backlog_bytes
        self._on_samplers_change = on_samplers_change
        self._tracer = tracer
        self._clock = clock
        self._samplers: list[SamplerPort] = []
        self._gateways: dict[int, GatewayLink] = {}
        self._flights: dict[int, _Flight] = {}
        self._num_gateways = 0
        self._num_numbers = 0
        self._refusal: ServiceError | None = None
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def gateways(self) -> list[GatewayLink]:
        """Gateways that are connected."""
        return list(self._gateways.values())

    @property
    def has_sampler(self) -> bool:
        """Whether a sampler is ready."""
        return any(sampler.ready for sampler in self._samplers)

    @property
    def queued_prefill(self) -> QueuedPrefill:
        """What waits for its first token."""
        waiting = [flight for flight in self._flights.values() if flight.first_token_at is None and flight.outcome is None]
        oldest = min((flight.submitted_at for flight in waiting), default=0.0)
        return QueuedPrefill(sum(flight.num_tokens for flight in waiting), self._clock() - oldest if waiting else 0.0)

    def next_number(self) -> int:
        """A number for the engine that nothing else has."""
        self._num_numbers += 1
        return self._num_numbers

    def add_sampler(self, sampler: SamplerPort) -> None:
        """From now on requests may go to this sampler."""
        self._samplers.append(sampler)

    def remove_sampler(self, sampler: SamplerPort) -> None:
        """A sampler that has no requests any more was left."""
        self._samplers.remove(sampler)

    def open_gateway(self, name: str) -> GatewayLink:
        """A gateway has connected."""
        self._num_gateways += 1
        gateway = GatewayLink(self._num_gateways, name, self._max_backlog_bytes)
        self._gateways[gateway.number] = gateway
        return gateway

    def close_gateway(self, gateway: GatewayLink) -> None:
        """A gateway is gone: its requests are cancelled. Idempotent."""
        if self._gateways.pop(gateway.number, None) is None:
            return
        gateway.close()
        for number in list(gateway.requests.values()):
            self._finish(self._flights[number], compute_pb2.REQUEST_OUTCOME_CANCELLED)

    def submit(self, gateway: GatewayLink, message: compute_pb2.SubmitRequest) -> None:
        """A gateway's new request; what is wrong with it is said in a RequestEnded."""
        try:
            if self._refusal is not None:
                raise self._refusal
            if message.request in gateway.requests:
                raise InvalidRequest(f"request {message.request} is under way already", field="request")
            key = TextKey(gateway.number, message.request, message.epoch)
            if any(sampler.is_leaving(key) for sampler in self._samplers):
                raise InvalidRequest(f"request {message.request} has just ended, and text of that attempt may still come", field="request")
            if not self.has_sampler:
                raise Unavailable("no sampler is ready")
            context = read_traceparent(message.traceparent)
            request = read_submission(
                message,
                number=self.next_number(),
                logits_width=self._logits_width,
                hidden_size=self._hidden_size,
                max_request_tokens=self._max_request_tokens,
                now=self._clock(),
            )
        except ServiceError as error:
            gateway.add_ended(
                compute_pb2.RequestEnded(
                    request=message.request, epoch=message.epoch, outcome=compute_pb2.REQUEST_OUTCOME_FAILED, error=to_proto(error)
                )
            )
            return
        self._flights[request.number] = _Flight(
            request.number,
            gateway,
            message.request,
            message.epoch,
            message.request_id,
            request.deadline,
            message,
            request.prompt.size + request.generated.size,
            self._clock(),
            open_spans(self._tracer, context, message, request.submitted_at),
        )
        gateway.requests[message.request] = request.number
        self._is_idle.clear()
        self._engine.submit(request)

    def cancel(self, gateway: GatewayLink, gateway_request: int) -> None:
        """A gateway wants a request no more; one it does not have is ignored."""
        number = gateway.requests.get(gateway_request)
        if number is not None:
            self._finish(self._flights[number], compute_pb2.REQUEST_OUTCOME_CANCELLED)

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Returns when no request is under way, or the time is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), timeout_s)

    def refuse(self, error: ServiceError) -> None:
        """From now on no request is taken."""
        self._refusal = error

    def fail_all(self, error: ServiceError) -> None:
        """Ends every request with an error."""
        for flight in list(self._flights.values()):
            self._fail(flight, error)

    def fail_overdue(self) -> None:
        """Ends requests whose time is over while the sampler has the last word; the engine sees to all others."""
        now = self._clock()
        for flight in list(self._flights.values()):
            if flight.is_free and flight.deadline is not None and flight.deadline <= now:
                self._fail(flight, DeadlineExceeded("the request's time is over"))

    def on_engine_refused(self, number: int, error: ServiceError) -> None:
        """The engine has not taken a request."""
        self._on_released(Released(number, 0, error))

    def on_engine_admitted(self, numbers: Sequence[int]) -> None:
        """Requests leave the queue: each gets the ready sampler that has the fewest."""
        for number in numbers:
            flight = self._flights.get(number)
            if flight is not None and flight.outcome is None:
                self._assign(flight)

    def on_engine_output(self, output: StepOutput, ended_at: float) -> None:
        """A step has ended: its rows go to the samplers, what has begun and ended to the gateways."""
        if output.rows is not None:
            for sampler in self._samplers:
                part = output.rows.of(sampler.has)
                if part is not None:
                    sampler.send_rows(part)
        for hidden in output.hidden:
            self._on_hidden(hidden)
        for started in output.started:
            self._on_started(started, ended_at)
        for released in output.released:
            self._on_released(released)

    def on_engine_failed(self, error: ServiceError) -> None:
        """The engine is gone, and with it all KV: every request ends with this error."""
        self.refuse(Unavailable("the engine is gone"))
        for flight in list(self._flights.values()):
            flight.is_free = True
            if flight.outcome is None:
                self._fail(flight, error)
            else:
                self._end(flight)

    def on_sampler_changed(self, link: SamplerPort) -> None:
        """New requests may go to the sampler, or may no longer."""
        self._on_samplers_change()

    def on_sampler_answer(self, link: SamplerPort, answer: SamplerAnswer) -> None:
        """Verdicts go to the engine, parcels to the gateways; requests that the sampler has ended, end."""
        if answer.verdicts:
            self._engine.verdicts(answer.verdicts)
        if answer.masks:
            self._engine.masks(answer.masks)
        for parcel in answer.parcels:
            gateway = self._gateways.get(parcel.gateway)
            if gateway is not None:
                gateway.add_parcel(parcel.content)
        for number in answer.finished:
            self._finish(self._flights[number], compute_pb2.REQUEST_OUTCOME_FINISHED)
        for failed in answer.failed:
            self._fail(self._flights[failed.number], failed.error)
        self.on_sampler_silent(link, answer.silent)

    def on_sampler_behind(self, link: SamplerPort, behind: bool) -> None:
        """Requests of a sampler that is behind pause; the others go on."""
        self._engine.pause(list(link.requests), paused=behind)

    def on_sampler_silent(self, link: SamplerPort, numbers: Sequence[int]) -> None:
        """A sampler answered frames and left rows of these requests out, or goes on as if there were more: they fail, it stays."""
        for number in numbers:
            flight = self._flights[number]
            logger.error("sampler %s left out a row of request %s", link.target, flight.request_id)
            self._fail(flight, Internal("the sampler left out a part of the answer"))

    def on_sampler_lost(self, link: SamplerPort, numbers: Sequence[int], error: Unavailable) -> None:
        """The requests of a sampler that is gone fail; the gateway may submit them again."""
        for number in numbers:
            self._fail(self._flights[number], error)

    def _assign(self, flight: _Flight) -> None:
        ready = [sampler for sampler in self._samplers if sampler.ready]
        if not ready:
            self._fail(flight, Unavailable("no sampler is ready"))
            return
        sampler = min(ready, key=lambda sampler: (sampler.lags, sampler.in_flight))
        message = flight.message
        assert message is not None, "a request is admitted once"
        if flight.spans is not None:
            flight.spans.admitted(self._clock())
        flight.sampler, flight.message = sampler, None
        sampler.open(
            sampler_pb2.OpenRequest(
                request=flight.number,
                gateway=flight.gateway.number,
                gateway_request=flight.gateway_request,
                epoch=flight.epoch,
                request_id=flight.request_id,
                prompt_token_ids=message.token_ids,
                generated_token_ids=message.generated_token_ids,
                sampling=message.sampling,
                stopping=message.stopping,
                traceparent=message.traceparent,
            )
        )
        if sampler.is_behind:
            self._engine.pause([flight.number], paused=True)

    def _on_started(self, started: Started, at: float) -> None:
        flight = self._flights.get(started.number)
        if flight is None:
            return
        flight.first_token_at = at
        if flight.spans is not None:
            flight.spans.started(started, at)
        flight.gateway.add_started(
            compute_pb2.RequestStarted(
                request=flight.gateway_request,
                epoch=flight.epoch,
                cached_tokens=started.cached_tokens,
                queue_us=_microseconds(started.admitted_at - started.submitted_at),
                prefill_us=_microseconds(at - started.admitted_at),
            )
        )

    def _on_hidden(self, hidden: Hidden) -> None:
        flight = self._flights.get(hidden.number)
        if flight is not None and flight.outcome is None:
            flight.gateway.add_hidden(
                compute_pb2.RequestHiddenStates(
                    request=flight.gateway_request,
                    epoch=flight.epoch,
                    first_position=hidden.first_position,
                    vectors=hidden.vectors,
                    width=hidden.width,
                )
            )

    def _on_released(self, released: Released) -> None:
        """A request's KV is free: it has ended if it is known how, else its sampler will say so."""
        flight = self._flights.get(released.number)
        if flight is None:
            return
        flight.is_free = True
        flight.preemptions = released.preemptions
        if flight.outcome is not None:
            self._end(flight)
        elif released.error is not None:
            if isinstance(released.error, Internal):
                logger.error("request %s failed: %s", flight.request_id, released.error.message)
            self._fail(flight, released.error)
        else:
            assert flight.sampler is not None, "who has computed a last token has a sampler"
            flight.sampler.expect_end(flight.number)

    def _fail(self, flight: _Flight, error: ServiceError) -> None:
        self._finish(flight, compute_pb2.REQUEST_OUTCOME_FAILED, error)

    def _finish(self, flight: _Flight, outcome: compute_pb2.RequestOutcome.ValueType, error: ServiceError | None = None) -> None:
        """It is known how a request ends; the first word counts. It has ended as soon as its KV is free."""
        if flight.outcome is not None:
            return
        flight.outcome, flight.error = outcome, error
        if flight.sampler is not None:
            flight.sampler.close_request(flight.number)
        if flight.is_free:
            self._end(flight)
        else:
            self._engine.release(flight.number)

    def _end(self, flight: _Flight) -> None:
        assert flight.outcome is not None, "it is known how a request ended"
        del self._flights[flight.number]
        del flight.gateway.requests[flight.gateway_request]
        if not self._flights:
            self._is_idle.set()
        if flight.spans is not None:
            is_cancelled = flight.outcome == compute_pb2.REQUEST_OUTCOME_CANCELLED
            flight.spans.ended(self._clock(), error=flight.error, is_cancelled=is_cancelled, preemptions=flight.preemptions)
        if flight.gateway.is_closed:
            return
        decode_s = 0.0 if flight.first_token_at is None else self._clock() - flight.first_token_at
        flight.gateway.add_ended(
            compute_pb2.RequestEnded(
                request=flight.gateway_request,
                epoch=flight.epoch,
                outcome=flight.outcome,
                error=None if flight.error is None else to_proto(flight.error),
                decode_us=_microseconds(decode_s),
                preemptions=flight.preemptions,
            )
        )


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
