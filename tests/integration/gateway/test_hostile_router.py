"""A router that sends vLLM's messages bent in every way finds no fault of ours, and others are answered byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.compute_replica import Replica
from tests.fakes.hostile_messages import hostile_bytes
from tests.fakes.hostile_peers import FaultsOfOurs, call_all, send_all
from triserve.v1 import compute_pb2

REASON = "smg-grpc-proto is not installed"
vllm: Any = pytest.importorskip("smg_grpc_proto.generated.vllm_engine_pb2", reason=REASON)
PREFIX = "/vllm.grpc.engine.VllmEngine/"
PATIENCE_S = 60
BOUNDED = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

PARAMETERS = hostile_bytes(vllm.SamplingParams)
# What passes the first checks, too: ids that the model has, and any parameters.
PROMPTED = st.builds(
    lambda ids, bent: vllm.GenerateRequest(tokenized=vllm.TokenizedInput(input_ids=ids)).SerializeToString() + _parameters(bent),
    st.lists(st.integers(0, 23), min_size=1, max_size=8),
    PARAMETERS,
)


def _parameters(content: bytes) -> bytes:
    """As a field of a GenerateRequest."""
    field = vllm.GenerateRequest.DESCRIPTOR.fields_by_name["sampling_params"].number
    length, shown = len(content), bytearray()
    while length > 127:
        shown.append(length & 127 | 128)
        length >>= 7
    return bytes([field << 3 | 2, *shown, length]) + content


async def beside_a_hostile_router(folder: Path, requests: Sequence[bytes], calls: Sequence[tuple[str, bytes]]) -> None:
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    replica = Replica(folder)
    try:
        sizes = {"max_running_requests": 8, "max_waiting_requests": 4000, "num_pages": 200}
        await (await replica.start(sizes=sizes, vllm_listen="127.0.0.1:0")).ready()
        target = f"127.0.0.1:{replica.running.vllm_port}"
        gateway = await replica.gateway()
        # Those that wait for a grammar's masks, which the fake sampler has none of, are left when the innocents have ended.
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(send_all(target, f"{PREFIX}Generate", [request])) for request in requests]
        tasks.append(asyncio.create_task(call_all(target, [(PREFIX + method, content) for method, content in calls])))
        for number in range(4):
            await gateway.submit(number, [number, 2], 6)
        for number, ended in enumerate(await gateway.end_of(*range(4))):
            assert ended.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
            assert gateway.tokens[number] == replica.model.greedy_answer([number, 2], 6)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await replica.idle()
    finally:
        await replica.stop()


@BOUNDED
@given(
    st.lists(hostile_bytes(vllm.GenerateRequest) | PROMPTED, max_size=8),
    st.lists(st.tuples(st.sampled_from(["Abort", "GetLoads", "GetModelInfo"]), hostile_bytes(vllm.AbortRequest)), max_size=4),
)
def test_a_hostile_router_harms_no_request_of_another(
    tmp_path_factory: pytest.TempPathFactory, requests: list[bytes], calls: list[tuple[str, bytes]]
) -> None:
    with FaultsOfOurs() as faults:
        asyncio.run(asyncio.wait_for(beside_a_hostile_router(tmp_path_factory.mktemp("m"), requests, calls), PATIENCE_S))
    assert not faults, "\n".join(faults)
