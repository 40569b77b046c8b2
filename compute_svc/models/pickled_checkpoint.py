"""Reads the tensors of pytorch_model*.bin files and writes them as safetensors; run in a process of its own, which serves nothing.

Such files are pickles. `torch.load(weights_only=True)` builds tensors and containers alone and calls nothing a file names.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from compute_svc.models.weights import INDEX_FILE, SINGLE_FILE, CheckpointError, listed, read_json

PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"


def convert_pickled(source: Path, folder: Path) -> None:
    """Writes a safetensors file for each of the checkpoint's files, one in memory at a time.

    Args:
        source: Holds `pytorch_model.bin`, or the shards that `pytorch_model.bin.index.json` lists.
        folder: Where to; must exist.

    Raises:
        CheckpointError: There are no such files, or one holds something else than tensors, or the index does not fit them.
        OSError: The folder cannot be written.
    """
    names = _file_names(source)
    weight_map: dict[str, str] = {}
    total = 0
    for number, name in enumerate(names, 1):
        target = SINGLE_FILE if len(names) == 1 else f"model-{number:05d}-of-{len(names):05d}.safetensors"
        tensors = _load(source / name)
        twice = sorted(tensors.keys() & weight_map.keys())
        if twice:
            raise CheckpointError(f"{source / name} holds tensors that another file holds too: {listed(twice)}")
        save_file(tensors, folder / target, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, target))
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(names) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _file_names(source: Path) -> list[str]:
    if (source / PICKLED_FILE).is_file():
        return [PICKLED_FILE]
    if not (source / PICKLED_INDEX).is_file():
        raise CheckpointError(f"{source} holds neither {PICKLED_FILE} nor {PICKLED_INDEX}")
    weight_map = read_json(source / PICKLED_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{source / PICKLED_INDEX} has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(".bin"):
            raise CheckpointError(f"{source / PICKLED_INDEX} names the file {name!r}; only .bin files beside the index are read")
    return sorted(set(weight_map.values()))


def _load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file, each with memory of its own: in the file several may share one, as tied embeddings do."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:
        # Of every kind: it interprets the file.
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{path} cannot be read as tensors alone: {reason[:200]}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not tensors by name")
    wrong = [name for name, tensor in content.items() if not isinstance(tensor, torch.Tensor) or tensor.is_quantized or tensor.is_sparse]
    if wrong:
        raise CheckpointError(f"{path} holds things that are no plain tensors: {listed(wrong)}")
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in content.items()}


def _is_zip(path: Path) -> bool:
    """Whether it can be mapped; the older form is read whole."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
