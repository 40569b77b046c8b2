"""Checkpoints on disk: what is read, and what is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from compute_svc.models.weights import INDEX_FILE, SINGLE_FILE, CheckpointError, TensorInfo, open_checkpoint, read_json

CPU = torch.device("cpu")


def write_shards(folder: Path, weight_map: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """Tensors "a" and "b" in files of their own, and an index that says so unless another is given."""
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.5])}
    for name, tensor in tensors.items():
        save_file({name: tensor}, folder / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in tensors} if weight_map is None else weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    return tensors


def test_a_single_file_gives_shapes_dtypes_and_converted_copies(tmp_path: Path) -> None:
    stored = torch.randn((3, 4)).bfloat16()
    save_file({"x": stored}, tmp_path / SINGLE_FILE)

    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors == {"x": TensorInfo((3, 4), "BF16")}
        assert checkpoint.tensors["x"].num_bytes == 24
        read = checkpoint.read("x", torch.float32, CPU)
        read.add_(1)
        assert torch.equal(checkpoint.read("x", torch.bfloat16, CPU), stored), "reading gave a view of the file"

    assert torch.equal(read, stored.float() + 1)


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    tensors = write_shards(tmp_path)

    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.read(name, torch.float32, CPU), tensor)


@pytest.mark.parametrize(
    "name", ["../b.safetensors", "/etc/b.safetensors", "sub/b.safetensors", "..", "b.bin", "pytorch_model.bin", r"..\b.safetensors", 3]
)
def test_an_index_that_points_anywhere_but_at_a_safetensors_file_beside_it_is_refused(name: Any, tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "a.safetensors", "b": name})

    with pytest.raises(CheckpointError, match=r"only \.safetensors files beside the index are read"), open_checkpoint(tmp_path):
        pass


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "a.safetensors", "b": "a.safetensors"}, "lists tensors their files do not hold: b"),
        ({"a": "a.safetensors", "b": "b.safetensors", "c": "b.safetensors"}, "lists tensors their files do not hold: c"),
        ({"a": "a.safetensors", "b": "gone.safetensors"}, "gone.safetensors cannot be read"),
        ({}, "has no weight_map"),
        (["a"], "has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(weight_map: Any, message: str, tmp_path: Path) -> None:
    write_shards(tmp_path, weight_map)

    with pytest.raises(CheckpointError, match=message), open_checkpoint(tmp_path):
        pass


def test_tensors_the_index_does_not_list_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "a.safetensors"})
    save_file({"a": torch.ones(1), "stray": torch.ones(1)}, tmp_path / "a.safetensors")

    with pytest.raises(CheckpointError, match="holds tensors its index does not list: stray"), open_checkpoint(tmp_path):
        pass


def test_a_folder_of_pickles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")

    with (
        pytest.raises(CheckpointError, match=r"holds neither model.safetensors nor model.safetensors.index.json"),
        open_checkpoint(tmp_path),
    ):
        pass


@pytest.mark.parametrize("damage", ["cut", "header", "empty"])
def test_a_damaged_file_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    path = tmp_path / SINGLE_FILE
    save_file({"x": torch.ones(100)}, path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-8], "header": b"\xff" * 8 + content[8:], "empty": b""}[damage])

    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"), open_checkpoint(tmp_path):
        pass


def test_a_quantised_tensor_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"x": torch.ones(4, dtype=torch.int8)}, tmp_path / SINGLE_FILE)

    with (
        open_checkpoint(tmp_path) as checkpoint,
        pytest.raises(CheckpointError, match="tensor x is stored as I8; supported: F64, F32, F16, BF16"),
    ):
        checkpoint.read("x", torch.float32, CPU)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_json_that_is_no_object_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"gone\.json cannot be read"):
        read_json(tmp_path / "gone.json")
