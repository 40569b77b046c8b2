"""A whole replica over real gRPC on loopback: gateways on one side, samplers on the other, a hashing model inside."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.server import EngineServer
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch
from compute_svc.replica.engine_client import EngineHost, Launch
from compute_svc.replica.service import SERVICE_NAME, ComputeService
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.policies import make_policy
from compute_svc.settings import Settings
from tests.fakes.engine_reader import SERVICE
from tests.fakes.fake_sampler import FakeSampler
from tests.fakes.hash_model import HashModel, hash_kv
from triserve.rpc.channel import is_ready, open_channel
from triserve.rpc.fingerprint import fingerprint_of
from triserve.rpc.tls.ends import ClientTls
from triserve.v1 import common_pb2, compute_pb2, compute_pb2_grpc, sampler_pb2

WIDTH = 24
TIMEOUT_S = 20.0
_POLL_S = 0.005
SAMPLED = common_pb2.SamplingParams(temperature=1, top_k=3, seed=1)


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Waits for a state that comes by itself, in another thread or behind a socket."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(_POLL_S)


class Gateway:
    """A gateway that reads everything into attributes.

    Args:
        port: Of the replica.
        tls: As of `open_channel`.

    Attributes:
        stub: Of the stage.
        prefixes: Of its prefix cache.
        hello: The replica's first words.
        responses: Every message.
        tokens: Of each request, in order.
        finish: Of each request, its finish reason.
        started: Of each request.
        ended: How each request ended.
        status: How the stream ended, if with an error.
    """

    def __init__(self, port: int, tls: ClientTls | None = None) -> None:
        self._channel = open_channel(f"127.0.0.1:{port}", tls)
        self.stub: Any = compute_pb2_grpc.ComputeServiceStub(self._channel)
        self.prefixes: Any = compute_pb2_grpc.PrefixCacheServiceStub(self._channel)
        self.hello: compute_pb2.GetComputeInfoResponse | None = None
        self.responses: list[compute_pb2.GenerateResponse] = []
        self.tokens: dict[int, list[int]] = {}
        self.finish: dict[int, int] = {}
        self.started: dict[int, compute_pb2.RequestStarted] = {}
        self.ended: dict[int, compute_pb2.RequestEnded] = {}
        self.status: grpc.aio.AioRpcError | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def channel(self) -> grpc.aio.Channel:
        """To the replica."""
        return self._channel

    async def connect(self, fingerprint: common_pb2.Fingerprint, *, reads: bool = True) -> Gateway:
        """Says hello; returns when that is answered, if it reads at all."""
        self.call = self.stub.Generate()
        await self.send(hello=compute_pb2.GatewayHello(gateway_name="test", fingerprint=fingerprint))
        if reads:
            self._reader = asyncio.create_task(self._read())
            await until(lambda: self.hello is not None or self.status is not None)
        return self

    async def send(self, **fields: Any) -> None:
        """Sends one message."""
        await self.call.write(compute_pb2.GenerateRequest(**fields))

    async def submit(self, request: int, prompt: Sequence[int], max_tokens: int = 4, **fields: Any) -> None:
        """Sends one request."""
        await self.send(submit=[submission(request, prompt, max_tokens, **fields)])

    async def end_of(self, *requests: int) -> list[compute_pb2.RequestEnded]:
        """How these requests ended; waits for it."""
        await until(lambda: all(request in self.ended for request in requests))
        return [self.ended[request] for request in requests]

    async def load(self) -> compute_pb2.ComputeLoad:
        """What the replica holds now."""
        info: compute_pb2.GetComputeInfoResponse = await self.stub.GetComputeInfo(compute_pb2.GetComputeInfoRequest())
        return info.load

    async def close(self) -> None:
        """Leaves without a word."""
        self.call.cancel()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()

    async def _read(self) -> None:
        try:
            async for response in self.call:
                self._take(response)
        except grpc.aio.AioRpcError as error:
            self.status = error

    def _take(self, response: compute_pb2.GenerateResponse) -> None:
        self.responses.append(response)
        if response.HasField("hello"):
            self.hello = response.hello
        self.started.update({started.request: started for started in response.started})
        for parcel in response.parcels:
            self._take_deltas(sampler_pb2.DeltaFrame.FromString(parcel))
        for ended in response.ended:
            assert ended.request not in self.ended
            self.ended[ended.request] = ended

    def _take_deltas(self, frame: sampler_pb2.DeltaFrame) -> None:
        tokens = iter(frame.token)
        for request, count, finish in zip(frame.request, frame.num_tokens, frame.finish_reason, strict=True):
            assert request not in self.finish, "nothing follows a finish reason"
            self.tokens.setdefault(request, []).extend(next(tokens) for _ in range(count))
            if finish:
                self.finish[request] = finish


def submission(request: int, prompt: Sequence[int], max_tokens: int = 4, **fields: Any) -> compute_pb2.SubmitRequest:
    """A greedy request, unless `fields` say otherwise; `stopping` adds to max_tokens."""
    sampling = fields.pop("sampling", common_pb2.SamplingParams(temperature=0))
    stopping = common_pb2.StoppingParams(max_tokens=max_tokens, **fields.pop("stopping", {}))
    return compute_pb2.SubmitRequest(
        request=request, request_id=f"r{request}", token_ids=prompt, sampling=sampling, stopping=stopping, **fields
    )


class _Thread:
    """Runs an engine in this process, where tests can reach into it."""

    def __init__(self, server: EngineServer) -> None:
        self._thread = threading.Thread(target=server.run, daemon=True)
        self._thread.start()

    async def wait(self) -> str:
        """See `EngineHost`."""
        await asyncio.to_thread(self._thread.join)
        return "ended"

    def kill(self) -> None:
        """A thread cannot be killed: the test hangs and says so."""

    def used_s(self) -> float | None:
        """A thread's time is its process's: not known."""
        return None


def engine_in_thread(build: Callable[[Settings], Engine]) -> Launch:
    """Starts what `build` makes in a thread."""

    def launch(connection: socket.socket, environment: Mapping[str, str]) -> EngineHost:
        return _Thread(EngineServer(connection.dup(), build))

    return launch


class Gate:
    """Wraps a model: forward passes wait while the gate is shut, and raise `error` if there is one."""

    def __init__(self, model: HashModel) -> None:
        self.model = model
        self.open = threading.Event()
        self.open.set()
        self.error: BaseException | None = None

    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        """The model's, once the gate is open."""
        self.open.wait(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        return self.model.forward(batch, kv)


class Replica:
    """A compute service with its samplers and the gateways a test connects.

    Args:
        folder: Holds config.json and tokenizer.json, whatever is in them.
        tls: With which tests connect to it.
        sampler_options: Of the samplers' servers.
    """

    def __init__(self, folder: Path, tls: ClientTls | None = None, sampler_options: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.tls = tls
        self.sampler_options = sampler_options
        self.fingerprint = fingerprint_of(folder)
        self.folder = folder
        self.model = HashModel(WIDTH)
        self.gate = Gate(self.model)
        self.samplers: list[FakeSampler] = []
        self.gateways: list[Gateway] = []
        self.may_load = threading.Event()
        self.may_load.set()
        self.engine: Engine | None = None
        self.service: ComputeService | None = None

    @property
    def running(self) -> ComputeService:
        """The service, which is started."""
        assert self.service is not None, "the test starts it"
        return self.service

    @property
    def port(self) -> int:
        """Of the service."""
        return self.running.port

    async def start(self, *, num_samplers: int = 1, sizes: dict[str, int] | None = None, **settings: Any) -> Replica:
        """Starts samplers and service; returns when the engine is there.

        Args:
            num_samplers: How many.
            sizes: Of the scheduler, over small defaults.
            settings: Of the service.
        """
        await self.start_loading(num_samplers=num_samplers, sizes=sizes, **settings)
        await until(lambda: self.engine is not None)
        return self

    async def start_loading(self, *, num_samplers: int = 1, sizes: dict[str, int] | None = None, **settings: Any) -> None:
        """The same, but returns when the service listens."""
        targets = []
        for _ in range(num_samplers):
            self.samplers.append(FakeSampler(self.fingerprint))
            targets.append(await self.samplers[-1].start(**self.sampler_options))
        self.sizes = {"page_size_tokens": 4, "num_pages": 32, "max_model_len_tokens": 64, "step_budget_tokens": 16}
        self.sizes |= {"max_running_requests": 4, "max_waiting_requests": 4} | (sizes or {})
        self.settings = Settings.model_validate(
            {"listen": "127.0.0.1:0", "model": self.folder, "samplers": tuple(targets), "threads": 1, **settings}
        )
        self.service = ComputeService(self.settings, launch=engine_in_thread(self._load))
        await self.service.start()

    async def ready(self) -> Replica:
        """Waits until the service says that it is ready."""
        await until(self.is_ready)
        return self

    async def is_ready(self) -> bool:
        """What the service's health says."""
        async with open_channel(f"127.0.0.1:{self.port}", self.tls) as channel:
            return await is_ready(channel, SERVICE_NAME, timeout_s=TIMEOUT_S)

    async def is_not_ready(self) -> bool:
        """What the service's health says."""
        return not await self.is_ready()

    async def gateway(self, fingerprint: common_pb2.Fingerprint | None = None, *, reads: bool = True) -> Gateway:
        """Connects a gateway, of the same model unless a fingerprint says otherwise."""
        self.gateways.append(Gateway(self.port, self.tls))
        return await self.gateways[-1].connect(fingerprint or self.fingerprint, reads=reads)

    async def idle(self) -> None:
        """Waits until no request and no page of one is left."""
        gateway = Gateway(self.port, self.tls)

        async def is_idle() -> bool:
            load = await gateway.load()
            return not (load.running_requests or load.waiting_requests or load.used_pages)

        await until(is_idle)
        await gateway.channel.close()

    async def stop(self) -> None:
        """Takes everything down that was started."""
        self.may_load.set()
        self.gate.open.set()
        for gateway in self.gateways:
            await gateway.close()
        if self.service is not None:
            await self.service.stop()
        for sampler in self.samplers:
            sampler.may_answer.set()
            await sampler.stop()

    def _load(self, settings: Settings) -> Engine:
        self.may_load.wait(TIMEOUT_S)
        config = SchedulerConfig(**self.sizes)
        kv = hash_kv(config.num_pages, config.page_size_tokens)
        policy = make_policy(settings.policy)
        # Computes in another format than it stores, so that nobody takes the one for the other.
        dtype = torch.bfloat16
        self.engine = Engine(
            self.gate, kv, config, logits_width=WIDTH, device=torch.device("cpu"), policy=policy, drawing=SERVICE, dtype=dtype
        )
        return self.engine
