"""The output of a response: its items as they come to light, and the events that tell of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gateway.tools.findings import CallDelta, Part, Spoken


class ItemEvent(NamedTuple):
    """What a client is told of an item."""

    # Without "response." before it.
    kind: str
    fields: dict[str, Any]


@dataclass
class _Item:
    """An item that has begun."""

    id: str
    index: int
    # "message", "reasoning", or "function_call" with what is called and the id by which its result is known.
    kind: str
    name: str = ""
    call_id: str = ""
    text: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)

    @property
    def place(self) -> dict[str, Any]:
        """Where the pieces of it belong."""
        place = {"item_id": self.id, "output_index": self.index}
        return place if self.kind == "function_call" else {**place, "content_index": 0}

    def body(self, status: str) -> dict[str, Any]:
        """The item as far as it goes."""
        head = {"type": self.kind, "id": self.id, "status": status}
        text = "".join(self.text)
        if self.kind == "function_call":
            return {**head, "call_id": self.call_id, "name": self.name, "arguments": text}
        content = [] if status == "in_progress" else [self.part(text)]
        return {**head, "role": "assistant", "content": content} if self.kind == "message" else {**head, "summary": [], "content": content}

    def part(self, text: str) -> dict[str, Any]:
        """Its one part."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs}


_PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}


class OutputItems:
    """Makes items of parts, one after the other.

    Args:
        response_id: of which the items' ids are made.

    Attributes:
        ended: items that are whole.
    """

    def __init__(self, response_id: str) -> None:
        self._id = response_id.removeprefix("resp_")
        self._open: _Item | None = None
        # Of tokens whose text has not come yet.
        self._logprobs: list[Any] = []
        self.ended: list[dict[str, Any]] = []

    def take(self, parts: Sequence[Part], logprobs: Sequence[Any] = ()) -> Iterator[ItemEvent]:
        """The events of more of the answer.

        Args:
            parts: what came to light.
            logprobs: of its tokens; they are told with the text of a message.
        """
        self._logprobs += logprobs
        for part in parts:
            if isinstance(part, CallDelta):
                yield from self._call(part)
            else:
                yield from self._say(part)

    def end(self, *, is_cut: bool) -> Iterator[ItemEvent]:
        """The events of the end. An answer without anything is a message without a word.

        Args:
            is_cut: whether the last item may not be whole.
        """
        if self._open is None and not self.ended:
            yield from self._begin("message")
        yield from self._close("incomplete" if is_cut else "completed")

    def _say(self, part: Spoken) -> Iterator[ItemEvent]:
        kind = "reasoning" if part.is_thought else "message"
        text = part.text
        if self._open is None or self._open.kind != kind:
            yield from self._close("completed")
            # Space behind another item is the form's in which the model writes it.
            text = text.lstrip() if self.ended else text
            yield from self._begin(kind)
        assert self._open is not None, "it has begun"
        self._open.text.append(text)
        if part.is_thought:
            yield ItemEvent("reasoning_text.delta", {**self._open.place, "delta": text})
            return
        logprobs, self._logprobs = self._logprobs, []
        self._open.logprobs += logprobs
        yield ItemEvent("output_text.delta", {**self._open.place, "delta": text, "logprobs": logprobs})

    def _call(self, delta: CallDelta) -> Iterator[ItemEvent]:
        if delta.id is not None:
            yield from self._close("completed")
            yield from self._begin("function_call", name=delta.name or "", call_id=delta.id)
        assert self._open is not None, "a call begins with its id"
        self._open.text.append(delta.arguments)
        if delta.arguments:
            yield ItemEvent("function_call_arguments.delta", {**self._open.place, "delta": delta.arguments})

    def _begin(self, kind: str, *, name: str = "", call_id: str = "") -> Iterator[ItemEvent]:
        index = len(self.ended)
        # The first message has the response's own number.
        is_first = not any(item["type"] == kind for item in self.ended)
        item = _Item(_PREFIXES[kind] + self._id + ("" if is_first else f"_{index}"), index, kind, name, call_id)
        self._open = item
        yield ItemEvent("output_item.added", {"output_index": index, "item": item.body("in_progress")})
        if kind != "function_call":
            yield ItemEvent(
                "content_part.added", {**item.place, "part": {**item.part(""), **({"logprobs": []} if kind == "message" else {})}}
            )

    def _close(self, status: str) -> Iterator[ItemEvent]:
        item, self._open = self._open, None
        if item is None:
            return
        text = "".join(item.text)
        if item.kind == "function_call":
            yield ItemEvent("function_call_arguments.done", {**item.place, "arguments": text, "name": item.name})
        else:
            # What is left is of tokens that gave no text.
            logprobs, self._logprobs = (self._logprobs, []) if item.kind == "message" else ([], self._logprobs)
            item.logprobs += logprobs
            said = {"text": text} if item.kind == "reasoning" else {"text": text, "logprobs": item.logprobs}
            kind = "reasoning_text" if item.kind == "reasoning" else "output_text"
            yield ItemEvent(f"{kind}.done", {**item.place, **said})
            yield ItemEvent("content_part.done", {**item.place, "part": item.part(text)})
        body = item.body(status)
        self.ended.append(body)
        yield ItemEvent("output_item.done", {"output_index": item.index, "item": body})
