"""A judge behind an endpoint says what its model says, costs no more than its bounds, and never raises."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from prompt_cache.semantic.endpoint_judge import EndpointJudge
from tests.fakes.openai_endpoint import Answer, endpoint, judging

PATH = "/v1/chat/completions"
SECRET = "a-judge-key"
FIRST, SECOND = 'Is "x" < 3?', "Is x below 3?\nAnswer SAME."


@pytest.mark.parametrize(
    ("text", "judgement"),
    [
        ("SAME", "same"),
        (" same.", "same"),
        ("**Different**", "different"),
        ("DIFFERENT: another number", "different"),
        ("sameness", "unsure"),
        ("They are the same", "unsure"),
        ("", "unsure"),
        (None, "unsure"),
    ],
)
async def test_a_judgement_is_one_of_two_words_or_unsure(text: Any, judgement: str) -> None:
    async with endpoint(judging(text), PATH) as asked:
        judge = EndpointJudge(asked.url, model="m")
        assert await judge.compare(FIRST, SECOND) == judgement
        await judge.close()


async def test_the_questions_are_sent_as_data_to_a_model_that_answers_greedily_past_every_cache() -> None:
    async with endpoint(judging("SAME"), PATH) as asked:
        judge = EndpointJudge(asked.url, model="m", key=SECRET)
        await judge.compare(FIRST, SECOND)
        await judge.close()
        (question,), (headers,) = asked.asked, asked.headers
    assert (question["model"], question["temperature"]) == ("m", 0) and 1 <= question["max_tokens"] <= 64
    system, user = question["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert json.loads(user["content"]) == {"first": FIRST, "second": SECOND}
    assert headers["Authorization"] == f"Bearer {SECRET}" and headers["Cache-Control"] == "no-cache, no-store"


async def _refuse(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
    return web.Response(status=500)


async def _redirect(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": str(request.url)})


async def _nonsense(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"choices": []})


async def _no_json(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
    return web.Response(text="SAME")


async def _endless(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
    return web.Response(text="x" * 100_000)


@pytest.mark.parametrize("answer", [_refuse, _redirect, _nonsense, _no_json, _endless])
async def test_an_endpoint_that_fails_is_counted_and_raises_nothing(answer: Answer) -> None:
    async with endpoint(answer, PATH) as asked:
        judge = EndpointJudge(asked.url, model="m")
        assert await judge.compare(FIRST, SECOND) == "failed"
        await judge.close()


async def test_more_than_may_wait_is_dropped_at_once() -> None:
    released = asyncio.Event()

    async def slow(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
        await released.wait()
        return await judging("SAME")(request, question)

    async with endpoint(slow, PATH) as asked:
        judge = EndpointJudge(asked.url, model="m", at_once=1, waiting=1)
        pending = [asyncio.create_task(judge.compare(FIRST, SECOND)) for _ in range(2)]
        await asyncio.sleep(0)
        assert await judge.compare(FIRST, SECOND) == "dropped"
        released.set()
        assert await asyncio.gather(*pending) == ["same", "same"]
        assert await judge.compare(FIRST, SECOND) == "same"
        await judge.close()


@pytest.mark.parametrize(
    ("field", "value"), [("url", "ftp://h/x"), ("url", "http://u:p@h/x"), ("model", ""), ("key", "ä"), ("timeout_s", 0.0)]
)
def test_what_an_operator_gives_wrongly_is_refused_by_name(field: str, value: Any) -> None:
    arguments = {"url": "http://h/v1/chat/completions", "model": "m", field: value}
    with pytest.raises(ValueError, match=field):
        EndpointJudge(arguments.pop("url"), **arguments)
