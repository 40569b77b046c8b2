"""The wire's side of a compute replica: hellos, streams, and the messages that describe it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc

from compute_svc.replica.dispatcher import Dispatcher
from compute_svc.replica.gateway_link import GatewayLink
from compute_svc.wire.step_output import Load
from triserve.rpc.errors import FIELD_KEY, REASON_KEY, Internal, InvalidRequest, Overloaded, ServiceError, Unavailable
from triserve.rpc.fingerprint import require_same
from triserve.v1 import common_pb2, compute_pb2, compute_pb2_grpc

logger = logging.getLogger(__name__)

_HELLO_TIMEOUT_S = 10.0
_MAX_NAME_LENGTH = 64
# Of one message, so that no gateway's message keeps the others waiting for long.
MAX_SUBMITS = 1024
MAX_CANCELS = 4096

Context = grpc.aio.ServicerContext[Any, Any]
Requests = AsyncIterator[compute_pb2.GenerateRequest]


class ReplicaInfo(NamedTuple):
    """What a replica is and holds, apart from its load. Names and units as in the contract."""

    fingerprint: common_pb2.Fingerprint
    max_model_len_tokens: int
    logits_width: int
    page_size_tokens: int
    num_pages: int
    max_waiting_requests: int
    dtype: str
    device: str
    policy: str
    started_at_ms: int
    hidden_size: int
    kv_format: str
    kv_bytes_per_page: int


class ComputeServicer(compute_pb2_grpc.ComputeServiceServicer):
    """Serves gateways as soon as there is an engine to serve them with."""

    def __init__(self) -> None:
        self._info: ReplicaInfo | None = None
        self._dispatcher: Dispatcher | None = None
        self.load = Load.nothing()

    def open(self, info: ReplicaInfo, dispatcher: Dispatcher) -> None:
        """From now on gateways are served."""
        self._info, self._dispatcher = info, dispatcher

    async def GetComputeInfo(self, request: compute_pb2.GetComputeInfoRequest, context: Context) -> compute_pb2.GetComputeInfoResponse:
        """What this replica serves and what it can hold."""
        info, _ = self.require_loaded()
        return self._describe(info)

    async def Generate(self, request_iterator: Requests, context: Context) -> AsyncIterator[compute_pb2.GenerateResponse]:
        """All requests of one gateway.

        Raises:
            Unavailable: The model is still loading.
            InvalidRequest: The stream does not keep to the contract; what is wrong with one request ends that request alone.
            FingerprintMismatch: The gateway serves another model.
            Overloaded: The gateway does not read.
        """
        info, dispatcher = self.require_loaded()
        first = await _first_message(request_iterator)
        name = first.hello.gateway_name[:_MAX_NAME_LENGTH]
        if first.hello.HasField("fingerprint"):
            require_same(info.fingerprint, first.hello.fingerprint, peer=f"gateway {name!r}")
        gateway = dispatcher.open_gateway(name)
        # The generator may hang in a send when the gateway goes; this tells of the end whatever it hangs in.
        context.add_done_callback(lambda _: dispatcher.close_gateway(gateway))  # type: ignore[arg-type]  # the stubs want a class here
        logger.info("gateway %r is connected", name)
        tasks = [
            asyncio.ensure_future(_read(request_iterator, first, gateway, dispatcher)),
            asyncio.ensure_future(cut_off_if_unread(gateway, dispatcher, context)),
        ]
        try:
            yield compute_pb2.GenerateResponse(hello=self._describe(info))
            while (response := await gateway.next_response()) is not None:
                yield response
        finally:
            for task in tasks:
                task.cancel()
            dispatcher.close_gateway(gateway)
            logger.info("gateway %r is gone", name)

    def require_loaded(self) -> tuple[ReplicaInfo, Dispatcher]:
        """What serves requests.

        Raises:
            Unavailable: The model is still loading.
        """
        if self._info is None or self._dispatcher is None:
            raise Unavailable("the model is being loaded")
        return self._info, self._dispatcher

    def _describe(self, info: ReplicaInfo) -> compute_pb2.GetComputeInfoResponse:
        return compute_pb2.GetComputeInfoResponse(**info._asdict(), load=load_message(self.load))


def load_message(load: Load) -> compute_pb2.ComputeLoad:
    """A load as it travels."""
    return compute_pb2.ComputeLoad(**load._asdict())


async def _first_message(requests: Requests) -> compute_pb2.GenerateRequest:
    try:
        async with asyncio.timeout(_HELLO_TIMEOUT_S):
            first = await anext(requests, None)
    except TimeoutError:
        first = None
    if first is None or not first.HasField("hello"):
        raise InvalidRequest("the first message has no hello", field="hello")
    return first


async def _read(requests: Requests, first: compute_pb2.GenerateRequest, gateway: GatewayLink, dispatcher: Dispatcher) -> None:
    """Takes a gateway's messages until there are no more; then everything of it is over."""
    error: ServiceError | None = None
    try:
        _take(first, gateway, dispatcher)
        async for message in requests:
            if message.HasField("hello"):
                raise InvalidRequest("hello is in a message that is not the first", field="hello")
            _take(message, gateway, dispatcher)
    except ServiceError as fault:
        error = fault
    except grpc.aio.AbortError:
        # The call was cut off meanwhile, with a status of its own.
        return
    except Exception:
        # A fault of ours ends the gateway's stream with a status; nobody waits for the task to tell of it.
        logger.exception("the stream of gateway %r failed", gateway.name)
        error = Internal("internal error")
    finally:
        gateway.close(error)
        dispatcher.close_gateway(gateway)


def _take(message: compute_pb2.GenerateRequest, gateway: GatewayLink, dispatcher: Dispatcher) -> None:
    for field, count, most in (("submit", len(message.submit), MAX_SUBMITS), ("cancel", len(message.cancel), MAX_CANCELS)):
        if count > most:
            raise InvalidRequest(f"{field} has {count} entries, the limit is {most}", field=field)
    for submission in message.submit:
        dispatcher.submit(gateway, submission)
    for request in message.cancel:
        dispatcher.cancel(gateway, request)


async def cut_off_if_unread(gateway: GatewayLink, dispatcher: Dispatcher, context: Context) -> None:
    """Ends the requests and the call of a gateway that does not read: the generator hangs in a send and cannot."""
    await gateway.cut_off.wait()
    logger.warning("gateway %r is cut off: it does not read", gateway.name)
    dispatcher.close_gateway(gateway)
    # `abort` returns by raising, also when the call has ended meanwhile; the end of the call is heard by its callback.
    with contextlib.suppress(grpc.aio.BaseError, asyncio.InvalidStateError):
        await context.abort(Overloaded.code, "the gateway does not read", ((REASON_KEY, Overloaded.reason), (FIELD_KEY, "")))
