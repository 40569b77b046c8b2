"""Events of answers that are taken apart: strict JSON in OpenAI's form, one for each piece that says anything, and whole what the body of it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.generations.answer import Delta, FinishReason
from gateway.flow.generations.generation import Piece, Usage
from gateway.http.openai.answer import Look, WholeChoice, chat_choice
from gateway.http.sse import ChatEvents
from gateway.tools.answer_parser import AnswerForm
from gateway.tools.registry import REASONING
from tests.examples import examples
from tests.fakes.tool_answers import WRITERS, WrittenCall, calls, cut, form_of, places
from triserve.v1 import sampler_pb2

FORM = form_of("hermes", reasoning=REASONING["think"])


class Generating:
    """A generation whose answers have a form."""

    def __init__(self, form: AnswerForm | None) -> None:
        self.form = form

    def prompt_token_ids(self, choice: int) -> list[int]:
        """Of all choices."""
        return [7]

    def usage(self) -> Usage:
        """Of the prompt."""
        return Usage(1, 0, 0)


def chat(**arguments: Any) -> Any:
    known = {"request_id": "x", "created": 1, "model": "m", "system_fingerprint": "fp", "include_usage": False, "continuous_usage": False}
    return ChatEvents(**{**known, "look": Look(), "timeline": False, **arguments})


def choices_of(data: bytes) -> list[Any]:
    lines = data.decode("ascii").split("\n\n")
    return [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines if line]


def pieces_of(parts: list[str], finish: FinishReason, choice: int = 0) -> list[Piece]:
    return [*(Piece(choice, Delta(part, [1], [], None)) for part in parts), Piece(choice, Delta("", [2], [], finish))]


@examples(40)
@given(written=calls, places=places, thought=st.sampled_from(["", "<think>Hm. é</think>"]), finish=st.sampled_from(["stop", "length"]))
def test_a_stream_put_together_is_the_whole_answer(written: list[WrittenCall], places: list[int], thought: str, finish: Any) -> None:
    text = f"{thought}I look.\n{WRITERS['hermes'][0](written)}"
    generation: Any = Generating(FORM)
    made = chat()
    deltas = choices_of(b"".join(made.pieces([piece], generation) for piece in pieces_of(cut(text, places), finish)))
    assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
    assert all(one["delta"] for one in deltas[:-1]), "a piece that says nothing gives no event"
    message: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    told: list[Any] = []
    for one in deltas[1:]:
        assert one["delta"].keys() <= {"content", "reasoning_content", "tool_calls"}
        for name in ("content", "reasoning_content"):
            if name in one["delta"]:
                message[name] = message.get(name, "") + one["delta"][name]
        for part in one["delta"].get("tool_calls", []):
            if "id" in part:
                assert part["index"] == len(told) and part.keys() == {"index", "id", "type", "function"}
                told.append({"id": part["id"], "type": part["type"], "function": dict(part["function"])})
            else:
                assert part["index"] == len(told) - 1 and part["function"].keys() == {"arguments"}
                told[-1]["function"]["arguments"] += part["function"]["arguments"]
    whole = WholeChoice(text=[text], finish_reason=finish)
    whole.take_apart(FORM, 0)
    body = chat_choice(0, whole, look=Look())
    assert {**message, "tool_calls": told} == body["message"]
    assert [one["finish_reason"] for one in deltas if one["finish_reason"]] == [body["finish_reason"]]
    assert body["finish_reason"] == ("tool_calls" if finish == "stop" else "length")


def test_choices_are_parsed_apart_though_their_pieces_come_in_turns() -> None:
    made, generation = chat(), Generating(FORM)
    texts = ['<tool_call>{"name": "a"}</tool_call>', '<tool_call>{"name": "b"}</tool_call>']
    turns = [
        piece for pair in zip(*(pieces_of(list(text), "stop", number) for number, text in enumerate(texts)), strict=True) for piece in pair
    ]
    told = [one for one in choices_of(made.pieces(turns, generation)) if one["delta"].get("tool_calls")]
    assert [(one["index"], one["delta"]["tool_calls"][0]["function"]["name"]) for one in told] == [(0, "a"), (1, "b")]


@pytest.mark.parametrize(("token_ids", "logprobs"), [(True, False), (False, True), (False, False)])
def test_a_piece_of_which_nothing_came_to_light_is_an_event_where_its_tokens_are_wanted(token_ids: bool, logprobs: bool) -> None:
    made, generation = chat(look=Look(token_ids=token_ids)), Generating(FORM)
    entry = [sampler_pb2.TokenLogprobs(token=1, text="<tool", token_bytes=b"<tool", logprob=-1)] if logprobs else []
    told = choices_of(made.pieces([Piece(0, Delta("<tool", [1], entry, None))], generation))[1:]
    assert [one["delta"] for one in told] == ([{}] if token_ids or logprobs else [])


def test_text_without_a_form_is_content() -> None:
    made, generation = chat(), Generating(None)
    text = "<think>x</think>" + WRITERS["hermes"][0]([WrittenCall("f", "{}")])
    told = choices_of(made.pieces(pieces_of([text], "stop"), generation))
    assert told[1]["delta"] == {"content": text}
    assert told[-1]["finish_reason"] == "stop"
