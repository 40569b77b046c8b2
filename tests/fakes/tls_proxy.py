"""TLS in front of a server that speaks none, on a free port of this machine."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class TlsProxy:
    """Where it is.

    Attributes:
        port: Of it.
        connections: Handshakes that succeeded.
    """

    port: int = 0
    connections: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """Breaks every connection."""
        for writer in self.writers:
            writer.transport.abort()


@asynccontextmanager
async def tls_proxy(target_port: int, context: ssl.SSLContext, port: int = 0) -> AsyncIterator[TlsProxy]:
    """Forwards bytes until the context ends.

    Args:
        target_port: Of the server.
        context: What is shown, and asked for.
        port: Of the proxy; 0 picks a free one.
    """
    proxy = TlsProxy()
    tasks: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        proxy.connections += 1
        theirs, ours = await asyncio.open_connection("127.0.0.1", target_port)
        proxy.writers |= {writer, ours}
        for ends in ((reader, ours), (theirs, writer)):
            task = asyncio.create_task(pipe(*ends))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
