"""The content of a message: its blocks as they come to light, and the events that tell of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from gateway.tools.findings import CallDelta, Part

Event: TypeAlias = dict[str, Any]
# Under which arguments are an object's entry that are none themselves: a model that is held to nothing may write any text.
_NO_OBJECT = "arguments"


class ContentBlocks:
    """Makes blocks of parts, one after the other. What a model thinks is left out.

    Attributes:
        ended: blocks that are whole.
        has_calls: whether there is a call among them.
    """

    def __init__(self) -> None:
        self.ended: list[dict[str, Any]] = []
        self.has_calls = False
        self._open: dict[str, Any] | None = None
        self._texts: list[str] = []

    def begin_text(self) -> list[Event]:
        """The events of a block of text that begins."""
        return self._begin({"type": "text", "text": ""})

    def take(self, parts: Sequence[Part]) -> Iterator[Event]:
        """The events of more of the answer."""
        for part in parts:
            if isinstance(part, CallDelta):
                yield from self._call(part)
            elif not part.is_thought:
                yield from self._say(part.text)

    def end(self) -> Iterator[Event]:
        """The events of the end. An answer without anything is a text without a word."""
        if self._open is None and not self.ended:
            yield from self.begin_text()
        yield from self._close()

    def _say(self, text: str) -> Iterator[Event]:
        if self._open is None or self._open["type"] != "text":
            yield from self._close()
            # Space behind another block is the form's in which the model writes it.
            text = text.lstrip() if self.ended else text
            yield from self.begin_text()
        yield self._delta({"type": "text_delta", "text": text}, text)

    def _call(self, part: CallDelta) -> Iterator[Event]:
        if part.id is not None:
            self.has_calls = True
            yield from self._close()
            yield from self._begin({"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
        if part.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": part.arguments}, part.arguments)

    def _begin(self, block: dict[str, Any]) -> list[Event]:
        self._open, self._texts = block, []
        return [{"type": "content_block_start", "index": len(self.ended), "content_block": block}]

    def _delta(self, delta: dict[str, Any], text: str) -> Event:
        self._texts.append(text)
        return {"type": "content_block_delta", "index": len(self.ended), "delta": delta}

    def _close(self) -> Iterator[Event]:
        block, self._open = self._open, None
        if block is None:
            return
        text = "".join(self._texts)
        yield {"type": "content_block_stop", "index": len(self.ended)}
        self.ended.append({**block, "text": text} if block["type"] == "text" else {**block, "input": _object_of(text)})


def _object_of(arguments: str) -> dict[str, Any]:
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = arguments
    return value if isinstance(value, dict) else {_NO_OBJECT: value}
