"""`triserve fetch SOURCE FOLDER --manifest FILE`: puts a model's files into a folder, each checked against its sha256.

Files that are there and right are left alone, so it can be called at every start of a pod. Code and pickles are never fetched.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import ipaddress
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from gateway.cli.model_files.download import DownloadFailed, Place, download, sha256_of

_HUB = "https://huggingface.co"
_HUB_SOURCE = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@(?P<revision>[\w./-]+)")
_LINE = re.compile(r"(?P<sha256>[0-9a-fA-F]{64}) [ *](?P<name>\S.*)")
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_SMALL, _WEIGHTS = (".json", ".jinja"), (".safetensors", ".gguf")
_NEEDED = ("config.json", "tokenizer.json")
_MAX_MANIFEST_BYTES = 1 << 20
_PROGRESS_S = 5.0


class FetchFailed(Exception):
    """A model cannot be fetched; the message says why."""


class Manifest(NamedTuple):
    """What `sha256sum` printed of a model's folder."""

    # sha256 by name, of files that are fetched.
    files: Mapping[str, str]
    # Names of files that never are.
    left_out: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "source",
        type=source,
        metavar="SOURCE",
        help="org/name@revision of the Hugging Face hub, or an http(s):// address to which file names are added",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to; made if it is not there. One for each revision of a model")
    parser.add_argument(
        "--manifest",
        type=Path,
        required=True,
        metavar="FILE",
        help="which files, with their sha256, as `sha256sum *` prints them in a folder that has the model",
    )
    parser.add_argument("--only-small", action="store_true", help="without weights: all that tokenizers and samplers read")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="file with a bearer token, which is sent to the source's host alone"
    )
    parser.add_argument(
        "--hub", type=address, default=_HUB, metavar="URL", help="address of the hub, or of a mirror (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Fetches; returns the exit status."""
    try:
        manifest = read_manifest(arguments.manifest)
        token = _read_token(arguments.token_file, arguments.source, arguments.hub)
        fetch(prefix_of(arguments.source, arguments.hub), arguments.folder, manifest, only_small=arguments.only_small, token=token)
    except (FetchFailed, DownloadFailed, OSError) as error:
        sys.stderr.write(f"triserve fetch: {error}\n")
        return 1
    return 0


def source(text: str) -> str:
    """A type of option: where a model is."""
    return text if _HUB_SOURCE.fullmatch(text) else address(text)


def address(text: str) -> str:
    """A type of option: an http(s):// address without user, query or fragment; ends in a slash."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is neither org/name@revision nor an http:// or https:// address")
    if parts.username is not None or parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError(f"{text!r} has a user, a query, a fragment or a space, to which no file's name can be added")
    return f"{text.rstrip('/')}/"


def prefix_of(text: str, hub: str) -> str:
    """The address that names of files are added to.

    Args:
        text: what `source` returned.
        hub: address of the hub.
    """
    match = _HUB_SOURCE.fullmatch(text)
    return text if match is None else f"{hub.rstrip('/')}/{match['id']}/resolve/{quote(match['revision'], safe='')}/"


def read_manifest(path: Path) -> Manifest:
    """Reads lines as `sha256sum` prints them; empty ones and those that begin with # say nothing.

    Raises:
        FetchFailed: it is no such file, lists a file twice, or lacks one that every model has.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(_MAX_MANIFEST_BYTES + 1)
    if len(content) > _MAX_MANIFEST_BYTES:
        raise FetchFailed(f"{path} has more than {_MAX_MANIFEST_BYTES} bytes, a manifest has a line for each file")
    files: dict[str, str] = {}
    left_out = []
    for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise FetchFailed(f"{path}, line {number} is not of the form `sha256  name`")
        name = match["name"]
        if not name.endswith((*_SMALL, *_WEIGHTS)):
            left_out.append(name)
        elif not _NAME.fullmatch(name):
            raise FetchFailed(f"{path}, line {number}: {name!r} is no plain file name")
        elif name in files:
            raise FetchFailed(f"{path}, line {number}: {name} is there twice")
        else:
            files[name] = match["sha256"].lower()
    if missing := [name for name in _NEEDED if name not in files]:
        raise FetchFailed(f"{path} does not list {' and '.join(missing)}, which every model has")
    return Manifest(files, tuple(left_out))


def fetch(prefix: str, folder: Path, manifest: Manifest, *, only_small: bool = False, token: str = "") -> None:
    """Brings a folder's files to what a manifest says. One process at a time does so in a folder; others wait for it.

    Args:
        prefix: address, ending in a slash.
        folder: made if it is not there.
        manifest: what there is.
        only_small: leave weights out.
        token: for the prefix's host; "" = none.

    Raises:
        FetchFailed: there are no weights, or the folder has files of another model.
        DownloadFailed: a file cannot be had.
        OSError: the folder cannot be written.
    """
    wanted = {name: sha256 for name, sha256 in manifest.files.items() if not (only_small and name.endswith(_WEIGHTS))}
    if not only_small and not any(name.endswith(_WEIGHTS) for name in wanted):
        raise FetchFailed("the manifest lists no *.safetensors and no *.gguf; without weights there is --only-small")
    if manifest.left_out:
        _say(f"never fetched: {', '.join(manifest.left_out)}")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        _require_no_others(folder, manifest)
        for name, sha256 in wanted.items():
            path = folder / name
            if path.is_file() and sha256_of(path) == sha256:
                _say(f"{name} is there")
            else:
                download(Place(f"{prefix}{name}", token), path, sha256, _Shown(name))
    _say(f"{folder} has {len(wanted)} files, as the manifest says")


def _require_no_others(folder: Path, manifest: Manifest) -> None:
    """Other weights beside ours would be loaded with them."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if others := [name for name in names if name.endswith((*_SMALL, *_WEIGHTS)) and name not in manifest.files]:
        raise FetchFailed(f"{folder} has {others[0]}, which the manifest does not list: give every revision of a model a folder of its own")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system releases when the process ends, however it does."""
    with (folder / ".fetch.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waits for another process, which fetches into {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_token(path: Path | None, where: str, hub: str) -> str:
    if path is None:
        return ""
    parts = urlsplit(prefix_of(where, hub))
    if parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
        raise FetchFailed("--token-file needs an https:// address: anybody on the way could read the token")
    token = path.read_text().strip()
    if not token or not (token.isascii() and token.isprintable()) or " " in token:
        raise FetchFailed(f"{path} has no token that a header can carry")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Shown:
    """Says how far a file is, not more often than every few seconds, and at its end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next_at = time.monotonic() + _PROGRESS_S

    def __call__(self, received: int, length: int | None) -> None:
        now = time.monotonic()
        if received == length or now >= self._next_at:
            self._next_at = now + _PROGRESS_S
            of = "" if length is None else f" of {_megabytes(length)}"
            _say(f"{self._name}: {_megabytes(received)}{of} MB")


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
