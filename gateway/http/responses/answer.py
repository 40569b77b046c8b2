"""Responses, whole and as typed events."""

from __future__ import annotations

import json
from typing import Any

from gateway.flow.call import Call
from gateway.flow.generations.answer import FinishReason
from gateway.flow.generations.generation import Generation, Piece, Timeline, Usage
from gateway.http.openai.answer import WholeChoice
from gateway.http.openai.logprobs import chat_logprobs
from gateway.http.openai.tool_schema import Choice
from gateway.http.part_reader import PartReader
from gateway.http.responses.items import ResponseTool
from gateway.http.responses.output import OutputItems
from gateway.http.responses.schema import ResponsesBody
from triserve.rpc.errors import ServiceError

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
        self._tools = [_tool_body(tool) for tool in body.tools or ()]

    def whole(self, call: Call, generation: Generation, choices: list[WholeChoice]) -> dict[str, Any]:
        """See `AnswerRenderer`."""
        (choice,) = choices
        items = self.items()
        parts = PartReader(generation.form).feed("".join(choice.text), is_last=True)
        for _ in (*items.take(parts, chat_logprobs(choice.logprobs)["content"]), *items.end(is_cut=choice.finish_reason == "length")):
            pass
        return self.ended(items, choice.finish_reason, generation.usage())

    def events(self, system_fingerprint: str) -> ResponseEvents:
        """See `AnswerRenderer`."""
        return ResponseEvents(self)

    def items(self) -> OutputItems:
        """What makes the items of an answer."""
        return OutputItems(self._request_id)

    def ended(self, items: OutputItems, finish_reason: FinishReason | None, usage: Usage) -> dict[str, Any]:
        """The response that says all."""
        status = "incomplete" if finish_reason == "length" else "completed"
        details = {"reason": "max_output_tokens"} if finish_reason == "length" else None
        return self.response(status, output=items.ended, usage=usage, incomplete_details=details)

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
            "tool_choice": _choice_body(body.tool_choice),
            "tools": self._tools,
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
        self._reader: PartReader | None = None
        self._items = renderer.items()
        self._finish_reason: FinishReason | None = None

    def pieces(self, pieces: list[Piece], generation: Generation) -> bytes:
        """See `EventRenderer`."""
        if self._reader is None:
            self._reader = PartReader(generation.form)
        return "".join([self._begin(), *(self._piece(piece, self._reader) for piece in pieces)]).encode("ascii")

    def last(self, usage: Usage, timeline: Timeline) -> bytes:
        """See `EventRenderer`."""
        ends = [self._event(*event) for event in self._items.end(is_cut=self._finish_reason == "length")]
        whole = self._renderer.ended(self._items, self._finish_reason, usage)
        return "".join([*ends, self._event(whole["status"], {"response": whole})]).encode("ascii")

    def failed(self, error: ServiceError) -> bytes:
        """See `EventRenderer`."""
        code = "rate_limit_exceeded" if error.http_status == _RATE_LIMIT else "server_error"
        response = self._renderer.response("failed", error={"code": code, "message": error.message})
        return (self._begin() + self._event("failed", {"response": response})).encode("ascii")

    def _begin(self) -> str:
        """The events before the first item; nothing if they were there."""
        if self._has_begun:
            return ""
        self._has_begun = True
        begun = {"response": self._renderer.response("in_progress")}
        return self._event("created", begun) + self._event("in_progress", begun)

    def _piece(self, piece: Piece, reader: PartReader) -> str:
        delta = piece.delta
        self._finish_reason = delta.finish_reason
        logprobs = chat_logprobs(delta.logprobs)["content"] if delta.logprobs else []
        parts = reader.feed(delta.text, is_last=delta.finish_reason is not None)
        return "".join([self._event(*event) for event in self._items.take(parts, logprobs)])

    def _event(self, kind: str, fields: dict[str, Any]) -> str:
        self._number += 1
        name = f"response.{kind}"
        return f"event: {name}\ndata: {_compact({'type': name, **fields, 'sequence_number': self._number - 1})}\n\n"


def _tool_body(tool: ResponseTool) -> dict[str, Any]:
    """A tool as it was given."""
    parameters = None if tool.parameters is None else json.loads(tool.parameters)
    return {"type": "function", "name": tool.name, "description": tool.description, "parameters": parameters, "strict": bool(tool.strict)}


def _choice_body(choice: Choice | None) -> str | dict[str, str]:
    if choice is None:
        return "auto"
    return choice.mode if choice.name is None else {"type": "function", "name": choice.name}


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
