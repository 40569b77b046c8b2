"""A whole compute process with its real engine, between a hostile sampler and a hostile gateway: the others' requests are answered, byte for byte."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sampler_svc.service import SamplerService
from sampler_svc.settings import Settings as SamplerSettings
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.compute_replica import Gateway, submission, until
from tests.fakes.hostile_peers import Item, send_all
from tests.fakes.hostile_stages import Deed, HostileSampler
from tests.fakes.sampler_tokenizers import byte_tokenizer
from tests.ports import free_port
from triserve.rpc.channel import is_ready, open_channel
from triserve.rpc.fingerprint import fingerprint_of
from triserve.v1 import common_pb2, compute_pb2, sampler_pb2

ROOT = Path(__file__).parents[3]
FINISHED = compute_pb2.REQUEST_OUTCOME_FINISHED
GREEDY = common_pb2.SamplingParams(temperature=0)
GENERATE = "/triserve.v1.ComputeService/Generate"


def _row(**fields: Any) -> bytes:
    return sampler_pb2.DeltaFrame(**fields).SerializeToString()


# One of each kind that would reach the engine, the gateway or another's request if nobody looked.
DEEDS: list[Deed] = [
    {"request": [1, 2, 3], "position": [0]},
    b"\xff\xff\xff",
    {"parcels": [sampler_pb2.Parcel(gateway=1, delta_frame=_row(request=[0], epoch=[0], first_position=[0], num_tokens=[9], text=["no"]))]},
    {"request": [1], "position": [0], "token": [2**32 - 1]},
    {"finished": range(3000)},
    {"failed": [sampler_pb2.SampleFailure(request=number) for number in range(50)]},
]
SUBMITS = [
    compute_pb2.SubmitRequest(),
    compute_pb2.SubmitRequest(request=1, token_ids=[2**32 - 1]),
    compute_pb2.SubmitRequest(request=2, token_ids=range(90), sampling=GREEDY, stopping=common_pb2.StoppingParams(max_tokens=2**32 - 1)),
    submission(3, range(20), 30, sampling=common_pb2.SamplingParams(temperature=float("nan"), seed=1)),
    submission(4, range(20), 30, sampling=common_pb2.SamplingParams(temperature=0, top_logprobs=2**32 - 1)),
    submission(5, range(20), 30, stopping={"stop_token_ids": [3] * 20_000}),
    submission(6, range(20), 30, tenant="x" * 100_000),
    submission(7, [5] * 1_000_000),
    submission(8, range(20), 30, deadline_ms=1, priority=-10),
]


@dataclass
class Answered:
    """What became of a request."""

    end: int
    tokens: list[int]
    text: str


def answered(gateway: Gateway, number: int) -> Answered:
    """What a gateway was told of a request, whichever parcels it came in."""
    text = ""
    for response in gateway.responses:
        for parcel in response.parcels:
            frame = sampler_pb2.DeltaFrame.FromString(parcel)
            text += "".join(part for request, part in zip(frame.request, frame.text, strict=True) if request == number)
    return Answered(gateway.ended[number].outcome, gateway.tokens.get(number, []), text)


async def ask_all(gateway: Gateway, first: int) -> None:
    """Twelve requests, in waves."""
    for wave in range(4):
        numbers = [first + 3 * wave + index for index in range(3)]
        await gateway.send(
            submit=[
                submission(
                    number, [number - first + 1, 5, 6], 12, sampling=common_pb2.SamplingParams(temperature=0.8 * (number % 2), seed=7)
                )
                for number in numbers
            ]
        )
        await gateway.end_of(*numbers)


async def beside_hostile_peers_of_a_real_replica(folder: Path) -> None:
    sampler = SamplerService(SamplerSettings(model=folder, listen="127.0.0.1:0", drain_timeout_s=0.0))
    await sampler.start()
    compute, hostile_target = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "COMPUTE_MODEL": str(folder),
        "COMPUTE_LISTEN": compute,
        "COMPUTE_SAMPLERS": f"127.0.0.1:{sampler.port},{hostile_target}",
        "COMPUTE_THREADS": "1",
        "COMPUTE_KV_CACHE_BYTES": str(1 << 22),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos")]),
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "compute_svc", env=environment, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    log = asyncio.ensure_future(process.stderr.read())
    fingerprint = fingerprint_of(folder)
    gateway = Gateway(int(compute.rpartition(":")[2]))
    try:
        async with open_channel(compute) as channel:
            await until(lambda: is_ready(channel, "triserve.v1.ComputeService", timeout_s=5))
        await gateway.connect(fingerprint)
        await ask_all(gateway, 0)
        alone = [answered(gateway, number) for number in range(12)]
        assert {one.end for one in alone} == {FINISHED}
        hostile = HostileSampler(fingerprint, DEEDS, hostile_target)
        hello = compute_pb2.GenerateRequest(hello=compute_pb2.GatewayHello(gateway_name="h", fingerprint=fingerprint))
        async with hostile.server:
            await until(lambda: bool(hostile.fake.hellos))
            streams: list[list[Item]] = [
                [hello, *(compute_pb2.GenerateRequest(submit=[one]) for one in SUBMITS)],
                [hello, hello],
                [hello, b"\xff"],
                [b"\xff"],
            ]
            for wave, items in enumerate(streams, 1):
                async with asyncio.TaskGroup() as group:
                    group.create_task(send_all(compute, GENERATE, items))
                    group.create_task(ask_all(gateway, 100 * wave))
            victims = {
                opening.gateway_request for frame in hostile.fake.frames for opening in frame.open if len(opening.prompt_token_ids) == 3
            }
        assert victims
        innocents = [100 * wave + number for wave in range(1, 5) for number in range(12) if 100 * wave + number not in victims]
        assert len(innocents) > 12
        assert [answered(gateway, number) for number in innocents] == [alone[number % 100] for number in innocents]
        load = await gateway.load()
        assert (load.running_requests, load.waiting_requests, load.used_pages) == (0, 0, 0)
    finally:
        await gateway.close()
        process.terminate()
        said = (await log).decode()
        await sampler.stop()
    assert await process.wait() == 0, said
    # gRPC's client tells of bytes that it could not read, with the stack of its reader.
    assert "Traceback" not in said.replace("Exception deserializing message!\nTraceback", ""), said


async def test_hostile_peers_of_a_real_replica_harm_no_request_of_another(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    await beside_hostile_peers_of_a_real_replica(tmp_path)
