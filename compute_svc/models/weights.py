"""Reads tensors from a folder of safetensors files, memory-mapped, or from a GGUF file in it; knows no model.

    CheckpointError: the folder cannot be used, and why

Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from safetensors import SafetensorError, safe_open

from compute_svc.stored_weights.dense_weight import DenseWeight
from compute_svc.stored_weights.stored_weight import StoredWeight
from triserve.model_files.gguf_file import gguf_files

if TYPE_CHECKING:
    from compute_svc.models.quantised.coded_tensor import CodedTensor, CodeUse, RawReader

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Names of the format, and bytes per number.
READABLE_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Those that codes and their scales are stored in besides.
_OTHER_DTYPES = {
    "I64": 8,
    "U64": 8,
    "I32": 4,
    "U32": 4,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
}


Take: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Takes a part of a tensor; what it does not look at is not read where the tensor is a memory map."""


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message names the file or the tensor and what is wrong with it."""


class TensorInfo(NamedTuple):
    """What is known of a tensor before it is read.

    Attributes:
        shape: Sizes of its dimensions.
        dtype: As the format names it, "BF16"; of a weight that is stored as codes, their name, "INT4".
        coded_bytes: Of codes and all that belongs to them; 0 = it is no such weight.
        use: What these may be multiplied as.
    """

    shape: tuple[int, ...]
    dtype: str
    coded_bytes: int = 0
    use: CodeUse = "numbers"

    @property
    def num_bytes(self) -> int:
        """Size in the file; 0 for a dtype that cannot be read."""
        return self.coded_bytes or math.prod(self.shape) * READABLE_DTYPES.get(self.dtype, 0)

    @property
    def is_readable(self) -> bool:
        """Whether it holds floating numbers of 16 bits or more, or codes of weights."""
        return self.coded_bytes > 0 or self.dtype in READABLE_DTYPES


class Checkpoint:
    """The tensors of an open checkpoint folder, by name."""

    def __init__(self, owners: Mapping[str, Any], coded: Mapping[str, CodedTensor] | None = None) -> None:
        """
        Args:
            owners: The open file that holds each tensor.
            coded: Weights that are stored as codes, by the names that their family has for them; their parts have no name any more.
        """
        self._owners = owners
        self._coded = coded or {}
        infos = infos_of(owners)
        parts = {part for tensor in self._coded.values() for part in tensor.parts}
        self.tensors = {name: info for name, info in infos.items() if name not in parts}
        for name, tensor in self._coded.items():
            size = tensor.num_bytes or sum(_stored_bytes(infos[part]) for part in tensor.parts)
            self.tensors[name] = TensorInfo(tensor.shape, tensor.kind, max(1, size), tensor.use)

    def weight(self, name: str, dtype: torch.dtype, device: torch.device) -> StoredWeight:
        """The weight of a linear map as it is stored: codes, or numbers converted.

        Args:
            name: Of the tensor.
            dtype: Of numbers.
            device: Where to.

        Raises:
            CheckpointError: As `read`.
        """
        if name not in self._coded:
            return DenseWeight(self.read(name, dtype, device))
        weight = self._coded[name].read(_raw_reader(self._owners))
        if not weight.is_finite():
            raise CheckpointError(f"weight {name} has scales or codes that stand for no finite number")
        return weight.to(device)

    def read(self, name: str, dtype: torch.dtype, device: torch.device, *, take: Take | None = None) -> torch.Tensor:
        """A copy of a tensor, converted.

        Args:
            name: Of the tensor.
            dtype: To which.
            device: Where to.
            take: The part of it that is wanted; None = all. Not of a weight that is stored as codes.

        Raises:
            CheckpointError: Its dtype in the file is not a floating one of 16 bits or more, or a number in it is not finite, or not any more in `dtype`.
        """
        if name in self._coded:
            assert take is None, "codes are cut by `StoredWeight`"
            return self.weight(name, dtype, device).dense(dtype)
        if self.tensors[name].dtype not in READABLE_DTYPES:
            raise CheckpointError(f"tensor {name} is stored as {self.tensors[name].dtype}; supported: {', '.join(READABLE_DTYPES)}")
        mapped: torch.Tensor = self._owners[name].get_tensor(name)
        tensor = (mapped if take is None else take(mapped)).to(dtype=dtype, copy=True)
        # Looked at where the file is mapped: a device would have to be waited for.
        if not _is_finite(tensor):
            raise CheckpointError(f"tensor {name} holds numbers that are not finite in {str(dtype).removeprefix('torch.')}")
        return tensor.to(device)


def _is_finite(tensor: torch.Tensor) -> bool:
    # A sum with anything that is not finite in it is not finite either, and costs no copy.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


@contextmanager
def open_checkpoint(folder: Path) -> Iterator[Checkpoint]:
    """Opens the files of a checkpoint: one `model.safetensors`, the shards that `model.safetensors.index.json` lists, or GGUF.

    Raises:
        CheckpointError: No such files, or one is damaged, or the index is malformed or points out of the folder.
    """
    with ExitStack() as stack:
        if (folder / SINGLE_FILE).is_file():
            file = _open(folder / SINGLE_FILE, stack)
            yield _with_codes(folder, dict.fromkeys(file.keys(), file))
        elif (folder / INDEX_FILE).is_file():
            yield _with_codes(folder, _open_shards(folder, stack))
        elif gguf_files(folder):
            # Its tensors raise the errors of this module.
            from compute_svc.models.gguf.checkpoint import GgufTensors  # noqa: PLC0415

            tensors = GgufTensors(folder)
            yield Checkpoint(dict.fromkeys(tensors.keys(), tensors), tensors.coded())
        else:
            raise CheckpointError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE} nor a GGUF file; other formats are not read")


def _with_codes(folder: Path, owners: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint with what its config.json says of codes."""
    path = folder / "config.json"
    fields = read_json(path) if path.is_file() else {}
    # The second is what compressed-tensors' first checkpoints call it.
    section = fields.get("quantization_config") or fields.get("compression_config")
    if section is None and (folder / "quanto_qmap.json").is_file():
        section = {"quant_method": "quanto"}
    if section is None:
        return Checkpoint(owners)
    # Its readers raise the errors of this module.
    from compute_svc.models.quantised import coded_tensors  # noqa: PLC0415

    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: quantization_config must be a JSON object")
    return Checkpoint(owners, coded_tensors(section, infos_of(owners), str(path), _raw_reader(owners)))


def stored_tensors(folder: Path) -> dict[str, TensorInfo]:
    """What the files of a checkpoint hold. Raises CheckpointError as `open_checkpoint` does."""
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.tensors


def count_numbers(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """How many numbers there are of each dtype, as the format names it."""
    counts: dict[str, int] = {}
    for info in tensors.values():
        counts[info.dtype] = counts.get(info.dtype, 0) + math.prod(info.shape)
    return counts


def read_json(path: Path) -> dict[str, Any]:
    """A file that must hold one JSON object.

    Raises:
        CheckpointError: It is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path} cannot be read: it is nested too deeply") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return content


def _open_shards(folder: Path, stack: ExitStack) -> dict[str, Any]:
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX_FILE} has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{folder / INDEX_FILE} names the file {name!r}; only .safetensors files beside the index are read")
    files = {name: _open(folder / name, stack) for name in sorted(set(weight_map.values()))}
    held = {name: set(file.keys()) for name, file in files.items()}
    lost = [tensor for tensor, name in weight_map.items() if tensor not in held[name]]
    if lost:
        raise CheckpointError(f"{folder / INDEX_FILE} lists tensors their files do not hold: {listed(lost)}")
    stray = [tensor for tensors in held.values() for tensor in tensors if tensor not in weight_map]
    if stray:
        raise CheckpointError(f"{folder} holds tensors its index does not list: {listed(stray)}")
    return {tensor: files[name] for tensor, name in weight_map.items()}


def listed(names: list[str]) -> str:
    """Names for a message: the first eight and how many more."""
    shown = ", ".join(sorted(names)[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _open(path: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(path, framework="pt", device="cpu"))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def infos_of(owners: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """What the files say of their tensors.

    Args:
        owners: The open file that holds each tensor.
    """
    slices = {name: owner.get_slice(name) for name, owner in owners.items()}
    return {name: TensorInfo(tuple(tensor.get_shape()), tensor.get_dtype()) for name, tensor in slices.items()}


def _raw_reader(owners: Mapping[str, Any]) -> RawReader:
    return lambda name: owners[name].get_tensor(name)


def _stored_bytes(info: TensorInfo) -> int:
    return math.prod(info.shape) * (READABLE_DTYPES | _OTHER_DTYPES).get(info.dtype, 0)
