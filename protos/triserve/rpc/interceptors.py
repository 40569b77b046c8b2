"""Turns what a handler raises into one RPC status, for every kind of RPC."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from triserve.rpc.errors import FIELD_KEY, REASON_KEY, Internal, ServiceError

logger = logging.getLogger(__name__)

# Quoted: these classes take type arguments in their stubs alone.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends an RPC with the status of the `ServiceError` its handler raised.

    Anything else a handler raises is logged with its stack and ends the RPC with INTERNAL and a message that says nothing.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wraps the handler of a call."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith("/grpc."):
            return handler
        for kind, wrap in (
            ("unary_unary", _wrap_single),
            ("unary_stream", _wrap_stream),
            ("stream_unary", _wrap_single),
            ("stream_stream", _wrap_stream),
        ):
            behaviour = getattr(handler, kind)
            if behaviour is not None:
                make = getattr(grpc, f"{kind}_rpc_method_handler")
                wrapped: Handler = make(
                    wrap(behaviour, handler_call_details.method),
                    request_deserializer=handler.request_deserializer,
                    response_serializer=handler.response_serializer,
                )
                return wrapped
        raise AssertionError("a gRPC handler has one of four kinds")


def _wrap_single(behaviour: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(behaviour)
    async def call(request: Any, context: Context) -> Any:
        try:
            return await behaviour(request, context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:  # noqa: BLE001 - the one place where every failure becomes a status
            await _abort(context, error, method)

    return call


def _wrap_stream(behaviour: Callable[..., AsyncIterator[Any]], method: str) -> Callable[..., AsyncIterator[Any]]:
    @functools.wraps(behaviour)
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(request, context):
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
