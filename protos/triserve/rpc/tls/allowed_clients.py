"""Who may call a stage: clients whose certificate has a name that is let in."""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc

from triserve.rpc.errors import PeerRefused
from triserve.rpc.interceptors import Behaviour, Context, Handler, wrapped_handler

logger = logging.getLogger(__name__)

# A peer that is refused comes again: of refusals one line is logged in so many seconds, with the number of all.
_LOG_EVERY_S = 10.0


class AllowedClients(grpc.aio.ServerInterceptor):
    """Ends every call of anybody else with PERMISSION_DENIED, those of health and reflection too.

    The names are the DNS names among the certificate's subject alternative names. No other field counts.

    Args:
        names: Of which the certificate must have one; None = everybody is let in.
        on_connection: Called when somebody calls who had no call under way: as a rule, a new connection.
        clock: Seconds, monotonic.

    Attributes:
        refused: Calls that were ended.
    """

    def __init__(
        self, names: frozenset[str] | None, *, on_connection: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.refused = 0
        self._names = names
        self._on_connection = on_connection
        self._clock = clock
        self._calls: Counter[str] = Counter()
        self._unlogged = 0
        self._next_line_at = 0.0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wraps the handler of a call."""
        handler = await continuation(handler_call_details)
        return None if handler is None else wrapped_handler(handler, self._wrap, deserializer=handler.request_deserializer)

    def _wrap(self, behaviour: Behaviour) -> Behaviour:
        if inspect.isasyncgenfunction(behaviour):

            @functools.wraps(behaviour)
            async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
                self._let_in(context)
                async for response in behaviour(request, context):
                    yield response

            return stream

        @functools.wraps(behaviour)
        async def call(request: Any, context: Context) -> Any:
            self._let_in(context)
            return await behaviour(request, context)

        return call

    def _let_in(self, context: Context) -> None:
        """Notes that somebody is there.

        Raises:
            PeerRefused: it is nobody who may call.
        """
        peer = context.peer()
        if not self._calls[peer]:
            self._on_connection()
        self._calls[peer] += 1
        context.add_done_callback(lambda _: self._leave(peer))  # type: ignore[arg-type]  # the stubs want a class here
        if self._names is None:
            return
        found = frozenset(name.decode("utf-8", "replace").lower() for name in context.auth_context().get("peer_dns", ()))
        if not found & self._names:
            self._refuse(peer, found)

    def _leave(self, peer: str) -> None:
        self._calls[peer] -= 1
        if not self._calls[peer]:
            del self._calls[peer]

    def _refuse(self, peer: str, found: Iterable[str]) -> None:
        assert self._names is not None, "nobody is refused where everybody is let in"
        self.refused += 1
        self._unlogged += 1
        shown, allowed = _listed(found), _listed(self._names)
        if self._clock() >= self._next_line_at:
            logger.warning(
                "%d calls were refused, the latest of %s: its certificate is of %s, let in is %s", self._unlogged, peer, shown, allowed
            )
            self._unlogged = 0
            self._next_line_at = self._clock() + _LOG_EVERY_S
        raise PeerRefused(f"the client's certificate is of {shown}, let in is {allowed}")


def _listed(names: Iterable[str]) -> str:
    """Names as a line of the log may have them."""
    return ", ".join(ascii(name)[1:-1][:80] for name in sorted(names)[:8]) or "no DNS name"
