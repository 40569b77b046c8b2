"""A message's events say the answer without the stop sequence that ended it, however the answer comes in pieces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.generations.answer import Delta, FinishReason
from gateway.flow.generations.generation import Piece, Timeline, Usage
from gateway.http.messages.answer import MessageRenderer
from gateway.http.messages.schema import MessagesBody, Turn
from gateway.http.openai.answer import WholeChoice
from gateway.tools.answer_parser import AnswerForm
from gateway.tools.registry import REASONING
from tests.examples import examples
from tests.fakes.tool_answers import form_of
from triserve.rpc.errors import Unavailable

USAGE = Usage(prompt_tokens=9, completion_tokens=5, cached_tokens=4)


class Answered:
    """What a renderer asks of a generation.

    Args:
        form: of its answers.
    """

    def __init__(self, form: AnswerForm | None = None) -> None:
        self.form = form

    def usage(self) -> Usage:
        """What it cost."""
        return USAGE


GENERATION: Any = Answered()


def renderer_of(stops: Sequence[str], max_tokens: int = 5) -> MessageRenderer:
    body = MessagesBody(messages=[Turn.model_validate({"role": "user", "content": "a"})], max_tokens=max_tokens, stop_sequences=list(stops))
    return MessageRenderer(body, message_id="msg_1", request_id="1", model="tiny")


def pieces_of(texts: Sequence[str], finish_reason: FinishReason) -> list[Piece]:
    """The texts, the last of them with the end."""
    return [Piece(0, Delta(text, [1], [], finish_reason if index == len(texts) - 1 else None)) for index, text in enumerate(texts)]


def events_of(data: bytes) -> list[dict[str, Any]]:
    found = []
    for event in data.decode().split("\n\n")[:-1]:
        name, line = event.split("\n")
        found.append(json.loads(line.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def streamed(renderer: MessageRenderer, pieces: list[Piece], generation: Any = GENERATION) -> tuple[str, dict[str, Any]]:
    """The text of all deltas, and how it ended."""
    events = renderer.events("")
    said = events_of(b"".join(events.pieces([piece], generation) for piece in pieces) + events.last(USAGE, Timeline(0, 0, 0, 0)))
    assert [event["type"] for event in said[:3]] == ["message_start", "content_block_start", "ping"]
    assert [event["type"] for event in said[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert {event["type"] for event in said[3:-3]} <= {"content_block_delta"}
    return "".join(event["delta"]["text"] for event in said[3:-3]), said[-2]["delta"]


def whole(renderer: MessageRenderer, pieces: list[Piece], generation: Any = GENERATION) -> tuple[str, dict[str, Any]]:
    choice = WholeChoice()
    for piece in pieces:
        choice.add(piece)
    call: Any = None
    said = renderer.whole(call, generation, [choice])
    return said["content"][0]["text"], {name: said[name] for name in ("stop_reason", "stop_sequence")}


@examples(200)
@given(
    text=st.text("ab\n\N{SNOWMAN}", max_size=12),
    stop=st.sampled_from(["END", "\n\nEND", "ab"]),
    ended=st.booleans(),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
def test_streamed_and_whole_say_the_same_without_the_stop_sequence(text: str, stop: str, ended: bool, cuts: list[int]) -> None:
    if stop in text:
        return  # the answer would have ended there
    renderer = renderer_of(["END", "\n\nEND", "ab"] if stop != "ab" else ["ab"])
    longest = renderer.sequence_at_end(text + stop) if ended else None
    if not ended and renderer.sequence_at_end(text):
        return
    said_in_all = (text + stop).removesuffix(longest) if longest else text
    # What a stop string ends comes with all of it in one piece: it was held back until it was whole.
    places = sorted({min(cut, len(said_in_all)) for cut in cuts})
    texts = [said_in_all[start:end] for start, end in zip([0, *places], [*places, len(said_in_all)], strict=True)]
    texts[-1] += longest or ""
    pieces = pieces_of(texts, "stop")
    said, end = streamed(renderer, pieces)
    assert (said, end) == whole(renderer, pieces)
    assert said == said_in_all
    assert end == {"stop_reason": "stop_sequence" if ended else "end_turn", "stop_sequence": longest}


@examples(100)
@given(
    thought=st.text("ab<\n", max_size=6),
    said=st.text("ab<\n", max_size=8),
    stop=st.sampled_from(["END", "</think>", "ab"]),
    ended=st.booleans(),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
def test_what_a_model_thinks_is_no_text_of_a_message(thought: str, said: str, stop: str, ended: bool, cuts: list[int]) -> None:
    text = f"<think>{thought}</think>{said}" if stop != "</think>" else f"<think>{thought}"
    if stop in text:
        return  # the answer would have ended there
    places = sorted({min(cut, len(text)) for cut in cuts})
    texts = [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]
    texts[-1] += stop if ended else ""
    pieces, renderer, generation = (
        pieces_of(texts, "stop"),
        renderer_of([stop]),
        Answered(form_of(None, tools=frozenset(), reasoning=REASONING["think"])),
    )
    shown, end = streamed(renderer, pieces, generation)
    assert (shown, end) == whole(renderer, pieces, generation)
    assert shown.strip() == (said.strip() if stop != "</think>" else "")
    assert end["stop_sequence"] == (stop if ended else None)


def test_the_end_may_come_in_a_piece_of_its_own() -> None:
    assert streamed(renderer_of(["END"]), pieces_of(["one", "END", ""], "stop")) == (
        "one",
        {"stop_reason": "stop_sequence", "stop_sequence": "END"},
    )


def test_what_looks_like_a_stop_sequence_and_ends_nothing_is_text() -> None:
    cut = {"stop_reason": "max_tokens", "stop_sequence": None}
    assert streamed(renderer_of(["END"]), pieces_of(["one END", " two"], "length")) == ("one END two", cut)
    assert streamed(renderer_of(["END"]), pieces_of(["one END"], "length")) == ("one END", cut)


def test_an_answer_that_the_context_ends_says_so() -> None:
    for end in (streamed, whole):
        assert end(renderer_of([], max_tokens=6), pieces_of(["one"], "length"))[1]["stop_reason"] == "model_context_window_exceeded"


def test_a_failure_is_an_event_with_its_kind() -> None:
    (event,) = events_of(renderer_of([]).events("").failed(Unavailable("the sampler was lost")))
    assert event == {"type": "error", "error": {"type": "overloaded_error", "message": "the sampler was lost"}, "request_id": "1"}
