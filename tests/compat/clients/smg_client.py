"""Shepherd Model Gateway: its router, started here, drives a compute replica over vLLM's engine gRPC; answers are those of our own gateway."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.compat.clients.checks import QUESTION, require, run
from tests.ports import free_port

# Where a replica speaks vLLM's engine gRPC, host:port; the third word of the command line.
WORKER = sys.argv[3]
_READY_S = 60.0
_POLL_S = 0.2
_COLOUR = [{"role": "user", "content": "Name a colour."}]
_SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


def ask(url: str, path: str = "/v1/chat/completions", **fields: Any) -> Any:
    """A greedy answer, unless `fields` say otherwise; the text of the events if it is streamed."""
    prompt = {} if "prompt" in fields else {"messages": QUESTION}
    body = {"model": model_of(url), "temperature": 0, "max_tokens": 24, **prompt, **fields}
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        content = response.read().decode()
    return content if body.get("stream") else json.loads(content)


def model_of(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as response:
        return str(json.load(response)["data"][0]["id"])


@contextlib.contextmanager
def router() -> Iterator[str]:
    """The router in front of the worker, ready; where it listens."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "smg", "launch", "--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"grpc://{WORKER}"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_until_served(url, process)
            yield url
        finally:
            process.kill()


def wait_until_served(url: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until it knows its worker's model and has made a tokenizer of it."""
    end = time.monotonic() + _READY_S
    while True:
        try:
            ask(url, max_tokens=1)
            return
        except (OSError, LookupError) as error:
            require(process.poll() is None, f"the router ended: {error}")
            require(time.monotonic() < end, f"a router that serves after {_READY_S} s: {error}")
            time.sleep(_POLL_S)


def said(answer: Any) -> list[Any]:
    """What its choices say, why they end, and how many tokens they have."""
    texts = [choice["message"]["content"] if "message" in choice else choice["text"] for choice in answer["choices"]]
    return [texts, [choice["finish_reason"] for choice in answer["choices"]], answer["usage"]["completion_tokens"]]


def same(ours: str, theirs: str, **fields: Any) -> Any:
    """Asks both; fails if they say something else."""
    answer = ask(theirs, **fields)
    require(said(answer) == said(ask(ours, **fields)), f"our own answer, not {said(answer)}")
    return answer


def chats(ours: str, theirs: str) -> None:
    for fields in (
        {},
        {"messages": _COLOUR},
        {"max_tokens": 3},
        {"temperature": 1, "seed": 5},
        {"temperature": 1, "seed": 6, "top_p": 0.9},
    ):
        same(ours, theirs, **fields)
    whole = same(ours, theirs)["choices"][0]["message"]["content"]
    stopped = same(ours, theirs, stop=[whole[5:9], "none"])
    require(stopped["choices"][0]["message"]["content"] == whole[: whole.index(whole[5:9])], "the text before the stop string")


def streams(ours: str, theirs: str) -> None:
    events = [line[len("data: ") :] for line in ask(theirs, stream=True, stream_options={"include_usage": True}).splitlines() if line]
    require(events.pop() == "[DONE]", "a stream that ends in [DONE]")
    chunks = [json.loads(event) for event in events]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    expected = ask(ours)
    require(text == expected["choices"][0]["message"]["content"], "our own text")
    require(chunks[-1]["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"], "as many tokens as they are")


def log_probabilities(ours: str, theirs: str) -> None:
    answers = [ask(url, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"] for url in (theirs, ours)]
    theirs_, ours_ = ([(entry["token"], round(entry["logprob"], 4)) for entry in answer] for answer in answers)
    require(theirs_[: len(ours_)] == ours_, "our own log-probabilities")


def forms(ours: str, theirs: str) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}
    answer = same(ours, theirs, response_format=schema)
    require(json.loads(answer["choices"][0]["message"]["content"])["a"] in (True, False), "JSON of the schema")


def forced_calls(ours: str, theirs: str) -> None:
    tool = {"type": "function", "function": {"name": "switch", "parameters": _SCHEMA}}
    # Where no function is named, smg's own schema lets a model go on for ever.
    forced = {"type": "function", "function": {"name": "switch"}}
    message = ask(theirs, tools=[tool], tool_choice=forced)["choices"][0]["message"]
    call = message["tool_calls"][0]["function"]
    require(call["name"] == "switch" and json.loads(call["arguments"])["a"] in (True, False), "a call that the schema allows")


def completions(ours: str, theirs: str) -> None:
    same(ours, theirs, path="/v1/completions", prompt="A merge step is", max_tokens=8)


def refusals(ours: str, theirs: str) -> None:
    try:
        ask(theirs, temperature=2, frequency_penalty=2, top_p=1, regex="(", max_tokens=4)
    except urllib.error.HTTPError as error:
        require(error.code == 400, f"400 for a request that is wrong, not {error.code}")
    else:
        raise AssertionError("a regular expression that is none must be refused")


CHECKS = {
    "chats": chats,
    "streams": streams,
    "log-probabilities": log_probabilities,
    "answers of a form": forms,
    "forced tool calls": forced_calls,
    "completions": completions,
    "refusals": refusals,
}

with router() as served:
    run("smg", {feature: partial(check, theirs=served) for feature, check in CHECKS.items()})
