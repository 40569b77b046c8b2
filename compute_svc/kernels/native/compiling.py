"""Builds the library with the machine's own compiler, into the user's cache or, for an image, beside the package."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from compute_svc.kernels.cpu_features import InstructionSet
from compute_svc.kernels.native.settings import cache_folder, compiler_commands

SOURCES = Path(__file__).parent / "source"
# Where kernels/native/build.py puts libraries, and where they are looked for first.
PREBUILT = Path(__file__).parent / "prebuilt"

# A compiler that takes longer than this is stopped; a build on one slow core takes a fraction of it.
_TIME_LIMIT_S = 90.0
_LOOK_INTERVAL_S = 0.05

# No contraction: every operation is rounded by itself, as ATen does. No unique symbols: libraries of two instruction sets share nothing.
_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
]
_INSTRUCTION_FLAGS: dict[InstructionSet, list[str]] = {
    "avx512_vnni": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mavx512vnni",
        "-mfma",
        "-mf16c",
        "-mbmi2",
        "-mprefer-vector-width=512",
    ],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "portable": [],
}


class BuildError(Exception):
    """The library cannot be built or kept here; the message says why."""


class Compiler(NamedTuple):
    """A C++ compiler of this machine.

    Attributes:
        command: To start it.
        version: What it says it is.
    """

    command: list[str]
    version: str


def library_name(instruction_set: InstructionSet) -> str:
    """The file's name up to the compiler: other sources or flags have another."""
    digest = hashlib.sha256(" ".join([*_FLAGS, *_INSTRUCTION_FLAGS[instruction_set]]).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"{instruction_set}-{digest.hexdigest()[:16]}"


def find_library(instruction_set: InstructionSet) -> Path:
    """The library, from beside the package, else from the user's cache, else built into that cache.

    Raises:
        BuildError: It is nowhere and cannot be built.
    """
    name = library_name(instruction_set)
    prebuilt = PREBUILT / f"{name}.so"
    if prebuilt.is_file():
        return prebuilt
    compiler = find_compiler()
    try:
        folder = cache_folder()
        _make_private(folder)
        key = hashlib.sha256("\0".join([*compiler.command, compiler.version]).encode()).hexdigest()[:16]
        return build(instruction_set, compiler, folder / f"{name}-{key}.so")
    except (OSError, RuntimeError) as error:
        raise BuildError(f"there is no folder to keep it in: {error}") from error


def find_compiler() -> Compiler:
    """The first compiler that answers.

    Raises:
        BuildError: None does.
    """
    tried = []
    for command in compiler_commands():
        tried.append(command[0])
        if shutil.which(command[0]) is None:
            continue
        version = _run([*command, "--version"], deadline=time.monotonic() + _TIME_LIMIT_S)
        return Compiler(command, version)
    raise BuildError(f"there is no C++ compiler: tried {', '.join(tried)}")


def build(instruction_set: InstructionSet, compiler: Compiler, target: Path) -> Path:
    """Builds the library unless it is there; of several processes one does and the others wait.

    Raises:
        BuildError: The compiler fails, or is not done in time.
        OSError: The target's folder cannot be written.
    """
    deadline = time.monotonic() + _TIME_LIMIT_S
    with _locked(target.with_suffix(".lock"), deadline):
        if not target.is_file():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix="building-") as scratch:
                built = _compile(instruction_set, compiler, Path(scratch), deadline)
                built.replace(target)
    return target


def _compile(instruction_set: InstructionSet, compiler: Compiler, scratch: Path, deadline: float) -> Path:
    flags = [*_FLAGS, *_INSTRUCTION_FLAGS[instruction_set]]
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [scratch / f"{source.stem}.o" for source in sources]
    commands = [[*compiler.command, *flags, "-c", str(source), "-o", str(made)] for source, made in zip(sources, objects, strict=True)]
    with ThreadPoolExecutor(min(len(commands), os.cpu_count() or 1)) as pool:
        list(pool.map(lambda command: _run(command, deadline=deadline), commands))
    library = scratch / "library.so"
    # OpenMP is not among what is linked: the one that torch has loaded is handed over when the library is loaded.
    _run([*compiler.command, "-shared", *map(str, objects), "-o", str(library)], deadline=deadline)
    return library


def _run(command: Sequence[str], *, deadline: float) -> str:
    # A group of its own, so that with the driver the compiler proper ends, too.
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", process_group=0
    ) as process:
        try:
            output, _ = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise BuildError(f"{command[0]} was not done in {_TIME_LIMIT_S:.0f} s") from None
    if process.returncode != 0:
        raise BuildError(f"{command[0]} failed: {output.strip()[:2000]}")
    return output


@contextmanager
def _locked(path: Path, deadline: float) -> Iterator[None]:
    # The system lets go of it when the process ends, however it ends.
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BuildError(f"another process has been building it for {_TIME_LIMIT_S:.0f} s: {path} is locked") from None
                time.sleep(_LOOK_INTERVAL_S)
        yield


def _make_private(folder: Path) -> None:
    """Makes the folder, or sees that nobody else can write to it: what is in it is run."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise BuildError(f"{folder} belongs to another user, or others may write to it")
