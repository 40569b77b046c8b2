"""Rows, opens and closes that wait to be sent to one sampler, in columns."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from compute_svc.wire.step_output import Rows, moved
from triserve.v1 import sampler_pb2

# Well below the limit of a message; a row of 256,000 logits has 1 MB.
MAX_LOGITS_BYTES = 16 << 20


@dataclass(slots=True)
class _Part:
    """What one frame will carry."""

    open: list[sampler_pb2.OpenRequest] = field(default_factory=list)
    close: list[int] = field(default_factory=list)
    request: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    token: list[int] = field(default_factory=list)
    logprobs: list[sampler_pb2.RowLogprobs] = field(default_factory=list)
    logits: list[sampler_pb2.RowLogits] = field(default_factory=list)
    prompt_logprobs: list[sampler_pb2.PromptLogprobs] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    num_bytes: int = 0


class OutgoingFrames:
    """Collects what a sampler is to be told; what waits longer goes out together.

    Args:
        max_bytes: Most bytes of logits in one frame, unless one row alone has more.
    """

    def __init__(self, max_bytes: int = MAX_LOGITS_BYTES) -> None:
        self._max_bytes = max_bytes
        self._parts: deque[_Part] = deque()
        self.num_batches = 0

    def __len__(self) -> int:
        """Frames that wait."""
        return len(self._parts)

    def add_open(self, opening: sampler_pb2.OpenRequest) -> None:
        """A request begins; its rows come after this."""
        self._last(0).open.append(opening)

    def add_close(self, number: int) -> None:
        """A request ended without the sampler; its rows came before this."""
        self._last(0).close.append(number)

    def add_rows(self, rows: Rows) -> None:
        """Adds what one step gave."""
        self.num_batches += 1
        part = self._last(0)
        part.prompt_logprobs += rows.prompt_logprobs
        part.computed += rows.computed
        if sum(len(one.logits) for one in rows.logits) <= self._max_bytes:
            self._add(rows)
            return
        for index in range(len(rows.numbers)):
            self._add(rows.chosen([index]))

    def take(self, frame: int) -> sampler_pb2.SampleRequest:
        """The next frame, with that number."""
        part = self._parts.popleft()
        if not self._parts:
            self.num_batches = 0
        return sampler_pb2.SampleRequest(
            open=part.open,
            close=part.close,
            frame=frame,
            request=part.request,
            position=part.position,
            # One token in each row is said without a word.
            num_tokens=part.num_tokens if any(count != 1 for count in part.num_tokens) else (),
            token=part.token,
            logprobs=part.logprobs,
            logits=part.logits,
            prompt_logprobs=part.prompt_logprobs,
            computed=part.computed,
        )

    def _last(self, num_bytes: int) -> _Part:
        if not self._parts or (self._parts[-1].num_bytes and self._parts[-1].num_bytes + num_bytes > self._max_bytes):
            self._parts.append(_Part())
        return self._parts[-1]

    def _add(self, rows: Rows) -> None:
        num_bytes = sum(len(one.logits) for one in rows.logits)
        part = self._last(num_bytes)
        part.num_bytes += num_bytes
        first = len(part.request)
        part.request += rows.numbers.tolist()
        part.position += rows.positions.tolist()
        part.num_tokens += rows.counts.tolist()
        part.token += rows.tokens.tolist()
        part.logprobs += [moved(one, one.row + first) for one in rows.logprobs]
        part.logits += [moved(one, one.row + first) for one in rows.logits]
