"""Anthropic's own client: messages, streams, stop sequences, counted tokens, errors."""

from __future__ import annotations

from typing import Any

import anthropic

from tests.compat.clients.checks import MODEL, QUESTION, Trip, require, run

GREEDY = {"temperature": 0}


def client(url: str) -> Any:
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=120)


def message(url: str) -> None:
    answer = client(url).messages.create(model=MODEL, messages=QUESTION, max_tokens=24, system="Be brief.", extra_body=GREEDY)
    require(answer.content[0].text, "an answer")
    require(answer.usage.output_tokens > 0, "the usage")


def stream(url: str) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 24, "extra_body": GREEDY}
    whole = client(url).messages.create(**asked)
    with client(url).messages.stream(**asked) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    require(text == final.content[0].text == whole.content[0].text, "the same answer")
    require((final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens), "the same end")


def stop_sequence(url: str) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 99, "extra_body": GREEDY}
    word = client(url).messages.create(**asked).content[0].text.split()[1]
    answer = client(url).messages.create(**asked, stop_sequences=[word])
    require((answer.stop_reason, answer.stop_sequence) == ("stop_sequence", word), "the sequence by name")
    require(word not in answer.content[0].text, "the text before it")


def sent_back(url: str) -> None:
    answer = client(url).messages.create(model=MODEL, messages=QUESTION, max_tokens=8)
    again = [*QUESTION, answer.to_param(), {"role": "user", "content": "And?"}]
    client(url).messages.create(model=MODEL, messages=again, max_tokens=4)


def count_tokens(url: str) -> None:
    count = client(url).messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens
    usage = client(url).messages.create(model=MODEL, messages=QUESTION, max_tokens=1).usage
    require(count == usage.input_tokens + usage.cache_read_input_tokens, "as many as a message has")


def tools(url: str) -> None:
    plan = {"name": "plan", "description": "Plans a trip.", "input_schema": Trip.model_json_schema()}
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 99, "tools": [plan], "extra_body": GREEDY}
    whole = client(url).messages.create(**asked, tool_choice={"type": "tool", "name": "plan"})
    calls = [block for block in whole.content if block.type == "tool_use"]
    require(whole.stop_reason == "tool_use" and [Trip.model_validate(call.input) for call in calls], "calls with arguments of the schema")
    with client(url).messages.stream(**asked, tool_choice={"type": "tool", "name": "plan"}) as events:
        final = events.get_final_message()
    require([block.input for block in final.content if block.type == "tool_use"] == [call.input for call in calls], "the same in a stream")
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "booked"} for call in calls]
    turns = [*QUESTION, {"role": "assistant", "content": whole.content}, {"role": "user", "content": results}]
    words = client(url).messages.create(model=MODEL, messages=turns, max_tokens=8, tools=[plan], tool_choice={"type": "none"})
    require(words.content[0].text, "words behind the results")


def errors(url: str) -> None:
    for kind, fields in ((anthropic.BadRequestError, {"max_tokens": 0}), (anthropic.NotFoundError, {"model": "claude"})):
        try:
            client(url).messages.create(**{"model": MODEL, "messages": QUESTION, "max_tokens": 1, **fields})
        except kind:
            continue
        raise AssertionError(f"{kind.__name__} for {fields}")


run(
    "anthropic",
    {
        "messages": message,
        "stream": stream,
        "stop sequences": stop_sequence,
        "an answer sent back": sent_back,
        "counted tokens": count_tokens,
        "tools": tools,
        "errors": errors,
    },
)
