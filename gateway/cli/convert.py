"""`triserve convert SOURCE FOLDER`: makes a model folder of a GGUF file.

The stages convert what is theirs, each in a process of its own: tokenizer_svc tokenizer and chat template, compute_svc config and weights.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

GGUF_SUFFIX = ".gguf"

Weights = Literal["linked", "safetensors"]


class Sampling(NamedTuple):
    """What a model's author recommends; None = nothing."""

    temperature: float | None = None
    top_p: float | None = None


_NO_SAMPLING = Sampling()


class ConversionFailed(Exception):
    """A model cannot be converted; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("source", metavar="SOURCE", help="a GGUF file, any part of a split one")
    parser.add_argument("folder", metavar="FOLDER", help="the model folder to make; must not exist yet")
    parser.add_argument(
        "--weights",
        choices=("linked", "safetensors"),
        default="linked",
        help="link the GGUF file into the folder, or write its weights as safetensors (default: %(default)s)",
    )
    for name, words in (("temperature", "the temperature"), ("top-p", "the top_p")):
        parser.add_argument(f"--{name}", type=float, metavar="X", help=f"{words} its author recommends, for requests that name none")


def run(arguments: argparse.Namespace) -> int:
    """Converts; returns the exit status."""
    try:
        sampling = Sampling(arguments.temperature, arguments.top_p)
        convert(Path(arguments.source), Path(arguments.folder), weights=arguments.weights, sampling=sampling)
    except (ConversionFailed, OSError) as error:
        sys.stderr.write(f"triserve convert: {error}\n")
        return 1
    sys.stdout.write(f"Serve it with: triserve up --model {arguments.folder}\n")
    return 0


def convert(source: Path, folder: Path, *, weights: Weights = "linked", sampling: Sampling = _NO_SAMPLING) -> None:
    """Makes a model folder; it appears whole or not at all.

    Args:
        source: A GGUF file, or a part of a split one.
        folder: Where to; it must not exist.
        weights: Whether the folder links to the file or gets a copy as safetensors.
        sampling: What requests are sampled with that do not say.

    Raises:
        ConversionFailed: the source cannot be used, or the folder exists.
        OSError: the folder cannot be made.
    """
    if folder.exists():
        raise ConversionFailed(f"{folder} exists already")
    if not source.is_file():
        raise ConversionFailed(f"{source} is no file")
    if source.suffix != GGUF_SUFFIX:
        raise ConversionFailed(f"{source} is no GGUF file: its name does not end in {GGUF_SUFFIX}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        recommended = [f"--{name.replace('_', '-')}={value}" for name, value in sampling._asdict().items() if value is not None]
        _run_stage("tokenizer_svc.convert", [str(source), str(unfinished), *recommended])
        _run_stage("compute_svc.convert", [str(source), str(unfinished), "--weights", weights])
        unfinished.chmod(0o755)
        _put(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _run_stage(module: str, arguments: Sequence[str]) -> None:
    # -P: a folder of the same name where the command was called is not taken for the stage.
    command = [sys.executable, "-P", "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1].removeprefix(f"{module}: ") if lines else f"{module} ended with status {done.returncode}"
        raise ConversionFailed(reason)


def _put(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError:
        # Somebody else converted the same file meanwhile.
        if not (folder / "config.json").is_file():
            raise
