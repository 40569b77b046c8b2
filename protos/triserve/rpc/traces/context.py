"""W3C Trace Context, level 1: where in a trace a caller is, as `traceparent` carries it. Pure."""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from triserve.rpc.errors import InvalidRequest

# Of version 00, which stages speak.
TRACEPARENT_CHARS = 55
# A later version may have more fields behind these four.
_FIELDS = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_NO_VERSION = "ff"
_SAMPLED = 1


class SpanContext(NamedTuple):
    """A span that is recorded, as its children know it."""

    # 32 and 16 lower-case hex digits, neither all zero.
    trace_id: str
    span_id: str

    @classmethod
    def root(cls) -> SpanContext:
        """The first span of a new trace."""
        return cls(secrets.token_hex(16), secrets.token_hex(8))

    def child(self) -> SpanContext:
        """A new span of the same trace."""
        return SpanContext(self.trace_id, secrets.token_hex(8))

    @property
    def traceparent(self) -> str:
        """For the next stage."""
        return f"00-{self.trace_id}-{self.span_id}-01"


class Traceparent(NamedTuple):
    """What a caller says."""

    context: SpanContext
    # Whether the caller records its own spans, and wants ours.
    is_sampled: bool


def parse_traceparent(text: str) -> Traceparent | None:
    """What a `traceparent` says; None if it is malformed."""
    fields = _FIELDS.fullmatch(text)
    if fields is None:
        return None
    version, trace_id, span_id, flags, more = fields.groups()
    if version == _NO_VERSION or (version == "00" and more is not None) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return Traceparent(SpanContext(trace_id, span_id), bool(int(flags, 16) & _SAMPLED))


def read_traceparent(text: str) -> SpanContext | None:
    """The caller's span, from a message of the contract; None = the request is not traced.

    Raises:
        InvalidRequest: it is malformed.
    """
    if not text:
        return None
    if len(text) > TRACEPARENT_CHARS:
        raise InvalidRequest(f"traceparent has {len(text)} characters, the limit is {TRACEPARENT_CHARS}", field="traceparent")
    parsed = parse_traceparent(text)
    if parsed is None:
        raise InvalidRequest("traceparent is not as W3C Trace Context has it", field="traceparent")
    return parsed.context if parsed.is_sampled else None
