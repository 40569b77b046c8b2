"""The two ends of a connection between stages, and what gRPC needs to make one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from triserve.rpc.reread import Reread
from triserve.rpc.tls.certificate import BadCertificate, CertificateFiles, Pem


class OwnCertificate:
    """What a process shows to its peers, and checks theirs against: the files as they are now.

    Args:
        files: Where they are.

    Raises:
        BadCertificate: they cannot be used.
    """

    def __init__(self, files: CertificateFiles) -> None:
        self.files = files
        self._pem = Reread(files.all, files.read, refused=BadCertificate)

    def current(self) -> Pem:
        """What the files hold; any thread may ask."""
        return self._pem.current()


class ServerTls:
    """The end that listens. Connections that there are keep what they began with; new ones get what the files hold then.

    Args:
        own: What is shown. Where it has a CA, clients must show a certificate of it.
        clients: DNS names, of which the certificate of a client must have one; None = any client is let in.
    """

    def __init__(self, own: OwnCertificate, clients: frozenset[str] | None) -> None:
        assert clients is None or own.files.ca is not None, "names of clients are checked where clients show certificates"
        self.clients = clients
        self._own = own

    def credentials(self, on_handshake: Callable[[], None]) -> grpc.ServerCredentials:
        """For a port.

        Args:
            on_handshake: Called for every connection before it is known who is there, in any thread.
        """
        shown = self._own.current()

        # gRPC has it called in a thread of its own; None = as before.
        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            on_handshake()
            now = self._own.current()
            if now is shown:
                return None
            shown = now
            return _configuration(now)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(shown),
            fetch,  # type: ignore[arg-type]  # the stubs know no None
            require_client_authentication=self._own.files.ca is not None,
        )


class ClientTls:
    """The end that connects.

    Args:
        own: What is shown, and what the server's certificate is checked against.
        server_name: DNS name that this must have, whatever address was dialled.
    """

    def __init__(self, own: OwnCertificate, server_name: str) -> None:
        assert own.files.ca is not None, "a server's certificate is checked against the stages' CA and nothing else"
        self._own = own
        self.server_name = server_name

    def credentials(self) -> grpc.ChannelCredentials:
        """For a connection made now."""
        pem = self._own.current()
        return grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """Of the channel."""
        return (("grpc.ssl_target_name_override", self.server_name),)


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], root_certificates=pem.ca or None)
