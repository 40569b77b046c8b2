"""Messages, whole and as events."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from gateway.flow.call import Call
from gateway.flow.generations.answer import FinishReason
from gateway.flow.generations.generation import Generation, Piece, Timeline, Usage
from gateway.http.messages.content import ContentBlocks
from gateway.http.messages.errors import error_answer
from gateway.http.messages.schema import MessagesBody
from gateway.http.openai.answer import WholeChoice
from gateway.http.part_reader import PartReader
from triserve.rpc.errors import ServiceError

_compact = json.JSONEncoder(separators=(",", ":")).encode


class MessageRenderer:
    """How the message that answers one request looks. Implements `AnswerRenderer`.

    Args:
        body: what was asked.
        message_id: the message's id.
        request_id: the request's.
        model: name of the model.
    """

    def __init__(self, body: MessagesBody, *, message_id: str, request_id: str, model: str) -> None:
        self._sequences = tuple(body.stop_sequences or ())
        self._max_tokens = body.max_tokens
        self._message_id = message_id
        self._model = model
        self.request_id = request_id

    def whole(self, call: Call, generation: Generation, choices: list[WholeChoice]) -> dict[str, Any]:
        """See `AnswerRenderer`."""
        (choice,) = choices
        text, sequence = "".join(choice.text), None
        if choice.finish_reason == "stop" and (sequence := self.sequence_at_end(text)) is not None:
            text = text.removesuffix(sequence)
        blocks = ContentBlocks()
        for _ in (*blocks.take(PartReader(generation.form).feed(text, is_last=True)), *blocks.end()):
            pass
        usage = generation.usage()
        end = self.end(choice.finish_reason, sequence, usage, calls=blocks.has_calls)
        return {**self.message(usage), "content": blocks.ended, **end._asdict()}

    def events(self, system_fingerprint: str) -> MessageEvents:
        """See `AnswerRenderer`."""
        return MessageEvents(self)

    def message(self, usage: Usage) -> dict[str, Any]:
        """The message as it begins."""
        return {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage_body(usage),
        }

    def sequence_at_end(self, text: str) -> str | None:
        """The stop sequence with which a text ends that was ended by one; None = by none."""
        return max((one for one in self._sequences if text.endswith(one)), key=len, default=None)

    def end(self, finish_reason: FinishReason | None, sequence: str | None, usage: Usage, *, calls: bool) -> End:
        """Why the answer ended, which may have calls."""
        if finish_reason == "length":
            return End("max_tokens" if usage.completion_tokens >= self._max_tokens else "model_context_window_exceeded", None)
        if sequence is not None:
            return End("stop_sequence", sequence)
        return End("tool_use" if calls else "end_turn", None)


class End(NamedTuple):
    """Why an answer ended."""

    stop_reason: str
    stop_sequence: str | None


class MessageEvents:
    """The events of one message. Implements `EventRenderer`.

    Args:
        renderer: of the message.
    """

    def __init__(self, renderer: MessageRenderer) -> None:
        self._renderer = renderer
        self._has_begun = False
        self._reader: PartReader | None = None
        self._blocks = ContentBlocks()
        # The stop sequence at the end of what came, which is sent if it turns out to be text, and why the answer ended.
        self._held = ""
        self._finish_reason: FinishReason | None = None

    def pieces(self, pieces: list[Piece], generation: Generation) -> bytes:
        """See `EventRenderer`."""
        if self._reader is None:
            self._reader = PartReader(generation.form)
        return "".join([self._begin(generation), *(self._piece(piece, self._reader) for piece in pieces)]).encode("ascii")

    def last(self, usage: Usage, timeline: Timeline) -> bytes:
        """See `EventRenderer`."""
        stopped = [_event(one) for one in self._blocks.end()]
        end = self._renderer.end(self._finish_reason, self._held or None, usage, calls=self._blocks.has_calls)
        ended = {"type": "message_delta", "delta": end._asdict(), "usage": _usage_body(usage)}
        return "".join([*stopped, _event(ended), _event({"type": "message_stop"})]).encode("ascii")

    def failed(self, error: ServiceError) -> bytes:
        """See `EventRenderer`."""
        return _event(error_answer(error, self._renderer.request_id).body).encode("ascii")

    def _begin(self, generation: Generation) -> str:
        """The events before the first delta; nothing if they were there."""
        if self._has_begun:
            return ""
        self._has_begun = True
        # What is made by now is counted in the end.
        usage = generation.usage()._replace(completion_tokens=0)
        started = [{"type": "message_start", "message": self._renderer.message(usage)}]
        # Where nothing can be called there is one block, of text.
        if generation.form is None or not generation.form.tools:
            started += self._blocks.begin_text()
        return "".join([*map(_event, started), _event({"type": "ping"})])

    def _piece(self, piece: Piece, reader: PartReader) -> str:
        text, self._finish_reason = self._held + piece.delta.text, piece.delta.finish_reason
        self._held = "" if self._finish_reason == "length" else self._renderer.sequence_at_end(text) or ""
        parts = reader.feed(text.removesuffix(self._held), is_last=self._finish_reason is not None)
        return "".join([_event(one) for one in self._blocks.take(parts)])


def _event(fields: dict[str, Any]) -> str:
    return f"event: {fields['type']}\ndata: {_compact(fields)}\n\n"


def _usage_body(usage: Usage) -> dict[str, Any]:
    """What was computed of the prompt and what was there already are counted apart."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
