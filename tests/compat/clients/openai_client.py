"""OpenAI's own client: chats, completions, responses, streams, parsed answers, tools, log-probabilities, vectors, errors."""

from __future__ import annotations

from typing import Any

import openai

from tests.compat.clients.checks import MODEL, QUESTION, Trip, require, run


def client(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def chat(url: str) -> None:
    answer = client(url).chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=24)
    require(answer.choices[0].message.content, "an answer")
    require(answer.system_fingerprint.startswith("fp_"), "a fingerprint")


def stream(url: str) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = client(url).chat.completions.create(**asked).choices[0].message.content
    chunks = list(client(url).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    require("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole, "the same answer")
    require(chunks[-1].usage.completion_tokens > 0, "the usage at the end")


def stream_helper(url: str) -> None:
    with client(url).chat.completions.stream(model=MODEL, messages=QUESTION, temperature=0, stop=".") as events:
        final = events.get_final_completion()
    require(final.choices[0].message.content and final.choices[0].finish_reason, "a whole answer")


def every_idle_field(url: str) -> None:
    client(url).chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {"role": "assistant", "content": None},
            *QUESTION,
        ],
        max_completion_tokens=4,
        metadata={"a": "b"},
        store=True,
        parallel_tool_calls=True,
        tools=[],
        tool_choice="none",
        top_p=0,
        n=1,
        seed=1,
        user="u",
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="s",
        response_format={"type": "text"},
        modalities=["text"],
        logit_bias={},
        stop=None,
        extra_body={"top_k": -1, "skip_special_tokens": True, "min_p": 0},
    )


def log_probabilities(url: str) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 24, "logprobs": True, "top_logprobs": 2}
    choice = client(url).chat.completions.create(**asked).choices[0]
    require("".join(token.token for token in choice.logprobs.content) == choice.message.content, "joined tokens are the content")


def completion(url: str) -> None:
    answer = client(url).completions.create(model=MODEL, prompt=["The pipeline", "A page"], max_tokens=5, logprobs=1, n=2, seed=3)
    require([choice.index for choice in answer.choices] == [0, 1, 2, 3], "two answers to each prompt")


def sent_back(url: str) -> None:
    answer = client(url).chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=8)
    again = [*QUESTION, answer.choices[0].message.model_dump(), {"role": "user", "content": "And?"}]
    client(url).chat.completions.create(model=MODEL, messages=again, max_tokens=4)


def responses(url: str) -> None:
    asked = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 24}
    whole = client(url).responses.create(**asked)
    with client(url).responses.stream(**asked) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    require(text == whole.output_text, "the same answer")
    again = [*QUESTION, *(item.model_dump() for item in whole.output), {"role": "user", "content": "And?"}]
    require(client(url).responses.create(model=MODEL, input=again, max_output_tokens=4).output_text, "an answer to an answer sent back")


def parsed(url: str) -> None:
    fields = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 99}
    answer = client(url).chat.completions.parse(**fields, response_format=Trip)
    require(isinstance(answer.choices[0].message.parsed, Trip), "an object of the class")
    answer = client(url).responses.parse(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=99, text_format=Trip)
    require(isinstance(answer.output_parsed, Trip), "an object of the class from a response")


def tools(url: str) -> None:
    asked = {
        "model": MODEL,
        "messages": QUESTION,
        "temperature": 0,
        "max_tokens": 99,
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    plan = openai.pydantic_function_tool(Trip)
    message = client(url).chat.completions.parse(**asked, tools=[plan]).choices[0].message
    require(
        message.tool_calls and all(isinstance(call.function.parsed_arguments, Trip) for call in message.tool_calls), "calls with objects"
    )
    with client(url).chat.completions.stream(**asked, tools=[plan]) as events:
        done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    require([event.arguments for event in done] == [call.function.arguments for call in message.tool_calls], "the same calls in a stream")
    results = [{"role": "tool", "tool_call_id": call.id, "content": "booked"} for call in message.tool_calls]
    calls = [
        {"id": call.id, "type": "function", "function": call.function.model_dump(include={"name", "arguments"})}
        for call in message.tool_calls
    ]
    turns = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    answer = client(url).chat.completions.create(model=MODEL, messages=turns, tools=[plan], tool_choice="none", max_tokens=8)
    require(answer.choices[0].message.content, "words behind the results")


def echo(url: str) -> None:
    logprobs = client(url).completions.create(model=MODEL, prompt="A page is", echo=True, max_tokens=0, logprobs=1).choices[0].logprobs
    require("".join(logprobs.tokens) == "A page is" and logprobs.token_logprobs[0] is None, "the prompt's own tokens")
    require(all(value < 0 for value in logprobs.token_logprobs[1:]), "log-probabilities of all but the first")


def embeddings(url: str) -> None:
    vectors = client(url).embeddings.create(model=MODEL, input=["a page", "a page", "a step"])
    one, again, other = (vector.embedding for vector in vectors.data)
    require(one == again != other, "the same vector for the same text")


def models(url: str) -> None:
    require(MODEL in [model.id for model in client(url).models.list()], "the model in the list")
    require(client(url).models.retrieve(MODEL).id == MODEL, "the model by name")


def errors(url: str) -> None:
    for kind, fields in ((openai.BadRequestError, {"temperature": -1}), (openai.NotFoundError, {"model": "gpt-17"})):
        try:
            client(url).chat.completions.create(**{"model": MODEL, "messages": QUESTION, **fields})
        except kind:
            continue
        raise AssertionError(f"{kind.__name__} for {fields}")


run(
    "openai",
    {
        "chat": chat,
        "stream": stream,
        "stream helper": stream_helper,
        "fields that ask for nothing": every_idle_field,
        "log-probabilities": log_probabilities,
        "completions": completion,
        "an answer sent back": sent_back,
        "parsed answers": parsed,
        "tools": tools,
        "echo of a prompt": echo,
        "embeddings": embeddings,
        "responses": responses,
        "models": models,
        "errors": errors,
    },
)
