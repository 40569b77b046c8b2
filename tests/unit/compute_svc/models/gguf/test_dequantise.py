"""Blocks mean what their format says: compared with slow readings of the formats, one weight at a time, written from their description."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from compute_svc.models.gguf import dequantise
from compute_svc.models.gguf.dequantise import read_rows
from tests.fakes.gguf_packing import random_blocks
from triserve.model_files.gguf_blocks import BLOCK_FORMATS
from triserve.model_files.gguf_header import GgufError, read_header

F = np.float32


def half(block: bytes, at: int) -> np.float32:
    return F(struct.unpack_from("<e", block, at)[0])


def q4_0(block: bytes) -> list[np.float32]:
    """A scale; nibbles less 8, low ones first half."""
    nibbles = [byte & 15 for byte in block[2:]] + [byte >> 4 for byte in block[2:]]
    return [half(block, 0) * F(nibble - 8) for nibble in nibbles]


def q4_1(block: bytes) -> list[np.float32]:
    """A scale and a minimum."""
    nibbles = [byte & 15 for byte in block[4:]] + [byte >> 4 for byte in block[4:]]
    return [half(block, 0) * F(nibble) + half(block, 2) for nibble in nibbles]


def _fifth_bits(block: bytes, at: int) -> list[int]:
    (bits,) = struct.unpack_from("<I", block, at)
    return [(bits >> index & 1) << 4 for index in range(32)]


def q5_0(block: bytes) -> list[np.float32]:
    """As Q4_0 with a fifth bit of each weight in four bytes before."""
    nibbles = [byte & 15 for byte in block[6:]] + [byte >> 4 for byte in block[6:]]
    return [half(block, 0) * F((nibble | high) - 16) for nibble, high in zip(nibbles, _fifth_bits(block, 2), strict=True)]


def q5_1(block: bytes) -> list[np.float32]:
    """As Q4_1, likewise."""
    nibbles = [byte & 15 for byte in block[8:]] + [byte >> 4 for byte in block[8:]]
    return [half(block, 0) * F(nibble | high) + half(block, 2) for nibble, high in zip(nibbles, _fifth_bits(block, 4), strict=True)]


def q8_0(block: bytes) -> list[np.float32]:
    """A scale; signed bytes."""
    return [half(block, 0) * F(value) for value in struct.unpack_from("<32b", block, 2)]


def _scales_and_minima(packed: bytes) -> list[tuple[int, int]]:
    """Eight pairs of six bits in twelve bytes: four plain ones each, the upper bits of which carry those of the other four."""
    pairs = []
    for index in range(8):
        if index < 4:
            pairs.append((packed[index] & 63, packed[index + 4] & 63))
        else:
            shared = packed[index + 4]
            pairs.append((shared & 15 | packed[index - 4] >> 6 << 4, shared >> 4 | packed[index] >> 6 << 4))
    return pairs


def q4_k(block: bytes) -> list[np.float32]:
    """Scales of scales and of minima; eight groups of 32, two to each 32 bytes: low nibbles, then high ones."""
    weights = []
    for group, (scale, minimum) in enumerate(_scales_and_minima(block[4:16])):
        span = block[16 + group // 2 * 32 : 48 + group // 2 * 32]
        d, m = half(block, 0) * F(scale), half(block, 2) * F(minimum)
        weights += [d * F(byte >> 4 if group % 2 else byte & 15) - m for byte in span]
    return weights


def q5_k(block: bytes) -> list[np.float32]:
    """As Q4_K; 32 bytes hold a fifth bit, one bit of each byte to a group."""
    weights = []
    for group, (scale, minimum) in enumerate(_scales_and_minima(block[4:16])):
        span = block[48 + group // 2 * 32 : 80 + group // 2 * 32]
        d, m = half(block, 0) * F(scale), half(block, 2) * F(minimum)
        weights += [
            d * F((byte >> 4 if group % 2 else byte & 15) | (block[16 + index] >> group & 1) << 4) - m for index, byte in enumerate(span)
        ]
    return weights


def q6_k(block: bytes) -> list[np.float32]:
    """Low nibbles of 256, two upper bits of each, sixteen signed scales, a scale of them; two halves of four groups of 32."""
    weights = []
    for part in range(2):
        low, high = block[part * 64 : part * 64 + 64], block[128 + part * 32 : 160 + part * 32]
        for group in range(4):
            for index in range(32):
                nibble = low[index + 32 * (group % 2)] >> (4 if group >= 2 else 0) & 15
                value = nibble | (high[index] >> 2 * group & 3) << 4
                (scale,) = struct.unpack_from("<b", block, 192 + part * 8 + group * 2 + index // 16)
                weights.append(half(block, 208) * F(scale) * F(value - 32))
    return weights


def q2_k(block: bytes) -> list[np.float32]:
    """Sixteen groups of 16 with a nibble of scale and one of minimum; two bits a weight, four groups of 32 to each 32 bytes."""
    weights = []
    for index in range(256):
        scales = block[index // 16]
        bits = block[16 + index // 128 * 32 + index % 32] >> 2 * (index % 128 // 32) & 3
        weights.append(half(block, 80) * F(scales & 15) * F(bits) - half(block, 82) * F(scales >> 4))
    return weights


_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def iq4_nl(block: bytes) -> list[np.float32]:
    """As Q4_0, nibbles standing for values of a table."""
    nibbles = [byte & 15 for byte in block[2:]] + [byte >> 4 for byte in block[2:]]
    return [half(block, 0) * F(_NONLINEAR[nibble]) for nibble in nibbles]


READINGS: dict[str, Callable[[bytes], list[np.float32]]] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "Q2_K": q2_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "IQ4_NL": iq4_nl,
}


@pytest.mark.parametrize("name", READINGS)
def test_blocks_mean_what_their_description_says_bit_for_bit(name: str) -> None:
    blocks = random_blocks(name, 20, np.random.default_rng(1))
    if name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        # Any scale but infinities and NaN.
        blocks[:, 1] &= 0xBB
        blocks[:, 3] &= 0xBB
    expected = [weight for block in blocks for weight in READINGS[name](block.tobytes())]
    np.testing.assert_array_equal(dequantise.dequantise(blocks.tobytes(), name), np.array(expected, F))


def test_bfloat16_and_halves_are_exact() -> None:
    values = np.array([1.0, -2.5, 0.0, 2.0**-120, 3.0e38], np.float32).view(np.uint32) >> 16
    np.testing.assert_array_equal(dequantise.dequantise(values.astype("<u2").tobytes(), "BF16").view(np.uint32), values << 16)
    halves = np.array([1.0, -2.5, 6e-8, 65504.0], np.float16)
    np.testing.assert_array_equal(dequantise.dequantise(halves.tobytes(), "F16"), halves.astype(np.float32))


def write_matrix(path: Path, rows: np.ndarray, name: str) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("t", rows, raw_dtype=gguf.GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("piece_weights", [32, 96, 1 << 20])
def test_rows_are_the_same_whatever_the_pieces_they_are_read_in(
    piece_weights: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dequantise, "_PIECE_WEIGHTS", piece_weights)
    packed = random_blocks("Q8_0", 15, np.random.default_rng(2)).reshape(5, -1)
    packed[:, 1::34] &= 0xBB
    write_matrix(tmp_path / "m.gguf", packed, "Q8_0")
    tensor = read_header(tmp_path / "m.gguf").tensors["t"]
    assert tensor.shape == (5, 96)
    whole = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(read_rows(tensor, 1, 3), whole[1:4])


def test_a_file_that_shrank_since_it_was_opened_is_an_error(tmp_path: Path) -> None:
    write_matrix(tmp_path / "m.gguf", np.zeros((4, 8), np.float32), "F32")
    tensor = read_header(tmp_path / "m.gguf").tensors["t"]
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.truncate(tensor.offset + 17)
    with pytest.raises(GgufError, match="ends within tensor t"):
        read_rows(tensor, 0, 4)


def test_integers_and_formats_of_memory_alone_are_refused_by_name(tmp_path: Path) -> None:
    write_matrix(tmp_path / "m.gguf", np.zeros((4, 8), np.int32), "I32")
    with pytest.raises(GgufError, match="tensor t is stored as I32, which is not supported"):
        read_rows(read_header(tmp_path / "m.gguf").tensors["t"], 0, 4)


def test_the_table_of_formats_is_the_published_one() -> None:
    ours = {block.name: (block.weights, block.num_bytes) for block in BLOCK_FORMATS.values()}
    assert ours == {code.name: size for code, size in gguf.GGML_QUANT_SIZES.items()}
    assert {code: block.name for code, block in BLOCK_FORMATS.items()} == {int(code): code.name for code in gguf.GGML_QUANT_SIZES}
