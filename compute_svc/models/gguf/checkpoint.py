"""The tensors of GGUF files as `Checkpoint` reads those of safetensors files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from compute_svc.models.gguf.model import read_model
from compute_svc.models.gguf.packed import packed_bytes
from compute_svc.models.gguf.recipes import Recipe
from compute_svc.models.quantised.coded_tensor import CodedTensor, RawReader
from compute_svc.models.weights import CheckpointError
from compute_svc.stored_weights.stored_weight import StoredWeight
from triserve.model_files.gguf_file import gguf_of, open_gguf
from triserve.model_files.gguf_header import GgufError


class TensorView(NamedTuple):
    """What is known of a tensor before it is read; as safetensors' slices say it."""

    shape: tuple[int, ...]

    def get_shape(self) -> list[int]:
        """Sizes of its dimensions."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """How it is read; in the file it may be packed."""
        return "F32"


class GgufTensors:
    """Reads tensors of one model by the names its family has for them.

    Args:
        folder: Holds the file or its parts.

    Raises:
        CheckpointError: It cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        try:
            path = gguf_of(folder)
            if path is None:
                raise GgufError(f"{folder} holds no GGUF file")
            self._recipes: dict[str, Recipe] = read_model(open_gguf(path)).recipes
        except GgufError as error:
            raise CheckpointError(str(error)) from error

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self._recipes)

    def get_slice(self, name: str) -> TensorView:
        """What is known of a tensor."""
        return TensorView(self._recipes[name].shape)

    def get_tensor(self, name: str) -> torch.Tensor:
        """A tensor, float32. Raises CheckpointError if the file cannot be read any more."""
        try:
            return torch.from_numpy(self._recipes[name].read())
        except GgufError as error:
            raise CheckpointError(str(error)) from error

    def coded(self) -> dict[str, CodedTensor]:
        """The matrices that stay in their blocks."""
        found = {}
        for name, recipe in self._recipes.items():
            block_format = recipe.packed_format
            if block_format is not None:
                rows, columns = recipe.shape
                size = packed_bytes(block_format, rows, columns)
                found[name] = CodedTensor((rows, columns), block_format, (name,), partial(_read_packed, recipe), num_bytes=size)
        return found


def _read_packed(recipe: Recipe, raw: RawReader) -> StoredWeight:
    try:
        return recipe.read_packed()
    except GgufError as error:
        raise CheckpointError(str(error)) from error
