"""Downloads one file over HTTP: goes on where an earlier try ended, and gives it its name once its sha256 is right."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60.0
_PARTIAL = 206
_RANGE_NOT_SATISFIABLE = 416

# Bytes so far, and of the whole file; None = the server does not say.
Progress = Callable[[int, int | None], None]


class DownloadFailed(Exception):
    """A file cannot be had; the message names its address and says why."""


class Place(NamedTuple):
    """Where a file comes from."""

    url: str
    # Sent to the host of the URL alone, wherever that redirects; "" = none.
    token: str = ""


def download(place: Place, path: Path, sha256: str, progress: Progress) -> None:
    """Downloads a file. What came of it stays beside it under another name when the connection ends, and is the beginning of the next try.

    Args:
        place: where from.
        path: where to; replaced in one step.
        sha256: what the file must have, 64 hexadecimal digits.
        progress: told after every piece.

    Raises:
        DownloadFailed: the server refuses, the connection ends, or the file is another one.
        OSError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    digest, have = _begun(part)
    try:
        digest, length = _receive(place, part, digest, have, progress)
    except urllib.error.HTTPError as error:
        if error.code == _RANGE_NOT_SATISFIABLE and have:
            part.unlink()
            return download(place, path, sha256, progress)
        hint = "; it may need a token" if error.code in (401, 403) and not place.token else ""
        raise DownloadFailed(f"{place.url}: {error.code} {error.reason}{hint}") from None
    except urllib.error.URLError as error:
        raise DownloadFailed(f"{place.url}: {error.reason}") from None
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise DownloadFailed(f"{place.url}: the connection ended: {error or type(error).__name__}") from None
    size = part.stat().st_size
    if length is not None and size < length:
        raise DownloadFailed(f"{place.url}: the connection ended after {size} of {length} bytes")
    if digest.hexdigest() != sha256:
        part.unlink()
        raise DownloadFailed(f"{place.url} has sha256 {digest.hexdigest()}, it should be {sha256}")
    part.replace(path)


def sha256_of(path: Path) -> str:
    """A file's sha256, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _begun(part: Path) -> tuple[hashlib._Hash, int]:
    """The digest and the length of what an earlier try left."""
    if not part.is_file():
        return hashlib.sha256(), 0
    with part.open("rb") as file:
        return hashlib.file_digest(file, "sha256"), part.stat().st_size


def _receive(place: Place, part: Path, digest: hashlib._Hash, have: int, progress: Progress) -> tuple[hashlib._Hash, int | None]:
    """Appends what the server sends, or begins anew where it sends all of it; returns the digest and the length of the whole file."""
    request = urllib.request.Request(place.url, headers={"Range": f"bytes={have}-"} if have else {})
    if place.token:
        request.add_unredirected_header("Authorization", f"Bearer {place.token}")
    with urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT_S) as response:
        goes_on = response.status == _PARTIAL and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not goes_on:
            digest, have = hashlib.sha256(), 0
        announced = response.headers.get("Content-Length", "")
        length = have + int(announced) if announced.isdecimal() else None
        with part.open("ab" if goes_on else "wb") as file:
            _copy(response, file, digest, lambda received: progress(have + received, length))
    return digest, length


def _copy(response: http.client.HTTPResponse, file: BinaryIO, digest: hashlib._Hash, progress: Callable[[int], None]) -> None:
    received = 0
    while piece := response.read(_CHUNK_BYTES):
        file.write(piece)
        digest.update(piece)
        received += len(piece)
        progress(received)
    # A file that has its name is all there, after a power failure too.
    file.flush()
    os.fsync(file.fileno())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects over HTTP(S), never from https to http, and keeps a token within the host it is for."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: object,
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to send instead."""
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
            raise urllib.error.URLError(f"it redirects to {new.scheme}://{new.netloc}")
        redirected = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        token = req.unredirected_hdrs.get("Authorization")
        if redirected is not None and token is not None and (old.scheme, old.netloc) == (new.scheme, new.netloc):
            redirected.add_unredirected_header("Authorization", token)
        return redirected
