"""Rows that stay in their blocks are, bit for bit, the numbers that the blocks stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from compute_svc.models.gguf import packed
from compute_svc.models.gguf.dequantise import read_rows
from compute_svc.models.gguf.packed import PACKED_FORMATS, read_packed_rows
from compute_svc.models.gguf.recipes import Recipe, Rows
from compute_svc.models.weights import CheckpointError, open_checkpoint
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import BITS
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.gguf_files import write_gguf
from tests.fakes.gguf_packing import packing, random_blocks
from tests.unit.compute_svc.models.gguf.test_dequantise import write_matrix
from triserve.model_files.gguf_header import GgufError, GgufTensor, read_header

FORMATS = sorted(PACKED_FORMATS)


def matrix(folder: Path, name: str, *, rows: int = 7, blocks: int = 2, name_of_file: str = "m") -> GgufTensor:
    """Random blocks, each scale of them a finite number of any size and sign."""
    generator = np.random.default_rng(FORMATS.index(name))
    content = random_blocks(name, rows * blocks, generator)
    for at in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,)}.get(name, (0, 2)):
        scales = generator.integers(0, 0x7C00, len(content)) | generator.integers(0, 2, len(content)) << 15
        content[:, at : at + 2] = scales.astype("<u2")[:, None].view(np.uint8)
    path = folder / f"{name_of_file}.gguf"
    write_matrix(path, content.reshape(rows, -1), name)
    return read_header(path).tensors["t"]


def bits_of(weight: CodedWeight) -> np.ndarray:
    return weight.dense(torch.float32).numpy().view(np.uint32)


@pytest.mark.parametrize("piece_weights", [1, 600, 1 << 20])
@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_those_of_the_blocks_bit_for_bit(name: str, piece_weights: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_PIECE_WEIGHTS", piece_weights)
    tensor = matrix(tmp_path, name)
    weight = read_packed_rows(tensor, 1, 5)
    np.testing.assert_array_equal(bits_of(weight), read_rows(tensor, 1, 5).view(np.uint32))
    # Codes take the bits that they have, or the next of two, four and eight.
    assert BITS[weight.code] / 8 * 5 * tensor.shape[1] == weight.data.nbytes


@pytest.mark.parametrize("name", FORMATS)
def test_recipes_of_rows_are_the_same_packed_and_as_numbers(name: str, tmp_path: Path) -> None:
    one, other = matrix(tmp_path, name), matrix(tmp_path, name, rows=4, name_of_file="other")
    parts = (Rows(one, 1, 5, np.array([4, 0, 2, 1, 3])), Rows(other, 0, 4))
    recipe = Recipe((9, one.shape[1]), parts, np.array([8, 0, 7, 1, 6, 2, 5, 3, 4]))
    assert recipe.packed_format == name
    weight = recipe.read_packed()
    assert isinstance(weight, CodedWeight)
    np.testing.assert_array_equal(bits_of(weight), recipe.read().view(np.uint32))


def test_only_whole_rows_of_one_format_stay_packed(tmp_path: Path) -> None:
    tensor, other = matrix(tmp_path, "Q8_0"), matrix(tmp_path, "Q4_0", name_of_file="other")
    whole = Recipe(tensor.shape, (Rows(tensor, 0, 7),))
    assert whole.packed_format == "Q8_0"
    assert whole._replace(added=1.0).packed_format is None
    assert whole._replace(transposed=True).packed_format is None
    assert whole._replace(parts=(Rows(tensor, 0, 7), Rows(other, 0, 7))).packed_format is None
    write_matrix(tmp_path / "f.gguf", np.zeros((4, 8), np.float32), "F32")
    assert Recipe((4, 8), (Rows(read_header(tmp_path / "f.gguf").tensors["t"], 0, 4),)).packed_format is None


def test_a_file_that_shrank_since_it_was_opened_is_an_error(tmp_path: Path) -> None:
    tensor = matrix(tmp_path, "Q4_K")
    with tensor.path.open("r+b") as file:
        file.truncate(tensor.offset + tensor.num_bytes - 1)
    with pytest.raises(GgufError, match="ends within tensor t"):
        read_packed_rows(tensor, 0, 7)


def test_a_checkpoint_has_its_matrices_in_blocks_and_the_rest_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    sizes: dict[str, Any] = {
        "hidden_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 256,
    }
    save_checkpoint(tmp_path / "published", "llama", **sizes)
    write_gguf(tmp_path / "published", tmp_path / "model.gguf", pack=packing(["Q4_K"]))
    with open_checkpoint(tmp_path) as checkpoint:
        # Query heads, whose rows llama.cpp orders otherwise.
        name = "model.layers.0.self_attn.q_proj.weight"
        weight = checkpoint.weight(name, torch.float32, torch.device("cpu"))
        assert isinstance(weight, CodedWeight) and weight.format_name == "uint4 in groups of 32"
        assert checkpoint.tensors[name].dtype == "Q4_K"
        assert torch.equal(weight.dense(torch.float32), checkpoint.read(name, torch.float32, torch.device("cpu")))
        norm = "model.layers.0.input_layernorm.weight"
        assert checkpoint.tensors[norm].dtype == "F32"
        assert not isinstance(checkpoint.weight(norm, torch.float32, torch.device("cpu")), CodedWeight)


def test_scales_that_are_no_numbers_are_named_when_a_weight_is_read(tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    save_checkpoint(tmp_path / "published", "llama", hidden_size=256, num_hidden_layers=1, num_attention_heads=4, intermediate_size=256)

    def broken(rows: np.ndarray, name: str) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
        blocks, code = packing(["Q8_0"])(rows, name)
        blocks = blocks.copy()
        blocks[0, :2] = 0xFF
        return blocks, code

    write_gguf(tmp_path / "published", tmp_path / "model.gguf", pack=broken)
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match="finite"):
        checkpoint.weight("model.layers.0.mlp.up_proj.weight", torch.float32, torch.device("cpu"))
