"""Metrics that only some gateways tell, and queries ask for. All others are held against real processes by tests/e2e/test_metrics.py."""

from __future__ import annotations

from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.checks.queries import OF_OPTIONS
from tests.fakes.gateway_fleet import running_fleet


async def test_a_gateway_with_caches_tells_of_them() -> None:
    settings: dict[str, Any] = {"semantic_cache": "shadow", "embedder": "ngrams", "semantic_store": "local"}
    async with running_fleet(**settings) as fleet, aiohttp.ClientSession(fleet.url) as session, session.get("/metrics") as response:
        told = {sample.name for family in text_string_to_metric_families(await response.text()) for sample in family.samples}
    assert OF_OPTIONS["gateway"] <= told
