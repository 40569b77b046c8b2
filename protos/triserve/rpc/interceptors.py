"""Turns what a handler raises, and what it could not read, into one RPC status, for every kind of RPC."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from triserve.rpc.errors import FIELD_KEY, REASON_KEY, Internal, InvalidRequest, ServiceError

logger = logging.getLogger(__name__)

# Quoted: these classes take type arguments in their stubs alone.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behaviour: TypeAlias = Callable[..., Any]
Deserializer: TypeAlias = Callable[[bytes], Any]


# Stands for a message whose bytes are none.
_GARBAGE = object()


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends an RPC with the status of the `ServiceError` its handler raised, and with INVALID_ARGUMENT where its request is no message.

    Anything else a handler raises is logged with its stack and ends the RPC with INTERNAL and a message that says nothing.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wraps the handler of a call."""

        def wrap(behaviour: Behaviour) -> Behaviour:
            # A handler of a stream may write to its context instead of yielding, as health's does.
            wrap_one = _wrap_stream if inspect.isasyncgenfunction(behaviour) else _wrap_single
            return wrap_one(behaviour, handler_call_details.method)

        handler = await continuation(handler_call_details)
        return None if handler is None else wrapped_handler(handler, wrap, deserializer=_lenient(handler.request_deserializer))


def wrapped_handler(handler: Handler, wrap: Callable[[Behaviour], Behaviour], *, deserializer: Deserializer | None) -> Handler:
    """A handler of the same kind that behaves otherwise.

    Args:
        handler: Of a call.
        wrap: Makes the new behaviour of the old one.
        deserializer: Reads requests; None = nothing does.
    """
    for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
        behaviour = getattr(handler, kind)
        if behaviour is not None:
            wrapped: Handler = getattr(grpc, f"{kind}_rpc_method_handler")(
                wrap(behaviour), request_deserializer=deserializer, response_serializer=handler.response_serializer
            )
            return wrapped
    raise AssertionError("a gRPC handler has one of four kinds")


class _WellFormed:
    """Messages of a stream, up to the first that is none.

    Args:
        messages: as gRPC reads them.
    """

    def __init__(self, messages: AsyncIterator[Any]) -> None:
        self._messages = messages

    def __aiter__(self) -> _WellFormed:
        return self

    async def __anext__(self) -> Any:
        # gRPC's reader must not be begun before somebody reads: it complains when it is left.
        return _require_message(await anext(aiter(self._messages)))


def _lenient(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Reads what can be read; of all else gRPC would tell the caller our classes' names."""
    if deserialize is None:
        return None

    def read(content: bytes) -> Any:
        try:
            return deserialize(content)
        except DecodeError:
            return _GARBAGE

    return read


def _well_formed(request: Any) -> Any:
    return _WellFormed(request) if hasattr(request, "__aiter__") else _require_message(request)


def _require_message(message: Any) -> Any:
    if message is _GARBAGE:
        raise InvalidRequest("the request's bytes are no message of this method")
    return message


def _wrap_single(behaviour: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(behaviour)
    async def call(request: Any, context: Context) -> Any:
        try:
            return await behaviour(_well_formed(request), context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:  # noqa: BLE001 - the one place where every failure becomes a status
            await _abort(context, error, method)

    return call


def _wrap_stream(behaviour: Callable[..., AsyncIterator[Any]], method: str) -> Callable[..., AsyncIterator[Any]]:
    @functools.wraps(behaviour)
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(_well_formed(request), context):
                yield response
        except (asyncio.CancelledError, GeneratorExit, grpc.aio.AbortError):
            raise
        except Exception as error:  # noqa: BLE001 - the one place where every failure becomes a status
            await _abort(context, error, method)

    return call


async def _abort(context: Context, error: Exception, method: str) -> None:
    if not isinstance(error, ServiceError):
        logger.error("%s failed", method, exc_info=error)
        error = Internal("internal error")
    await context.abort(error.code, error.message, ((REASON_KEY, error.reason), (FIELD_KEY, error.field)))
