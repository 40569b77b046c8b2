"""`triserve quantize MODEL OUT --weights FORMAT`: makes a model folder with quantised weights; compressed-tensors, or bitsandbytes' layout for nf4.

The stages do what is theirs, each in a process of its own: compute_svc config and weights, tokenizer_svc the token ids of a calibration text.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from gateway.cli.extras import MissingExtra, require_installed
from gateway.cli.model_files.model_folder import ModelUnavailable, download_from_hub, resolve_model

_FORMATS = ("int8", "int4", "fp8", "nf4")
_METHODS = ("rtn", "gptq", "awq", "smoothquant")
# What compute reads of config.json, by what is asked for; without a group one that costs no quality to speak of.
KV_FORMATS = {"int8": "int8-g32", **{name: name for name in ("int8-g8", "int8-g32", "int8-g64")}}
_PERCENT_PER_LINE = 10
_MB = 1_000_000
_CALIBRATION_TOKENS = 16384
_COMPUTE_STAGE, _TOKENIZER_STAGE = "compute_svc.quantise", "tokenizer_svc.calibration_ids"

Shown = Callable[[int, int], None]
"""Told bytes done and bytes in all."""


class QuantizationFailed(Exception):
    """A model cannot be quantised; the message says why."""


class Written(NamedTuple):
    """What the compute stage says at the end; see there."""

    source_bytes: int
    num_bytes: int
    notes: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("model", metavar="MODEL", help="a float model: a folder, a GGUF file, or org/name of the Hugging Face hub")
    parser.add_argument("folder", type=Path, metavar="OUT", help="the model folder to make; must not exist yet")
    parser.add_argument(
        "--weights",
        choices=_FORMATS,
        required=True,
        help="int8: a scale for each output, activations int8 as well (W8A8); int4: in groups; fp8: e4m3, activations as well; nf4: in blocks of 64",
    )
    parser.add_argument(
        "--group",
        type=int,
        choices=(128, 64, 32),
        help="inputs that share a scale, of int4 (default: 128) and int8 (default: all); where it does not divide a width, the largest smaller one that does",
    )
    parser.add_argument(
        "--activations", choices=("int8", "fp8", "float"), help="what weights are multiplied by, in place of the format's own"
    )
    parser.add_argument("--head", action="store_true", help="the logits' projection becomes int8; a tied one gets a matrix of its own")
    parser.add_argument("--nested", action="store_true", help="of nf4: scales are quantised in turn")
    parser.add_argument(
        "--kv", choices=tuple(KV_FORMATS), help="what compute replicas keep keys and values as unless they are told otherwise"
    )
    parser.add_argument(
        "--method",
        choices=_METHODS,
        default="rtn",
        help="how codes are chosen: rounded to nearest, or by a calibration text; awq is for int4, smoothquant for int8, gptq for both (default: %(default)s)",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="of the other methods than rtn: a text like those the model will see"
    )
    parser.add_argument(
        "--calibration-tokens", type=_count, metavar="N", help=f"how many of its first tokens count (default: {_CALIBRATION_TOKENS})"
    )


def _count(text: str) -> int:
    """A number of tokens. Raises ArgumentTypeError if it is none."""
    if not text.isascii() or not text.isdecimal() or not 0 < len(text) < 10 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Quantises; returns the exit status."""
    try:
        require_installed(("torch", "safetensors") if arguments.calibration is None else ("torch", "safetensors", "tokenizers"))
        source = resolve_model(arguments.model, download_from_hub, os.environ).folder
        written = quantize(source, arguments)
    except (QuantizationFailed, ModelUnavailable, MissingExtra, OSError) as error:
        sys.stderr.write(f"triserve quantize: {error}\n")
        return 1
    for note in written.notes:
        sys.stderr.write(f"note: {note}\n")
    share = 100 * written.num_bytes / max(1, written.source_bytes)
    sys.stdout.write(
        f"{written.source_bytes / _MB:.1f} MB became {written.num_bytes / _MB:.1f} MB, {share:.0f} %.\n"
        f"What to expect of it: triserve inspect {arguments.folder}\nServe it with: triserve up --model {arguments.folder}\n"
    )
    return 0


def quantize(source: Path, arguments: argparse.Namespace) -> Written:
    """Makes a model folder; it appears whole or not at all.

    Args:
        source: A model folder.
        arguments: The command's.

    Raises:
        QuantizationFailed: the source cannot be used, options do not go with each other, or the folder exists.
        OSError: the folder cannot be made.
    """
    folder: Path = arguments.folder
    needs_text = arguments.method != "rtn"
    if folder.exists():
        raise QuantizationFailed(f"{folder} exists already")
    if needs_text != (arguments.calibration is not None) or (arguments.calibration_tokens is not None and not needs_text):
        raise QuantizationFailed(
            f"--calibration FILE comes with a --method other than rtn, and that with it; --method is {arguments.method}"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for path in _small_files(source):
            shutil.copyfile(path, unfinished / path.name)
        with _calibration(source, arguments) as calibration, progress_bar(sys.stderr.isatty()) as shown:
            written = _run_stage([str(source), str(unfinished), *_stage_options(arguments), *calibration], shown)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return written


def _small_files(source: Path) -> list[Path]:
    """What a model folder says besides its weights and its config, which are written anew."""
    files = [path for pattern in ("*.json", "*.jinja") for path in sorted(source.glob(pattern))]
    return [path for path in files if path.name != "config.json" and not path.name.endswith(".index.json")]


def _stage_options(arguments: argparse.Namespace) -> Iterator[str]:
    yield f"--weights={arguments.weights}"
    for name in ("group", "activations"):
        if (value := getattr(arguments, name)) is not None:
            yield f"--{name}={value}"
    for name in ("head", "nested"):
        if getattr(arguments, name):
            yield f"--{name}"
    if arguments.kv is not None:
        yield f"--kv-format={KV_FORMATS[arguments.kv]}"


@contextmanager
def _calibration(source: Path, arguments: argparse.Namespace) -> Iterator[list[str]]:
    """The options of a calibrated method: the tokenizer stage writes the ids of the text's tokens, for as long as they are needed."""
    if arguments.calibration is None:
        yield []
        return
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder) / "ids"
        limit = arguments.calibration_tokens or _CALIBRATION_TOKENS
        command = [sys.executable, "-P", "-m", _TOKENIZER_STAGE, str(source), str(arguments.calibration), str(ids), f"--limit={limit}"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise QuantizationFailed(_reason(_TOKENIZER_STAGE, done.stderr, done.returncode))
        yield [f"--method={arguments.method}", f"--calibration-ids={ids}"]


def _reason(stage: str, said: str, status: int) -> str:
    """Why a stage ended: its last line."""
    lines = said.strip().splitlines()
    return lines[-1].removeprefix(f"{stage}: ") if lines else f"{stage} ended with status {status}"


def _run_stage(options: Sequence[str], shown: Shown) -> Written:
    """Runs the compute stage and shows how far it is. Raises QuantizationFailed with its reason."""
    # -P: a folder of the same name where the command was called is not taken for the stage.
    command = [sys.executable, "-P", "-m", _COMPUTE_STAGE, *options]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        # A file, not a pipe: nobody reads it before the end, and a full pipe would hold the stage up.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            last = _follow(process, shown)
            status = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        errors.seek(0)
        said = errors.read()
    if status or "notes" not in last:
        raise QuantizationFailed(_reason(_COMPUTE_STAGE, said, status))
    return Written(last["source_bytes"], last["num_bytes"], tuple(last["notes"]))


def _follow(process: subprocess.Popen[str], shown: Shown) -> dict[str, Any]:
    """Reads the stage's lines to their end; returns the last."""
    assert process.stdout is not None, "the stage's output is a pipe"
    last: dict[str, Any] = {}
    with process.stdout as lines:
        for line in lines:
            last = json.loads(line)
            if "done" in last:
                shown(last["done"], last["total"])
    return last


@contextmanager
def progress_bar(is_terminal: bool) -> Iterator[Shown]:
    """A progress bar, or plain lines where standard error is no terminal."""
    if not is_terminal:
        yield _Lines().shown
        return
    with tqdm(unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True) as bar:

        def shown(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield shown


class _Lines:
    """A line every ten percent."""

    def __init__(self) -> None:
        self._next_percent = _PERCENT_PER_LINE

    def shown(self, done: int, total: int) -> None:
        """See `Shown`."""
        percent = 100 * done // max(1, total)
        if percent >= self._next_percent:
            sys.stderr.write(f"quantised {percent} % of {total / _MB:.1f} MB\n")
            self._next_percent = percent - percent % _PERCENT_PER_LINE + _PERCENT_PER_LINE
