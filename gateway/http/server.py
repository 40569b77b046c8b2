"""Where HTTP is served: the socket, with TLS or without, and the connections that come to it."""

from __future__ import annotations

import asyncio
import socket
import ssl

from aiohttp import web

from gateway.http.connection import Connection, MalformedRequests
from triserve.rpc.reread import Reread
from triserve.rpc.server import HANDSHAKE_TIMEOUT_S, warn_of_plain_text
from triserve.rpc.tls.certificate import BadCertificate, CertificateFiles
from triserve.rpc.tls.handshakes import Handshakes

_BACKLOG = 1024
_UNSENT_BYTES = 16 * 1024


class CannotListen(OSError):
    """An address of the gateway cannot be listened on; the message names it."""

    def __str__(self) -> str:
        return str(self.strerror)


class HttpServer:
    """A listening socket; it answers once it is started.

    Args:
        listen: "host:port"; port 0 picks a free one.
        files: Certificate that clients are shown, and its key; None = plain text.
        idle_timeout_s: See `Connection`.
        handshake_timeout_s: For a connection to get past TLS.
        reuse_port: Whether other processes of the same user may listen there, too.

    Raises:
        CannotListen: somebody else listens there, or the address is none of this machine.
        BadCertificate: a file cannot be used.
    """

    def __init__(
        self,
        listen: str,
        files: CertificateFiles | None,
        *,
        idle_timeout_s: float,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        reuse_port: bool = False,
    ) -> None:
        self._listen = listen
        self._idle_timeout_s = idle_timeout_s
        self._handshake_timeout_s = handshake_timeout_s
        self._certificate = ShownCertificate(files) if files is not None else None
        self._socket = listen_on(listen, reuse_port=reuse_port)
        self._handshakes = Handshakes(handshake_timeout_s, lambda: self.port)
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._socket.getsockname()[1])

    @property
    def refused_handshakes(self) -> int:
        """Connections that did not get past TLS."""
        return self._handshakes.refused

    async def start(self, application: web.Server) -> None:
        """Answers from now on."""
        malformed = MalformedRequests()

        def connect() -> Connection:
            if self._certificate is not None:
                # Before the handshake begins.
                self._certificate.refresh()
                self._handshakes.begin()
            return Connection(application, malformed=malformed, idle_timeout_s=self._idle_timeout_s, on_connected=self._handshakes.complete)

        is_tls = self._certificate is not None
        self._server = await asyncio.get_running_loop().create_server(
            connect,
            sock=self._socket,
            backlog=_BACKLOG,
            ssl=self._certificate.context if self._certificate is not None else None,
            ssl_handshake_timeout=self._handshake_timeout_s if is_tls else None,
        )
        if is_tls:
            self._handshakes.start()
        else:
            warn_of_plain_text(self._listen)

    async def close(self) -> None:
        """Takes no new connection. What is under way goes on."""
        await self._handshakes.close()
        if self._server is not None:
            self._server.close()


class ShownCertificate:
    """What clients are shown: of each connection what the files hold as it begins.

    Args:
        files: Where certificate and key are.

    Raises:
        BadCertificate: they cannot be used.
    """

    def __init__(self, files: CertificateFiles) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._files = files
        self._loaded = Reread(files.all, self._load, refused=BadCertificate)

    def refresh(self) -> None:
        """Looks whether the files were replaced."""
        self._loaded.current()

    def _load(self) -> None:
        # First elsewhere: a context that is given a certificate and not its key has lost what it had.
        self._files.read()
        self._files.load_into(self.context)


def listen_on(address: str, *, reuse_port: bool = False, is_held: bool = False) -> socket.socket:
    """A socket at an address.

    Args:
        address: "host:port"; port 0 picks a free one.
        reuse_port: Whether other processes of the same user may listen there, too.
        is_held: Whether the address is only kept from others: nobody can connect.

    Raises:
        CannotListen: somebody else listens there, or the address is none of this machine.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, int(port)))
        if not is_held:
            listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(error.errno, f"cannot listen on {address}: {error.strerror}") from error
    listener.setblocking(False)
    _limit_unsent(listener)
    return listener


def _limit_unsent(listener: socket.socket) -> None:
    """Lets the kernel hold only so many unsent bytes of each connection.

    Otherwise megabytes of an answer wait there for a client that does not read, where they can be neither merged nor taken back.
    """
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None:
        listener.setsockopt(socket.IPPROTO_TCP, option, _UNSENT_BYTES)
