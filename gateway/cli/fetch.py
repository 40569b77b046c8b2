"""`triserve fetch`: puts a model's files into a folder and checks them, as a pod does before it serves. Run again it does nothing."""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gateway.cli.model_folder import HUB_FILES, HUB_FILES_LEFT_OUT, ModelUnavailable
from gateway.cli.options import readable_file

_WEIGHTS = "*.safetensors"
# Says what the folder holds, whole.
_MARK = ".triserve-fetched"
_SUM = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?P<name>[^/\x00]+)")
_BLOCK_BYTES = 8 << 20

# Gives a folder with a model's files, from a hub id, a revision and patterns of names.
Download = Callable[[str, str, Sequence[str]], str]


class FetchFailed(Exception):
    """The model cannot be had, or is not the one that was asked for; names the file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("model", metavar="MODEL", help="a folder, or an id of the Hugging Face hub such as org/name")
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="where the files are put; made if it is not there")
    parser.add_argument("--revision", default="main", metavar="NAME", help="commit, branch or tag of the hub (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="without the weights: all that a tokenizer or a sampler needs")
    parser.add_argument(
        "--sha256", type=readable_file, metavar="FILE", help="lines as sha256sum prints them; every file they name must be there and be so"
    )


def run(arguments: argparse.Namespace) -> int:
    """Fetches; the command's status."""
    try:
        sums = read_sums(arguments.sha256) if arguments.sha256 is not None else {}
        fetch(arguments.model, arguments.revision, arguments.into, sums=sums, small=arguments.small, download=_from_hub)
    except (FetchFailed, ModelUnavailable, OSError) as error:
        sys.stderr.write(f"triserve fetch: {error}\n")
        return 1
    return 0


def read_sums(file: Path) -> dict[str, str]:
    """Reads what sha256sum prints.

    Raises:
        FetchFailed: a line is none of its; names it.
    """
    sums = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        match = _SUM.fullmatch(line)
        if match is None:
            raise FetchFailed(f"{file} line {number} is no line of sha256sum")
        sums[match["name"]] = match["digest"]
    return sums


def fetch(model: str, revision: str, into: Path, *, sums: Mapping[str, str], small: bool, download: Download) -> None:
    """Puts a model's files into a folder, unless they are there.

    Args:
        model: a folder, or a hub id.
        revision: of the hub.
        into: the folder.
        sums: sha256 in hex of files that must be there; of the weights only where they are fetched.
        small: whether the weights are left out.
        download: fetches from the hub.

    Raises:
        FetchFailed: a file is missing, or not the one it should be; nothing counts as fetched then.
        ModelUnavailable: the model cannot be had.
    """
    asked = f"{model} {revision} {'small' if small else 'whole'} {hashlib.sha256(repr(sorted(sums.items())).encode()).hexdigest()}\n"
    mark = into / _MARK
    if mark.is_file() and mark.read_text() == asked:
        sys.stderr.write(f"{into} has {model} already\n")
        return
    patterns = [pattern for pattern in HUB_FILES if not (small and pattern == _WEIGHTS)]
    source = Path(model) if Path(model).is_dir() else Path(download(model, revision, patterns))
    files = sorted({file for pattern in patterns for file in source.glob(pattern)})
    if not files:
        raise FetchFailed(f"{source} has none of {', '.join(patterns)}")
    wanted = {name: digest for name, digest in sums.items() if not (small and Path(name).match(_WEIGHTS))}
    if missing := wanted.keys() - {file.name for file in files}:
        raise FetchFailed(f"{model} has no {min(missing)}, whose sha256 was given")
    into.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    for number, file in enumerate(files, start=1):
        sys.stderr.write(f"{number} of {len(files)}: {file.name}, {file.stat().st_size:,} bytes\n")
        _copy(file, into, wanted.get(file.name))
    mark.write_text(asked)


def _copy(file: Path, into: Path, expected: str | None) -> None:
    """Copies a file under its name once it is whole and the one that was expected."""
    digest, part = hashlib.sha256(), into / f"{file.name}.part"
    with file.open("rb") as source, part.open("wb") as target:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            target.write(block)
    if expected is not None and digest.hexdigest() != expected:
        part.unlink()
        raise FetchFailed(f"{file.name} has the sha256 {digest.hexdigest()}, {expected} was given")
    shutil.copymode(file, part)
    part.replace(into / file.name)


def _from_hub(model: str, revision: str, patterns: Sequence[str]) -> str:
    try:
        # An optional package.
        from huggingface_hub import snapshot_download  # noqa: PLC0415
    except ImportError:
        raise ModelUnavailable("models of the hub need the package huggingface-hub: pip install huggingface-hub") from None
    try:
        return str(snapshot_download(model, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(HUB_FILES_LEFT_OUT)))
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelUnavailable(f"{model} at {revision} cannot be downloaded: {reason}") from error
