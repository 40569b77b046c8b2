"""The semantic cache as HTTP clients see it: what is answered, to whom, what is kept, and how operators look into it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.fake_compute import FakeCompute, Say
from tests.fakes.fake_tokenizer import EOS
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from tests.fakes.openai_endpoint import endpoint, judging
from tests.fakes.redis_servers import RedisServer
from triserve.v1 import common_pb2, compute_pb2

CHAT = "/v1/chat/completions"
ASKED, SIMILAR, OTHER = "What is the capital of France?", "what's the capital of France", "What is the capital of Austria?"
# sha256 of "secret" and of "other".
KEYS = (
    "acme 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b{more}\n"
    "zorg d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa\n"
)
# Of the embedder of spelling, which needs no model; the questions of these tests differ by little.
SETTINGS: dict[str, Any] = {
    "semantic_cache": "on",
    "embedder": "ngrams",
    "semantic_audited_share": 0.0,
    "semantic_timeout_ms": 10_000,
    "cache_timeout_ms": 10_000,
}


class Model:
    """Says the number of the request in words of its own."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.number = 0

    def __call__(self, request: compute_pb2.SubmitRequest) -> list[Say]:
        self.number += 1
        text = self.answers.pop(0) if self.answers else f"answer {'abcdefghijklmnop'[self.number]}"
        return [Say(text, [1, 2]), Say("", [EOS], common_pb2.FINISH_REASON_STOP)]


async def opened(fleet: GatewayFleet) -> GatewayFleet:
    """The fleet, its semantic cache with a store."""
    semantic = fleet.service.gateway.pipeline.cache.semantic  # type: ignore[union-attr]
    assert semantic is not None
    await eventually(lambda: semantic.is_open, "the semantic cache is open")
    return fleet


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(computes=[FakeCompute(Model())], **SETTINGS) as fleet:
        yield await opened(fleet)


@pytest.fixture
async def session(fleet: GatewayFleet) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(fleet.url) as session:
        yield session


async def ask(session: aiohttp.ClientSession, question: str, headers: dict[str, str] | None = None, **more: Any) -> tuple[str, str]:
    """What the cache did, and the answer."""
    body = {"messages": [{"role": "user", "content": question}], **more}
    async with session.post(CHAT, json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        return response.headers["X-Triserve-Cache"], (await response.json())["choices"][0]["message"]["content"]


async def settled(fleet: GatewayFleet) -> None:
    """Returns when all that is kept in the background is kept."""
    await fleet.service.gateway.pipeline.cache.semantic.drain()  # type: ignore[union-attr]


async def test_a_question_asked_in_other_words_gets_the_kept_answer_and_reaches_no_replica(session: Any, fleet: GatewayFleet) -> None:
    assert await ask(session, ASKED) == ("miss", "answer b")
    await settled(fleet)
    assert await ask(session, SIMILAR) == ("hit-semantic", "answer b")
    assert await ask(session, OTHER) == ("miss", "answer c")
    assert len(fleet.compute.submitted) == 2


async def test_a_hit_is_a_whole_answer_with_age_similarity_and_usage(session: Any, fleet: GatewayFleet) -> None:
    await ask(session, ASKED)
    await settled(fleet)
    body = {"messages": [{"role": "user", "content": SIMILAR}], "stream": True, "stream_options": {"include_usage": True}}
    async with session.post(CHAT, json=body) as response:
        *lines, done = (await response.text()).strip().split("\n\n")
        headers = response.headers
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert headers["X-Triserve-Cache"] == "hit-semantic" and int(headers["Age"]) >= 0
    assert 0.4 < float(headers["X-Triserve-Cache-Similarity"]) < 1
    assert done == "data: [DONE]" and "stop" in [choice["finish_reason"] for event in events for choice in event["choices"]]
    usage = events[-1]["usage"]
    assert usage["completion_tokens"] == 3 and usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] > 0


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "system", "content": "Answer in German."}, {"role": "user", "content": SIMILAR}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": SIMILAR}]},
        {"messages": [{"role": "user", "content": SIMILAR, "name": "eve"}]},
        {"temperature": 0.3},
        {"stop": ["x"]},
        {"banned_token_ids": [5]},
        {"cache": {"salt": "mine"}},
        {"cache": {"threshold": 0.999}},
        {"max_tokens": 2},
    ],
    ids=lambda other: next(iter(other)) if "messages" not in other else "messages",
)
async def test_another_scope_or_stricter_terms_get_an_answer_of_their_own(session: Any, fleet: GatewayFleet, other: Any) -> None:
    await ask(session, ASKED)
    await settled(fleet)
    async with session.post(CHAT, json={"messages": [{"role": "user", "content": SIMILAR}], **other}) as response:
        assert response.headers["X-Triserve-Cache"] == "miss"
    assert (await ask(session, SIMILAR, cache={"threshold": 0.3}))[0] == "hit-semantic"


@pytest.mark.parametrize(
    "fields", [{"seed": 1}, {"logprobs": True}, {"n": 2}, {"ignore_eos": True, "max_tokens": 2}], ids=lambda fields: next(iter(fields))
)
async def test_what_wants_an_answer_of_its_own_is_not_looked_for_by_meaning(session: Any, fleet: GatewayFleet, fields: Any) -> None:
    await ask(session, ASKED)
    await settled(fleet)
    assert (await ask(session, SIMILAR, **fields))[0] in ("miss", "bypass")


async def test_tenants_never_share_whatever_they_ask(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEYS.format(more=""))
    acme, zorg = ({"Authorization": f"Bearer {key}"} for key in ("secret", "other"))
    async with running_fleet(computes=[FakeCompute(Model())], api_keys_file=keys, **SETTINGS) as fleet:
        await opened(fleet)
        async with aiohttp.ClientSession(fleet.url) as session:
            assert await ask(session, ASKED, acme) == ("miss", "answer b")
            await settled(fleet)
            # The other tenant asks for anything near, and then leaves an answer for the first to find.
            assert await ask(session, SIMILAR, zorg, cache={"threshold": -1.0}) == ("miss", "answer c")
            await settled(fleet)
            assert await ask(session, SIMILAR, zorg) == ("hit-semantic", "answer c")
            assert await ask(session, OTHER, zorg) == ("miss", "answer d")
            await settled(fleet)
            assert await ask(session, OTHER, acme, cache={"threshold": -1.0}) == ("miss", "answer e")
            assert await ask(session, ASKED, acme, temperature=0) == ("miss", "answer f")
            assert await ask(session, ASKED, zorg, temperature=0) == ("miss", "answer g")
            assert await ask(session, SIMILAR, acme) == ("hit-semantic", "answer b")
            async with session.post(CHAT, json={"messages": [{"role": "user", "content": SIMILAR}]}, headers=acme) as response:
                assert "X-Triserve-Cache-Similarity" not in response.headers
            for method, path in (("GET", "/v1/cache"), ("POST", "/v1/cache/explain")):
                async with session.request(method, path, headers=acme, json={"messages": [{"role": "user", "content": "a"}]}) as response:
                    assert response.status == 403


async def test_request_control_says_what_may_be_given_and_kept(session: Any, fleet: GatewayFleet) -> None:
    body = {"messages": [{"role": "user", "content": ASKED}], "cache": {"mode": "only"}}
    async with session.post(CHAT, json=body) as response:
        assert response.status == 504 and (await response.json())["error"]["code"] == "not_cached"
    assert (await ask(session, ASKED, cache={"mode": "bypass"}))[0] == "bypass"
    await settled(fleet)
    assert (await ask(session, ASKED, {"Cache-Control": "no-store"}))[0] == "bypass"
    assert (await ask(session, ASKED, cache={"mode": "refresh"}))[0] == "bypass"
    await settled(fleet)
    assert (await ask(session, SIMILAR, {"Cache-Control": "only-if-cached"}))[0] == "hit-semantic"
    assert (await ask(session, SIMILAR, {"Cache-Control": "no-cache"}))[0] == "bypass"


async def test_what_goes_out_of_date_or_was_cut_is_not_kept(session: Any, fleet: GatewayFleet) -> None:
    for question in ("What is the weather today?", "My order number is 123456, where is it?"):
        await ask(session, question)
        await settled(fleet)
        assert (await ask(session, question))[0] == "miss"
    fleet.compute.script = lambda request: [Say("cut", [1], common_pb2.FINISH_REASON_LENGTH)]
    await ask(session, ASKED)
    await settled(fleet)
    assert (await ask(session, ASKED))[0] == "miss"


async def test_a_share_of_hits_is_checked_against_the_model_and_a_wrong_one_is_not_given_again(tmp_path: Path) -> None:
    model = Model()
    async with running_fleet(computes=[FakeCompute(model)], **{**SETTINGS, "semantic_audited_share": 1.0}) as fleet:
        await opened(fleet)
        async with aiohttp.ClientSession(fleet.url) as session:
            model.answers = ["Paris.", "It is Lyon, and it was never Paris."]
            await ask(session, ASKED)
            await settled(fleet)
            assert await ask(session, SIMILAR) == ("hit-semantic", "Paris.")
            semantic = fleet.service.gateway.pipeline.cache.semantic  # type: ignore[union-attr]
            assert semantic is not None
            await eventually(lambda: semantic.comparer.comparisons["different"] == 1, "the hit was compared")
            await settled(fleet)
            assert await ask(session, SIMILAR) == ("hit-semantic", "It is Lyon, and it was never Paris."), "the model's own answer was kept"
            async with session.get("/v1/cache") as response:
                (scope,) = (await response.json())["semantic"]["scopes"]
            assert (scope["served"], scope["checked"], scope["wrong"]) == (2, 1, 1)
            async with session.get("/metrics") as response:
                metrics = await response.text()
            assert 'triserve_semantic_comparisons_total{result="different"} 1.0' in metrics
            assert 'triserve_cache_lookups_total{result="hit-semantic"} 2.0' in metrics


async def test_a_judge_is_asked_what_a_guard_was_worth_and_its_judgements_are_published() -> None:
    async with (
        endpoint(judging("SAME"), "/v1/chat/completions") as judge,
        running_fleet(computes=[FakeCompute(Model())], semantic_judge=judge.url, semantic_judge_model="m", **SETTINGS) as fleet,
        aiohttp.ClientSession(fleet.url) as session,
    ):
        semantic = (await opened(fleet)).service.gateway.pipeline.cache.semantic  # type: ignore[union-attr]
        assert semantic is not None
        await ask(session, ASKED)
        await settled(fleet)
        assert (await ask(session, OTHER))[0] == "miss"
        (guard,) = semantic.refusals
        await eventually(lambda: bool(semantic.comparer.judged), "the refusal was judged")
        async with session.get("/metrics") as response:
            assert f'triserve_semantic_judged_total{{result="same",subject="{guard}"}} 1.0' in await response.text()
        async with session.get("/v1/cache") as response:
            assert (await response.json())["semantic"]["judged"] == {guard: {"same": 1}}


async def test_shadow_mode_gives_nothing_and_says_what_it_would_have_given() -> None:
    async with running_fleet(computes=[FakeCompute(Model())], **{**SETTINGS, "semantic_cache": "shadow"}) as fleet:
        await opened(fleet)
        async with aiohttp.ClientSession(fleet.url) as session:
            await ask(session, ASKED)
            await settled(fleet)
            assert (await ask(session, SIMILAR))[0] == "miss"
            async with session.get("/v1/cache") as response:
                found = await response.json()
            assert found["semantic"]["mode"] == "shadow" and found["semantic"]["outcomes"]["would_hit"] == 1


async def test_explaining_names_the_step_that_refuses(session: Any, fleet: GatewayFleet) -> None:
    await ask(session, ASKED)
    await settled(fleet)
    async with session.post("/v1/cache/explain", json={"messages": [{"role": "user", "content": OTHER}]}) as response:
        (entry,) = (await response.json())["entries"]
    assert entry["question"] == ASKED and not entry["served"] and entry["refused_by"]
    assert next(step["step"] for step in entry["steps"] if not step["passed"]) == entry["refused_by"]
    async with session.post("/v1/cache/explain", json={"messages": [{"role": "assistant", "content": "a"}]}) as response:
        assert response.status == 400 and (await response.json())["error"]["param"] == "messages"
    assert len(fleet.compute.submitted) == 1


async def test_purging_forgets_the_tenants_answers_of_both_kinds(session: Any, fleet: GatewayFleet) -> None:
    await ask(session, ASKED, temperature=0)
    await settled(fleet)
    assert (await ask(session, ASKED, temperature=0))[0] == "hit-exact"
    async with session.delete("/v1/cache") as response:
        assert (await response.json())["generation"] >= 1
    assert (await ask(session, ASKED, temperature=0))[0] == "miss"
    async with session.delete("/v1/cache"):
        pass
    assert (await ask(session, SIMILAR, temperature=0))[0] == "miss"


async def test_a_threshold_without_a_semantic_cache_is_refused_by_name() -> None:
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        body = {"messages": [{"role": "user", "content": "a"}], "cache": {"threshold": 0.9}}
        async with session.post(CHAT, json=body) as response:
            assert response.status == 400 and (await response.json())["error"]["param"] == "cache.threshold"
        async with session.post("/v1/cache/explain", json={"messages": [{"role": "user", "content": "a"}]}) as response:
            assert response.status == 400
        async with session.get("/v1/cache") as response:
            assert (await response.json())["semantic"] is None


async def test_two_gateways_of_a_redis_share_answers_and_a_purge(server: RedisServer) -> None:
    shared = {**SETTINGS, "redis_url": server.url, "cache_secret": "0123456789abcdef"}
    model = Model()
    async with running_fleet(computes=[FakeCompute(model)], **shared) as one, running_fleet(computes=[FakeCompute(model)], **shared) as two:
        await opened(one)
        await opened(two)
        async with aiohttp.ClientSession(one.url) as first, aiohttp.ClientSession(two.url) as second:
            assert await ask(first, ASKED) == ("miss", "answer b")
            await settled(one)
            assert await ask(second, SIMILAR) == ("hit-semantic", "answer b")
            async with first.delete("/v1/cache") as response:
                assert response.status == 200
            assert (await ask(first, SIMILAR))[0] == "miss"


async def test_two_hundred_identical_requests_at_two_gateways_are_one_generation(server: RedisServer) -> None:
    shared: dict[str, Any] = {"redis_url": server.url, "cache_secret": "0123456789abcdef", "cache_timeout_ms": 10_000}
    computes = [FakeCompute(Model()), FakeCompute(Model())]
    async with running_fleet(computes=computes[:1], **shared) as one, running_fleet(computes=computes[1:], **shared) as two:
        for compute in computes:
            compute.flowing.clear()
        async with aiohttp.ClientSession(one.url) as first, aiohttp.ClientSession(two.url) as second:
            tasks = [asyncio.create_task(ask(session, ASKED, temperature=0)) for _ in range(100) for session in (first, second)]
            await eventually(
                lambda: one.active + two.active == 200 and sum(len(compute.submitted) for compute in computes) >= 1, "all are in"
            )
            for compute in computes:
                compute.flowing.set()
            results = await asyncio.gather(*tasks)
        assert sum(len(compute.submitted) for compute in computes) == 1
        assert {answer for _, answer in results} == {"answer b"}
        assert sorted(status for status, _ in results) == ["hit-exact"] * 199 + ["miss"]
