"""What the prompt cache may answer and keep, seen by HTTP clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.fakes.fake_compute import Say
from tests.fakes.gateway_fleet import GatewayFleet, running_fleet
from triserve.rpc.errors import Unavailable

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet() as fleet:
        yield fleet


@pytest.fixture
async def session(fleet: GatewayFleet) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(fleet.url) as session:
        yield session


async def ask(session: aiohttp.ClientSession, headers: dict[str, str] | None = None, **more: Any) -> tuple[str, dict[str, Any]]:
    """Status of the cache, and body."""
    async with session.post(CHAT, json={**QUESTION, **more}, headers=headers) as response:
        return response.headers["X-Triserve-Cache"], await response.json()


async def stream(session: aiohttp.ClientSession, **more: Any) -> tuple[str, list[Any]]:
    """Status of the cache, and what the events say without ids and times."""
    body = {**QUESTION, "stream": True, "stream_options": {"include_usage": True}, **more}
    async with session.post(CHAT, json=body) as response:
        lines = (await response.text()).strip().split("\n\n")
        events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert lines[-1] == "data: [DONE]"
    return response.headers["X-Triserve-Cache"], [(event["choices"], _plain(event["usage"])) for event in events]


def _plain(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    return usage and {name: value for name, value in usage.items() if name != "prompt_tokens_details"}


async def test_a_hit_is_the_same_answer_and_reaches_no_replica(session: aiohttp.ClientSession, fleet: GatewayFleet) -> None:
    status, first = await ask(session)
    again, second = await ask(session)
    assert (status, again) == ("miss", "hit-exact")
    assert second["choices"] == first["choices"]
    assert _plain(second["usage"]) == _plain(first["usage"])
    assert second["id"] != first["id"]
    assert len(fleet.compute.submitted) == 1


async def test_a_hit_streams_the_deltas_in_which_the_answer_was_made(session: aiohttp.ClientSession, fleet: GatewayFleet) -> None:
    status, first = await stream(session)
    again, second = await stream(session)
    assert (status, again) == ("miss", "hit-exact")
    assert len(second) > 20
    assert "".join(c["delta"].get("content", "") for choices, _ in second for c in choices) == "".join(
        c["delta"].get("content", "") for choices, _ in first for c in choices
    )
    assert second[-1] == first[-1]
    assert second[-2][0][0]["finish_reason"] == "stop"
    assert len(fleet.compute.submitted) == 1


async def test_whole_and_streamed_answers_share_an_entry(session: aiohttp.ClientSession) -> None:
    await ask(session)
    assert (await stream(session, return_token_ids=True))[0] == "hit-exact"


async def test_a_greedy_answer_does_not_depend_on_its_seed(session: aiohttp.ClientSession) -> None:
    await ask(session, seed=1)
    assert (await ask(session, seed=2))[0] == "hit-exact"


async def test_a_drawn_answer_is_kept_under_its_seed_alone(session: aiohttp.ClientSession) -> None:
    assert [(await ask(session, temperature=1, seed=seed))[0] for seed in (1, 1, 2)] == ["miss", "hit-exact", "miss"]


@pytest.mark.parametrize(
    "more",
    [{"temperature": 1}, {"n": 2}, {"logprobs": True}, {"ignore_eos": True, "max_tokens": 5}],
    ids=["no seed", "n", "logprobs", "load generator"],
)
async def test_requests_that_are_not_kept_bypass_the_cache(session: aiohttp.ClientSession, more: dict[str, Any]) -> None:
    assert [(await ask(session, **more))[0] for _ in range(2)] == ["bypass", "bypass"]


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 5},
        {"top_k": 3, "temperature": 0.5, "seed": 1},
        {"stop": ["l"]},
        {"messages": [{"role": "user", "content": "hello"}]},
        {"min_tokens": 1},
    ],
)
async def test_another_question_is_another_entry(session: aiohttp.ClientSession, more: dict[str, Any]) -> None:
    await ask(session)
    assert (await ask(session, **more))[0] == "miss"


async def test_what_changes_nothing_is_the_same_question(session: aiohttp.ClientSession) -> None:
    await ask(session)
    assert (await ask(session, top_p=0.5, top_k=7, presence_penalty=0, repetition_penalty=1, user="me"))[0] == "hit-exact"


async def test_no_cache_asks_for_a_fresh_answer_and_keeps_it(session: aiohttp.ClientSession, fleet: GatewayFleet) -> None:
    assert (await ask(session, {"Cache-Control": "no-cache"}))[0] == "bypass"
    assert (await ask(session))[0] == "hit-exact"
    assert (await ask(session, {"Cache-Control": "max-age=0, No-Cache"}))[0] == "bypass"
    assert len(fleet.compute.submitted) == 2


async def test_no_store_keeps_nothing(session: aiohttp.ClientSession) -> None:
    assert (await ask(session, {"Cache-Control": "no-store"}))[0] == "bypass"
    assert (await ask(session))[0] == "miss"


async def test_an_answer_that_failed_or_was_left_is_not_kept(session: aiohttp.ClientSession, fleet: GatewayFleet) -> None:
    echo = fleet.compute.script
    fleet.compute.script = lambda request: [Say("half", [1]), Unavailable("lost")]
    async with session.post(CHAT, json=QUESTION) as response:
        assert response.status == 503
    fleet.compute.script = echo
    fleet.compute.flowing.clear()
    fleet.compute.let_through(2)
    async with session.post(CHAT, json={**QUESTION, "stream": True}) as response:
        await response.content.readline()
        response.close()
    fleet.compute.flowing.set()
    assert (await ask(session))[0] == "miss"


async def test_tenants_do_not_share(tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    # sha256 of "secret" and of "other".
    keys.write_text(
        "acme 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n"
        "zorg d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa\n"
    )
    async with running_fleet(api_keys_file=keys) as fleet, aiohttp.ClientSession(fleet.url) as session:
        statuses = [(await ask(session, {"Authorization": f"Bearer {key}"}))[0] for key in ("secret", "other", "secret", "other")]
        assert statuses == ["miss", "miss", "hit-exact", "hit-exact"]


async def test_a_gateway_without_a_cache_serves() -> None:
    async with running_fleet(cache=False) as fleet, aiohttp.ClientSession(fleet.url) as session:
        assert [(await ask(session))[0] for _ in range(2)] == ["bypass", "bypass"]


async def test_an_answer_ended_by_length_is_kept_under_its_length(session: aiohttp.ClientSession) -> None:
    first = await ask(session, max_tokens=3)
    again = await ask(session, max_tokens=3)
    assert again[0] == "hit-exact"
    assert again[1]["choices"] == first[1]["choices"]
    assert again[1]["choices"][0]["finish_reason"] == "length"


async def test_many_hits_at_once_leave_the_event_loop_to_others(session: aiohttp.ClientSession) -> None:
    await ask(session)
    statuses = await asyncio.gather(*(ask(session) for _ in range(20)))
    assert {status for status, _ in statuses} == {"hit-exact"}
