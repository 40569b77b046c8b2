"""From the transcript of one request to its times, after checking that the server did what was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.cli.event_stream import DONE
from gateway.cli.measuring.http_transcript import BadResponse, Piece, Response, read_response
from gateway.cli.measuring.workload import PlannedRequest


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Times of a request that was answered in full. Seconds on the run's clock."""

    request: PlannedRequest
    sent_at_s: float
    # One for each delta with tokens: when it came, and how many tokens it had.
    delta_at_s: tuple[float, ...]
    delta_tokens: tuple[int, ...]
    # None = the server did not tell.
    prompt_tokens: int | None
    # Whether the server told how many tokens it sent; else each delta counts as one.
    is_counted: bool = True

    @property
    def output_tokens(self) -> int:
        """Tokens of the answer."""
        return sum(self.delta_tokens)

    @property
    def ttft_s(self) -> float:
        """From sending to the first token."""
        return self.delta_at_s[0] - self.sent_at_s

    @property
    def e2e_s(self) -> float:
        """From sending to the last token."""
        return self.delta_at_s[-1] - self.sent_at_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time of a token after the first; None if there is none."""
        later = self.output_tokens - self.delta_tokens[0]
        return (self.delta_at_s[-1] - self.delta_at_s[0]) / later if later else None

    @property
    def itl_s(self) -> list[float]:
        """Times from each delta to the next."""
        return [after - before for before, after in zip(self.delta_at_s, self.delta_at_s[1:], strict=False)]


@dataclass(frozen=True)
class Failed:
    """A request without an answer: refused, broken off, too late."""

    request: PlannedRequest
    reason: str


@dataclass(frozen=True)
class Wrong:
    """A request whose answer is not the one asked for. Times of a server that does this mean nothing."""

    request: PlannedRequest
    reason: str


Outcome = Measured | Failed | Wrong


# Request, when it was sent, response.
ReadTimes = Callable[[PlannedRequest, float, Response], Outcome]


class _NotAsAsked(Exception):
    """The answer differs from what was asked for."""


def measure(request: PlannedRequest, sent_at_s: float, pieces: list[Piece], read: ReadTimes | None = None) -> Outcome:
    """Reads what came back for a request.

    Args:
        request: what was asked for.
        sent_at_s: when.
        pieces: everything that came until the connection was closed.
        read: reads a response with status 200; None = it must be exactly what was asked for.
    """
    try:
        response = read_response(pieces)
        if response.status != 200:
            return Failed(request, f"HTTP {response.status}: {error_message(response.body)}")
        return (read or _times)(request, sent_at_s, response)
    except BadResponse as error:
        return Failed(request, str(error))
    except _NotAsAsked as error:
        return Wrong(request, str(error))


def _times(request: PlannedRequest, sent_at_s: float, response: Response) -> Outcome:
    at_s, tokens = [], []
    finish_reason, usage, done = None, None, False
    for event in response.events:
        if event.data == DONE:
            done = True
            continue
        chunk = event_object(event.data)
        if "error" in chunk:
            return Failed(request, f"the stream ended in an error: {error_message(event.data)}")
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", ()):
            finish_reason = choice.get("finish_reason") or finish_reason
            if choice.get("token_ids"):
                at_s.append(event.at_s)
                tokens.append(len(choice["token_ids"]))
    if not done:
        raise _NotAsAsked("the stream ended without [DONE]")
    if sum(tokens) != request.output_tokens:
        raise _NotAsAsked(f"{sum(tokens)} tokens came, {request.output_tokens} were asked for")
    if finish_reason != "length":
        raise _NotAsAsked(f"the finish reason is {finish_reason}, it should be length")
    expected = {"prompt_tokens": len(request.prompt_token_ids), "completion_tokens": request.output_tokens}
    for name, value in expected.items():
        if usage is None or usage.get(name) != value:
            raise _NotAsAsked(f"usage.{name} is {(usage or {}).get(name)}, it should be {value}")
    return Measured(
        request=request,
        sent_at_s=sent_at_s,
        delta_at_s=tuple(at_s),
        delta_tokens=tuple(tokens),
        prompt_tokens=len(request.prompt_token_ids),
    )


def event_object(data: bytes) -> dict[str, Any]:
    """The JSON object of an event.

    Raises:
        BadResponse: it is none.
    """
    try:
        parsed = json.loads(data)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise BadResponse("an event is no JSON object")
    return parsed


def error_message(body: bytes) -> str:
    """The message in an error of OpenAI's form, else the beginning of the body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
