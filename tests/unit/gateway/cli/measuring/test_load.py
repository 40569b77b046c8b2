"""Closed and open loops send every request once, at its time or by so many at once."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.cli.measuring.load import make_target, request_bytes, run_closed, run_open
from gateway.cli.measuring.measurement import Failed, Outcome
from gateway.cli.measuring.workload import PlannedRequest

REQUESTS = [PlannedRequest(index=index, arrival_s=index * 2.0, prompt_token_ids=[index], output_tokens=5) for index in range(10)]


async def test_a_closed_loop_keeps_so_many_under_way_and_no_more() -> None:
    under_way, most = 0, 0
    taken: list[Outcome] = []

    async def ask(request: PlannedRequest) -> Outcome:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(request.index % 3 + 1):
            await asyncio.sleep(0)
        under_way -= 1
        return Failed(request, "")

    await run_closed(REQUESTS, ask, concurrency=3, take=taken.append)
    assert most == 3
    assert sorted(one.request.index for one in taken) == list(range(10))


async def test_an_open_loop_sends_at_the_arrivals_however_many_are_under_way() -> None:
    now = 100.0
    sent: dict[int, float] = {}
    go = asyncio.Event()
    taken: list[Outcome] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        await asyncio.sleep(0)
        now += seconds

    async def ask(request: PlannedRequest) -> Outcome:
        sent[request.index] = now
        if request.index == 9:
            go.set()
        await go.wait()
        return Failed(request, "")

    await run_open(REQUESTS, ask, take=taken.append, clock=lambda: now, sleep=sleep)
    assert sent.keys() == set(range(10))
    assert all(at - 100.0 >= REQUESTS[index].arrival_s for index, at in sent.items())
    assert len(taken) == 10


def test_a_request_asks_for_exactly_so_many_tokens_and_its_ids() -> None:
    target = make_target("http://host:1/base/", model="m", api_key="k", timeout_s=1)
    head, _, body = request_bytes(target, REQUESTS[3]).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /base/v1/completions HTTP/1.1\r\nHost: host:1\r\n")
    assert b"Authorization: Bearer k" in head
    assert f"Content-Length: {len(body)}".encode() in head
    sent = json.loads(body)
    assert (sent["prompt"], sent["max_tokens"], sent["min_tokens"], sent["ignore_eos"], sent["return_token_ids"]) == ([3], 5, 5, True, True)


@pytest.mark.parametrize("exact", [True, False])
def test_a_request_is_greedy_or_draws_with_a_seed_of_its_own(exact: bool) -> None:
    def sent(temperature: float) -> dict[str, object]:
        target = make_target("http://host:1", model="m", api_key="", timeout_s=1, exact=exact, temperature=temperature)
        fields: dict[str, object] = json.loads(request_bytes(target, REQUESTS[3]).partition(b"\r\n\r\n")[2])
        return fields

    greedy, drawn = sent(0.0), sent(1.0)
    assert (greedy["temperature"], "seed" in greedy) == (0.0, False)
    assert (drawn["temperature"], drawn["seed"]) == (1.0, REQUESTS[3].index)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", ""])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no http"):
        make_target(url, model="m", api_key="", timeout_s=1)


@pytest.mark.parametrize(("url", "port", "tls"), [("http://h", 80, False), ("https://h", 443, True), ("https://h:1", 1, True)])
def test_ports_follow_the_scheme(url: str, port: int, tls: bool) -> None:
    target = make_target(url, model="m", api_key="", timeout_s=1)
    assert (target.port, target.tls is not None) == (port, tls)
