"""Certificates for tests, as files: authorities that anybody can be given one by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import trustme

from triserve.rpc.tls.certificate import CertificateFiles
from triserve.rpc.tls.ends import ClientTls, OwnCertificate, ServerTls

_NUMBERS = count(1)


class Authority:
    """A CA.

    Args:
        folder: Where files are put; may be shared.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = trustme.CA()
        self.ca_file = self._path("ca")
        self.ca.cert_pem.write_to_path(str(self.ca_file))

    def files(self, *names: str, expired: bool = False, with_ca: bool = True) -> CertificateFiles:
        """A certificate of some names, in files of its own.

        Args:
            names: DNS names, or IP addresses.
            expired: Whether it was good until yesterday.
            with_ca: Whether the CA is among the files, as between stages.
        """
        files = CertificateFiles(cert=self._path("crt"), key=self._path("key"), ca=self._path("ca") if with_ca else None)
        self.put(files, *names, expired=expired)
        return files

    def put(self, files: CertificateFiles, *names: str, expired: bool = False) -> None:
        """Replaces what files hold by a new certificate of this authority."""
        now = datetime.now(UTC)
        times: dict[str, Any] = {"not_before": now - timedelta(days=2), "not_after": now - timedelta(days=1)} if expired else {}
        issued = self.ca.issue_cert(*names, **times)
        files.key.write_bytes(issued.private_key_pem.bytes())
        files.cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        if files.ca is not None:
            files.ca.write_bytes(self.ca.cert_pem.bytes())

    def _path(self, ending: str) -> Path:
        return self._folder / f"{next(_NUMBERS)}.{ending}"


def server_end(files: CertificateFiles, *clients: str) -> ServerTls:
    """A stage that lets these clients in."""
    return ServerTls(OwnCertificate(files), frozenset(clients))


def client_end(files: CertificateFiles, server_name: str) -> ClientTls:
    """A client that expects a server of that name."""
    return ClientTls(OwnCertificate(files), server_name)


def settings_of(files: CertificateFiles | None, prefix: str = "tls_") -> dict[str, Any]:
    """The fields of a service's settings."""
    if files is None:
        return {}
    given = {f"{prefix}cert_file": files.cert, f"{prefix}key_file": files.key}
    return given if files.ca is None else {**given, f"{prefix}ca_file": files.ca}
