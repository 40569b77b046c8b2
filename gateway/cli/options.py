"""Values of options, checked as they are read, so that an error names the option as it was typed. Pure but for a look at files."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from triserve.rpc.tls.certificate import BadCertificate, require_certificates

_Refused = argparse.ArgumentTypeError


class OptionParser(argparse.ArgumentParser):
    """A parser that ends with one line, which names the command and the option, and status 1."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and leaves."""
        self.exit(1, f"{self.prog}: {message}\n(triserve COMMAND --help lists the options of a command)\n")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A type of option: a whole number in a range."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise _Refused(f"{text!r} is no whole number") from None
        _require_range(text, value, least, most)
        return value

    return read


def real(least: float = -math.inf, most: float | None = None, *, above: float | None = None) -> Callable[[str], float]:
    """A type of option: a finite number in a range.

    Args:
        least: allowed itself.
        most: allowed itself; None = any.
        above: not allowed itself; None = any.
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise _Refused(f"{text!r} is no finite number")
        if above is not None and value <= above:
            raise _Refused(f"{text} is not above {above:g}")
        _require_range(text, value, least, most)
        return value

    return read


def _require_range(text: str, value: float, least: float, most: float | None) -> None:
    if value < least:
        raise _Refused(f"{text} is below {least:g}")
    if most is not None and value > most:
        raise _Refused(f"{text} is above {most:g}")


def server_url(text: str) -> str:
    """A type of option: the address of a server, with or without http:// before it and /v1 behind it, as `http(s)://host:port/path`."""
    given = text.strip()
    if given.startswith(":"):
        given = f"127.0.0.1{given}"
    url = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _Refused(f"{text!r} is no address of a server: its port is no number up to 65535") from None
    if parts.scheme not in ("http", "https"):
        raise _Refused(f"{text!r} is no http:// or https:// address")
    if not parts.hostname or parts.username is not None or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise _Refused(f"{text!r} is no address of a server, such as http://127.0.0.1:8000")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path}"


def host_port(text: str) -> str:
    """A type of option: the address of a gRPC server."""
    host, _, port = text.rpartition(":")
    if not host or "/" in text or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise _Refused(f"{text!r} is not of the form host:port")
    return text


def api_key(text: str) -> str:
    """A type of option: a key that a header can carry; empty = none."""
    if not (text.isascii() and text.isprintable()) or text != text.strip():
        raise _Refused("the key has a space at an end, or a character that no header can carry")
    return text


def readable_file(text: str) -> Path:
    """A type of option: a file that can be read."""
    path = Path(text)
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise _Refused(f"{text} cannot be read: {os.strerror(error.errno or 0)}") from None


def schema_file(text: str) -> dict[str, Any]:
    """A type of option: a file with a JSON schema, an object; gives the schema."""
    try:
        schema = json.loads(readable_file(text).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise _Refused(f"{text} is no text in UTF-8") from None
    except RecursionError:
        raise _Refused(f"{text} is nested too deep") from None
    except ValueError as error:
        raise _Refused(f"{text} is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise _Refused(f"{text} is no JSON schema: it holds no object")
    return schema


def certificates_file(text: str) -> Path:
    """A type of option: a file of certificates in PEM."""
    path = readable_file(text)
    try:
        require_certificates(path)
    except BadCertificate as error:
        raise _Refused(str(error)) from None
    return path


def writable_file(text: str) -> Path:
    """A type of option: a file that can be written, or made; what is in it stays as yet."""
    path = Path(text)
    folder = path.parent
    if path.is_dir() or not folder.is_dir():
        raise _Refused(f"{text} cannot be written: {'it is a folder' if path.is_dir() else f'there is no folder {folder}'}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise _Refused(f"{text} cannot be written: {os.strerror(13)}")
    return path
