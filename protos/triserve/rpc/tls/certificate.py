"""A certificate, its key, and what peers' certificates are checked against, as files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class BadCertificate(Exception):
    """A file cannot be used for TLS; names it and says why."""


class Pem(NamedTuple):
    """What the files hold. `ca` is empty where there is none."""

    cert: bytes
    key: bytes
    ca: bytes


@dataclass(frozen=True, kw_only=True)
class CertificateFiles:
    """Where they are.

    Attributes:
        cert: The own certificate, and then those that lead from it to the CA.
        key: Of the first; without a passphrase.
        ca: What certificates of peers are checked against; None = peers show none.
    """

    cert: Path
    key: Path
    ca: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """Those that there are."""
        return (self.cert, self.key) if self.ca is None else (self.cert, self.key, self.ca)

    def read(self) -> Pem:
        """Reads them, and checks that they can be used.

        Raises:
            BadCertificate: they cannot.
        """
        pem = Pem(_bytes_of(self.cert), _bytes_of(self.key), b"" if self.ca is None else _bytes_of(self.ca))
        for file in (self.cert, self.ca):
            if file is not None:
                require_certificates(file)
        self.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        return pem

    def load_into(self, context: ssl.SSLContext) -> None:
        """Has a context show the certificate.

        Raises:
            BadCertificate: it cannot be used with the key. The context may then have no usable certificate.
        """
        try:
            context.load_cert_chain(self.cert, self.key, password=_refuse_passphrase)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise BadCertificate(f"{self.key} is not the key of the certificate in {self.cert}") from None
            raise BadCertificate(f"{self.key} holds no private key in PEM: {error.reason or error}") from None
        except _HasPassphrase:
            raise BadCertificate(f"{self.key} has a passphrase, and nobody is there to type it") from None
        except OSError as error:
            raise BadCertificate(f"{self.cert} or {self.key} cannot be read: {error.strerror}") from None


def require_certificates(file: Path) -> None:
    """Checks that a file holds certificates.

    Raises:
        BadCertificate: it does not.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError as error:
        raise BadCertificate(f"{file} holds no certificate in PEM: {error.reason or error}") from None
    except OSError as error:
        raise BadCertificate(f"{file} cannot be read: {error.strerror}") from None


class _HasPassphrase(Exception):
    """A key is encrypted."""


def _refuse_passphrase() -> str:
    # Without this OpenSSL would ask on the terminal, and wait.
    raise _HasPassphrase


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadCertificate(f"{file} cannot be read: {error.strerror}") from None
