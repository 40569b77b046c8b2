"""Every service, as a process of its own, tells those who watch what it promises, on a port that is not its data port."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.pods import Stage, running_pods
from tests.metric_names import EVERY_SERVICE, NAMES
from tests.ports import free_port

TINY = Path(__file__).parents[1] / "tiny_model"
STAGES: tuple[Stage, ...] = ("tokenizer", "sampler", "compute")


def told(text: str) -> tuple[set[str], dict[str, float]]:
    """Names as queries use them, and the sums of their values."""
    names: set[str] = set()
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        names.add(family.name)
        for sample in family.samples:
            names.add(sample.name)
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return names, values


async def test_what_dashboards_and_autoscalers_ask_for_is_told_and_moves() -> None:
    ports = {service: free_port() for service in NAMES}
    variables = {
        service: {f"{service.upper()}_METRICS_LISTEN": f"127.0.0.1:{port}", f"{service.upper()}_LOG_FORMAT": "json"}
        for service, port in ports.items()
    }
    async with running_pods(variables) as pods, aiohttp.ClientSession() as session:
        await asyncio.gather(*(pods.add(stage, TINY) for stage in STAGES))
        await pods.until_ready()
        body = {"messages": [{"role": "user", "content": "hello " * 600}], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        async with session.post(f"{pods.url}/v1/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
        async with session.post(f"{pods.url}/v1/chat/completions", json={"messages": 5}) as response:
            assert response.status == 400
        values: dict[str, float] = {}
        for service, port in ports.items():
            async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
                names, of_service = told(await response.text())
            assert NAMES[service] | EVERY_SERVICE <= names, f"{service} lacks {sorted((NAMES[service] | EVERY_SERVICE) - names)}"
            values |= of_service
            for path in ("livez", "readyz"):
                async with session.get(f"http://127.0.0.1:{port}/{path}") as response:
                    assert response.status == 200
        assert values["triserve_tokenizer_tokens_total"] > 500
        assert values["triserve_sampler_rows_total"] >= 8
        assert values["triserve_compute_generated_tokens_total"] >= 8
        assert values["triserve_compute_batch_tokens_sum"] > 500
        assert values["triserve_gateway_refused_total"] == 1
        assert values["vllm:time_to_first_token_seconds_count"] == 1
        for stage in STAGES:
            (pod,) = pods.of(stage)
            assert pod.address.rpartition(":")[2] != str(ports[stage])
