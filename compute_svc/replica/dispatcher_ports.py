"""Whom the dispatcher talks to, as it sees them: the engine and the links to samplers. Each returns at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from compute_svc.replica.parcels import TextKey
from compute_svc.replica.sampler_ledger import Mask, Verdict
from compute_svc.wire.request import Request
from compute_svc.wire.step_output import Rows
from triserve.v1 import sampler_pb2


class EnginePort(Protocol):
    """What the dispatcher asks of the engine; each returns at once."""

    def submit(self, request: Request) -> None:
        """Puts a request in the queue."""

    def release(self, number: int) -> None:
        """Ends a request."""

    def verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Takes tokens drawn elsewhere."""

    def masks(self, masks: Sequence[Mask]) -> None:
        """Takes what can be drawn next."""

    def pause(self, numbers: Sequence[int], *, paused: bool) -> None:
        """Keeps requests out of the next steps, or lets them in again."""


class SamplerPort(Protocol):
    """What the dispatcher asks of the link to a sampler; each returns at once."""

    @property
    def target(self) -> str:
        """Where it is, for the log."""

    @property
    def ready(self) -> bool:
        """Whether it takes new requests."""

    @property
    def is_behind(self) -> bool:
        """Whether it has as many frames to answer as it may have."""

    @property
    def lags(self) -> bool:
        """Whether it is behind, or has answered nothing for a while although it should."""

    @property
    def requests(self) -> Iterable[int]:
        """Requests that are open there."""

    @property
    def in_flight(self) -> int:
        """How many they are."""

    def has(self, number: int) -> bool:
        """Whether a request is open there."""

    def is_leaving(self, key: TextKey) -> bool:
        """Whether text of an attempt that was closed may still come."""

    def open(self, opening: sampler_pb2.OpenRequest) -> None:
        """Begins a request."""

    def close_request(self, number: int) -> None:
        """Drops a request, unless the sampler has ended it."""

    def send_rows(self, rows: Rows) -> None:
        """Sends what one step gave for it."""

    def expect_end(self, number: int) -> None:
        """All rows of a request are sent."""
