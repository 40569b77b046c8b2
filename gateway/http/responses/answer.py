"""Responses, whole and as typed events."""

from __future__ import annotations

import json
from typing import Any

from gateway.flow.answer import FinishReason
from gateway.flow.call import Call
from gateway.flow.generation import Generation, Piece, Timeline, Usage
from gateway.http.content_reader import ContentReader
from gateway.http.openai.answer import WholeChoice
from gateway.http.openai.logprobs import chat_logprobs
from gateway.http.responses.schema import ResponsesBody
from triserve.rpc.errors import ServiceError

_quote = json.encoder.encode_basestring_ascii
_compact = json.JSONEncoder(separators=(",", ":")).encode
_RATE_LIMIT = 429


class ResponseRenderer:
    """How the response to one request looks. Implements `AnswerRenderer`.

    Args:
        body: what was asked.
        request_id: the response's id.
        model: name of the model.
        created: Unix time, seconds.
    """

    def __init__(self, body: ResponsesBody, *, request_id: str, model: str, created: int) -> None:
        self._body = body
        self._request_id = request_id
        self._model = model
        self._created = created
        self.message_id = "msg_" + request_id.removeprefix("resp_")

    def whole(self, call: Call, generation: Generation, choices: list[WholeChoice]) -> dict[str, Any]:
        """See `AnswerRenderer`."""
        (choice,) = choices
        text = ContentReader(generation.form).feed("".join(choice.text), is_last=True)
        logprobs = chat_logprobs(choice.logprobs)["content"]
        return self.ended(text, logprobs, choice.finish_reason, generation.usage())

    def events(self, system_fingerprint: str) -> ResponseEvents:
        """See `AnswerRenderer`."""
        return ResponseEvents(self)

    def ended(self, text: str, logprobs: list[Any], finish_reason: FinishReason | None, usage: Usage) -> dict[str, Any]:
        """The response that says all."""
        status = "incomplete" if finish_reason == "length" else "completed"
        details = {"reason": "max_output_tokens"} if finish_reason == "length" else None
        return self.response(status, output=[self.message(status, text, logprobs)], usage=usage, incomplete_details=details)

    def message(self, status: str, text: str | None = None, logprobs: list[Any] | None = None) -> dict[str, Any]:
        """The one item of the output; without a text it has only begun."""
        content = [] if text is None else [text_part(text, logprobs or [])]
        return {"type": "message", "id": self.message_id, "status": status, "role": "assistant", "content": content}

    def response(
        self,
        status: str,
        *,
        output: list[Any] | None = None,
        usage: Usage | None = None,
        incomplete_details: dict[str, str] | None = None,
        error: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """The response, with what was asked."""
        body = self._body
        return {
            "id": self._request_id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": incomplete_details,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._model,
            "output": output or [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.effort, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": body.format},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage_body(usage),
            "user": body.user,
        }


class ResponseEvents:
    """The events of one response. Implements `EventRenderer`.

    Args:
        renderer: of the response.
    """

    def __init__(self, renderer: ResponseRenderer) -> None:
        self._renderer = renderer
        self._number = 0
        self._has_begun = False
        self._reader: ContentReader | None = None
        self._text: list[str] = []
        self._logprobs: list[Any] = []
        self._finish_reason: FinishReason | None = None
        self._place = {"item_id": renderer.message_id, "output_index": 0, "content_index": 0}
        kind = "response.output_text.delta"
        self._before_delta = f'event: {kind}\ndata: {{"type":"{kind}",{_compact(self._place)[1:-1]},"delta":'

    def pieces(self, pieces: list[Piece], generation: Generation) -> bytes:
        """See `EventRenderer`."""
        if self._reader is None:
            self._reader = ContentReader(generation.form)
        return "".join([self._begin(), *(self._piece(piece, self._reader) for piece in pieces)]).encode("ascii")

    def last(self, usage: Usage, timeline: Timeline) -> bytes:
        """See `EventRenderer`."""
        text = "".join(self._text)
        whole = self._renderer.ended(text, self._logprobs, self._finish_reason, usage)
        (message,) = whole["output"]
        return "".join(
            [
                self._event("response.output_text.done", {**self._place, "text": text, "logprobs": self._logprobs}),
                self._event("response.content_part.done", {**self._place, "part": message["content"][0]}),
                self._event("response.output_item.done", {"output_index": 0, "item": message}),
                self._event(f"response.{whole['status']}", {"response": whole}),
            ]
        ).encode("ascii")

    def failed(self, error: ServiceError) -> bytes:
        """See `EventRenderer`."""
        code = "rate_limit_exceeded" if error.http_status == _RATE_LIMIT else "server_error"
        response = self._renderer.response("failed", error={"code": code, "message": error.message})
        return (self._begin() + self._event("response.failed", {"response": response})).encode("ascii")

    def _begin(self) -> str:
        """The events before the first delta; nothing if they were there."""
        if self._has_begun:
            return ""
        self._has_begun = True
        begun = {"response": self._renderer.response("in_progress")}
        return "".join(
            [
                self._event("response.created", begun),
                self._event("response.in_progress", begun),
                self._event("response.output_item.added", {"output_index": 0, "item": self._renderer.message("in_progress")}),
                self._event("response.content_part.added", {**self._place, "part": text_part("", [])}),
            ]
        )

    def _piece(self, piece: Piece, reader: ContentReader) -> str:
        delta = piece.delta
        self._finish_reason = delta.finish_reason
        text = reader.feed(delta.text, is_last=delta.finish_reason is not None)
        if not (text or delta.logprobs):
            return ""
        logprobs = chat_logprobs(delta.logprobs)["content"] if delta.logprobs else []
        self._text.append(text)
        self._logprobs += logprobs
        return f'{self._before_delta}{_quote(text)},"logprobs":{_compact(logprobs)},"sequence_number":{self._next()}}}\n\n'

    def _event(self, kind: str, fields: dict[str, Any]) -> str:
        return f"event: {kind}\ndata: {_compact({'type': kind, **fields, 'sequence_number': self._next()})}\n\n"

    def _next(self) -> int:
        self._number += 1
        return self._number - 1


def text_part(text: str, logprobs: list[Any]) -> dict[str, Any]:
    """A part of an answer."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        # Nothing is charged for what is kept of a prompt.
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        # Of thoughts the text is known, and not the tokens.
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
