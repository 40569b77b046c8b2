"""TLS to Redis: what its certificate is checked against, and what this process shows, from files that may be replaced while it runs."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from redis.asyncio.connection import Connection

_PLAIN, _TLS = ("redis", "unix"), "rediss"
# Others could switch the checks off.
_PARAMETERS = ("db", "protocol")
_DATABASE = re.compile(r"/?|/\d{1,5}")
_ESCAPED = "a password's / ? # @ and % are written %2F %3F %23 %40 and %25"


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """Where they are.

    Attributes:
        ca: What the server's certificate is checked against, and nothing else is; None = what the system trusts.
        cert: Of this process, for a Redis that asks for it; with `key`, or neither.
        key: Of `cert`.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @property
    def given(self) -> tuple[Path, ...]:
        """Those that are set."""
        return tuple(file for file in (self.ca, self.cert, self.key) if file is not None)

    def context(self) -> ssl.SSLContext:
        """What a connection is made with. The server's name is checked, and no TLS below 1.2 is spoken.

        Raises:
            ValueError: a file cannot be read, or the key is not the certificate's; names the files.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            else:
                context.load_default_certs()
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except OSError as error:
            raise ValueError(f"{' or '.join(map(str, self.given))} cannot be used for TLS: {error.strerror or error}") from None
        return context


class TlsContexts:
    """Makes the context anew when a file was replaced.

    Args:
        files: Where they are.

    Raises:
        ValueError: as `TlsFiles.context`.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamp = self._stamped()
        self._context = files.context()

    def current(self) -> ssl.SSLContext:
        """The context of the files as they are, or the one before while they do not fit together: they are replaced one after the other."""
        stamp = self._stamped()
        if stamp != self._stamp:
            try:
                self._context = self._files.context()
            except ValueError:
                return self._context
            self._stamp = stamp
        return self._context

    def _stamped(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(file) for file in self._files.given]


class TlsConnection(Connection):
    """A connection over TLS.

    Args:
        contexts: Asked at each attempt.
        options: As redis-py's.
    """

    def __init__(self, *, contexts: TlsContexts, **options: Any) -> None:
        super().__init__(**options)
        self._contexts = contexts

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), "ssl": self._contexts.current()}


def check_redis_url(url: str, files: TlsFiles) -> None:
    """Checks that a URL and files go together.

    Raises:
        ValueError: they do not, or the URL asks for what may not be asked; says what, and nothing of the URL, which may hold a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in (*_PLAIN, _TLS):
        raise ValueError("the URL of Redis must begin with redis://, rediss:// or unix://")
    if not parse_qs(parts.query, keep_blank_values=True).keys() <= set(_PARAMETERS):
        raise ValueError(f"the URL of Redis may have the parameters {' and '.join(_PARAMETERS)}, and no others; {_ESCAPED}")
    if parts.scheme != "unix" and (parts.fragment or not _DATABASE.fullmatch(parts.path) or not _has_host(parts)):
        raise ValueError(f"the URL of Redis must be of the form redis://USER:PASSWORD@HOST:PORT/DB; {_ESCAPED}")
    if files.given and parts.scheme != _TLS:
        raise ValueError("files for TLS are given, and the URL of Redis does not begin with rediss://")
    if (files.cert is None) != (files.key is None):
        raise ValueError("a certificate for Redis needs its key, and a key its certificate")
    if parts.scheme == _TLS:
        files.context()


def _has_host(parts: SplitResult) -> bool:
    """Whether host and port can be read; an @ in a password makes its end the host."""
    try:
        return bool(parts.hostname) and parts.netloc.count("@") < 2 and parts.port != 0
    except ValueError:
        return False


def is_tls(url: str) -> bool:
    """Whether a URL asks for TLS."""
    return urlsplit(url).scheme == _TLS


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Changes when a file is replaced, by whatever means; None = it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
