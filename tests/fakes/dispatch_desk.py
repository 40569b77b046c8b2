"""A dispatcher with everything around it faked: engine, links to samplers, gateways and the clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compute_svc.replica.dispatcher import Dispatcher
from compute_svc.replica.gateway_link import GatewayLink
from compute_svc.replica.parcels import TextKey
from compute_svc.replica.sampler_ledger import Mask, SamplerAnswer, Verdict
from compute_svc.wire.request import Request
from compute_svc.wire.step_output import Hidden, Load, Released, Rows, Started, StepOutput
from triserve.rpc.errors import ServiceError
from triserve.rpc.traces.spans import Tracer
from triserve.v1 import common_pb2, compute_pb2, sampler_pb2

WIDTH = 24


@dataclass
class FakeEngine:
    """Remembers what it is asked."""

    submitted: list[Request] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    drawn: list[Verdict] = field(default_factory=list)
    pauses: list[tuple[list[int], bool]] = field(default_factory=list)
    masked: list[Mask] = field(default_factory=list)

    def submit(self, request: Request) -> None:
        """Remembers it."""
        self.submitted.append(request)

    def release(self, number: int) -> None:
        """Remembers it."""
        self.released.append(number)

    def masks(self, masks: Sequence[Mask]) -> None:
        """Remembers them."""
        self.masked.extend(masks)

    def verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Remembers them."""
        self.drawn.extend(verdicts)

    def pause(self, numbers: Sequence[int], *, paused: bool) -> None:
        """Remembers it."""
        self.pauses.append((list(numbers), paused))


@dataclass
class FakeLink:
    """A sampler that a test makes ready, slow or gone."""

    target: str = "10.0.0.1:7400"
    ready: bool = True
    is_behind: bool = False
    lags: bool = False
    opened: dict[int, sampler_pb2.OpenRequest] = field(default_factory=dict)
    closed: list[int] = field(default_factory=list)
    sent: list[list[int]] = field(default_factory=list)
    awaits_end: list[int] = field(default_factory=list)
    leaving: list[TextKey] = field(default_factory=list)

    @property
    def requests(self) -> Iterable[int]:
        """Those that are open."""
        return self.opened

    @property
    def in_flight(self) -> int:
        """How many they are."""
        return len(self.opened)

    def has(self, number: int) -> bool:
        """Whether one is open."""
        return number in self.opened

    def is_leaving(self, key: TextKey) -> bool:
        """As the test says."""
        return key in self.leaving

    def open(self, opening: sampler_pb2.OpenRequest) -> None:
        """Opens one."""
        self.opened[opening.request] = opening

    def close_request(self, number: int) -> None:
        """Closes one."""
        if self.opened.pop(number, None) is not None:
            self.closed.append(number)

    def send_rows(self, rows: Rows) -> None:
        """Remembers whose."""
        self.sent.append(rows.numbers.tolist())

    def expect_end(self, number: int) -> None:
        """Remembers it."""
        self.awaits_end.append(number)


class Desk:
    """A dispatcher with everything around it."""

    def __init__(self, *links: FakeLink, tracer: Tracer | None = None) -> None:
        self.now = 100.0
        self.engine = FakeEngine()
        self.links = links or (FakeLink(),)
        self.changes = 0
        self.dispatcher = Dispatcher(
            self.engine,
            logits_width=WIDTH,
            hidden_size=2,
            max_request_tokens=64,
            max_backlog_bytes=1 << 20,
            on_samplers_change=self._count,
            tracer=tracer,
            clock=lambda: self.now,
        )
        for link in self.links:
            self.dispatcher.add_sampler(link)
        self.gateway = self.dispatcher.open_gateway("g")

    def _count(self) -> None:
        self.changes += 1

    @property
    def link(self) -> FakeLink:
        """The first sampler."""
        return self.links[0]

    def submit(self, request: int, gateway: GatewayLink | None = None, **fields: Any) -> int:
        """Submits; returns the engine's number, or that of the request before if it was refused."""
        message = compute_pb2.SubmitRequest(
            request=request,
            request_id=f"r{request}",
            token_ids=[1, 2],
            sampling=common_pb2.SamplingParams(temperature=0),
            stopping=common_pb2.StoppingParams(max_tokens=4),
        )
        message.MergeFrom(compute_pb2.SubmitRequest(**fields))
        self.dispatcher.submit(gateway or self.gateway, message)
        return self.engine.submitted[-1].number if self.engine.submitted else 0

    def admit(self, request: int, gateway: GatewayLink | None = None, **fields: Any) -> int:
        """Submits and admits; returns the engine's number."""
        number = self.submit(request, gateway, **fields)
        self.dispatcher.on_engine_admitted([number])
        return number

    def output(
        self,
        *,
        rows: Rows | None = None,
        started: Sequence[Started] = (),
        released: Sequence[Released] = (),
        hidden: Sequence[Hidden] = (),
    ) -> None:
        """A step ends."""
        self.dispatcher.on_engine_output(StepOutput(rows, list(started), list(released), Load.nothing(), [], None, hidden), self.now)

    def free(self, number: int, error: ServiceError | None = None, preemptions: int = 0) -> None:
        """A request's KV is free."""
        self.output(released=[Released(number, preemptions, error)])

    def answer(self, link: FakeLink | None = None, **fields: Any) -> None:
        """A sampler answers; requests it has ended are open no longer, as its link sees to."""
        link = link or self.link
        answer = SamplerAnswer([], [], [], [], [])._replace(**fields)
        for number in [*answer.finished, *(failed.number for failed in answer.failed)]:
            del link.opened[number]
        self.dispatcher.on_sampler_answer(link, answer)

    async def told(self, gateway: GatewayLink | None = None) -> compute_pb2.GenerateResponse:
        """What waits for a gateway."""
        response = await (gateway or self.gateway).next_response()
        assert response is not None
        return response

    async def ended(self) -> compute_pb2.RequestEnded:
        """The one request that has ended."""
        (end,) = (await self.told()).ended
        return end


def rows_of(*numbers: int) -> Rows:
    """A drawn row of each request."""
    count = len(numbers)
    positions, counts, tokens = (np.full(count, value, np.uint32) for value in (0, 1, 3))
    return Rows(np.array(numbers, np.uint64), positions, counts, tokens, [], [])
