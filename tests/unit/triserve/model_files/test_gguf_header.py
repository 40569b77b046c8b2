"""A GGUF header is read as written, and a hostile one is refused before it costs anything."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.fakes.gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    FLOAT32,
    INT32,
    Q4_0,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    RawTensor,
    array_of,
    entry,
    gguf_bytes,
    text,
)
from triserve.model_files.gguf_header import GgufError, read_header

ALIGNMENT = entry("general.alignment", UINT32, struct.pack("<I", 64))
SMALL = gguf_bytes(
    [
        entry("general.architecture", STRING, text("llama")),
        entry("flag", BOOL, b"\1"),
        entry("eps", FLOAT32, struct.pack("<f", 1e-5)),
        entry("tokens", ARRAY, array_of(STRING, 3, text("a") + text("é") + text(""))),
        entry("scores", ARRAY, array_of(FLOAT32, 3, struct.pack("<3f", 0, -1, -2.5))),
        entry("types", ARRAY, array_of(INT32, 2, struct.pack("<2i", 1, -6))),
    ],
    [RawTensor("a", (4, 2)), RawTensor("b", (32,), Q4_0, 32)],
    data=bytes(32 + 18),
)


def header_of(content: bytes, folder: Path) -> object:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return read_header(path)


def test_a_header_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(SMALL)
    header = read_header(tmp_path / "model.gguf")
    values = {key: value if isinstance(value, str | int | float) else list(value) for key, value in header.metadata.items()}
    assert values == {
        "general.architecture": "llama",
        "flag": True,
        "eps": 1e-5,
        "tokens": ["a", "é", ""],
        "scores": [0.0, -1.0, -2.5],
        "types": [1, -6],
    }
    a, b = header.tensors.values()
    assert (a.shape, a.format.name, a.num_bytes) == ((2, 4), "F32", 32)
    assert (b.shape, b.format.name, b.num_bytes, b.offset - a.offset) == ((32,), "Q4_0", 18, 32)


def test_every_type_is_read_as_the_published_library_reads_it(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    scalars = {
        "uint8": 255,
        "int8": -128,
        "uint16": 65535,
        "int16": -32768,
        "uint32": 2**32 - 1,
        "int32": -(2**31),
        "uint64": 2**64 - 1,
        "int64": -(2**63),
        "float64": 1e-300,
        "bool": True,
        "string": "\N{GRINNING FACE}",
    }
    for kind, value in scalars.items():
        getattr(writer, f"add_{kind}")(f"scalar.{kind}", value)
    writer.add_array("array.ints", [1, -2, 3])
    writer.add_array("array.floats", [0.5, 2.0])
    writer.add_array("array.flags", [True, False])
    writer.add_array("array.texts", ["x", ""])
    writer.add_tensor("matrix", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("halves", np.zeros((2, 3, 5), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = read_header(tmp_path / "model.gguf"), gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert {
        key: list(value) if not isinstance(value, str | bool | int | float) else value for key, value in ours.metadata.items()
    } == fields
    assert [(tensor.name, tensor.offset, tensor.num_bytes) for tensor in ours.tensors.values()] == [
        (tensor.name, tensor.data_offset, tensor.n_bytes) for tensor in theirs.tensors
    ]


@pytest.mark.parametrize("value", [0.0, 1e-5, 1e-6, 0.1, 10000.0, 3.4028234663852886e38, 1e-45, -0.25, 1 / 3])
def test_a_float32_is_the_shortest_number_that_rounds_to_it(value: float, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(gguf_bytes([entry("x", FLOAT32, struct.pack("<f", value))]))
    found = read_header(tmp_path / "model.gguf").metadata["x"]
    assert found == float(str(np.float32(value)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin with GGUF"),
        (b"GGML" + SMALL[4:], "does not begin with GGUF"),
        (gguf_bytes(version=1), "its version is 1"),
        (gguf_bytes(version=4), "its version is 4"),
        (gguf_bytes(version=3 << 24), "version is 3, big-endian"),
        (gguf_bytes(num_tensors=2**63), "number of tensors is 9223372036854775808, the limit"),
        (gguf_bytes(num_entries=2**40), "number of metadata entries is .*, the limit"),
        (gguf_bytes(num_tensors=1000), "number of tensors is 1000, the file has room for"),
        (gguf_bytes([entry("a", UINT8, b"\1"), entry("a", UINT8, b"\2")]), "'a' twice"),
        (gguf_bytes([entry("a", 13, b"\1")]), "unknown type 13"),
        (gguf_bytes([entry("a", BOOL, b"\2")]), "neither 0 nor 1"),
        (gguf_bytes([entry("a", STRING, struct.pack("<Q", 2**62))]), "4611686018427387904 bytes, the limit"),
        (gguf_bytes([entry("a", STRING, struct.pack("<Q", 1000))]), "the file ends within"),
        (gguf_bytes([entry("a", STRING, text(b"\xff"))]), "is not UTF-8"),
        (gguf_bytes([entry("a", ARRAY, array_of(UINT64, 2**61, b""))]), "items of 'a' is .*, the limit"),
        (gguf_bytes([entry("a", ARRAY, array_of(STRING, 1_000_000, b""))]), "items of 'a' is 1000000, the file has room for"),
        (gguf_bytes([entry("a", ARRAY, array_of(ARRAY, 1, b""))]), "array of arrays"),
        (gguf_bytes([entry("general.alignment", UINT32, struct.pack("<I", 48))]), "general.alignment is 48"),
        (gguf_bytes([entry("general.alignment", UINT32, struct.pack("<I", 0))]), "general.alignment is 0"),
        (gguf_bytes([entry("general.alignment", UINT32, struct.pack("<I", 2**31))]), "general.alignment is 2147483648"),
        (gguf_bytes([entry("general.alignment", STRING, text("32"))]), "general.alignment is a str"),
        (gguf_bytes(tensors=[RawTensor("t", ())]), "0 dimensions"),
        (gguf_bytes(tensors=[RawTensor("t", (1,) * 5)]), "5 dimensions"),
        (gguf_bytes(tensors=[RawTensor("t", (0,))]), "must have from 1 to"),
        (gguf_bytes(tensors=[RawTensor("t", (2**32, 2**32))]), "must have from 1 to"),
        (gguf_bytes(tensors=[RawTensor("t", (4,), 5)]), "unknown format 5"),
        (gguf_bytes(tensors=[RawTensor("t", (33,), Q4_0)], data=bytes(99)), "no whole Q4_0 blocks of 32"),
        (gguf_bytes(tensors=[RawTensor("t", (4,), F32, 8)], data=bytes(99)), "no multiple of the alignment, 32"),
        (gguf_bytes(tensors=[RawTensor("t", (4,), F32, 2**63)], data=bytes(99)), "is it cut off"),
        (gguf_bytes(tensors=[RawTensor("t", (4,))], data=bytes(15)), "is it cut off"),
        (gguf_bytes(tensors=[RawTensor("t", (4,)), RawTensor("t", (4,), F32, 32)], data=bytes(99)), "two tensors 't'"),
        (gguf_bytes(tensors=[RawTensor("t", (12,)), RawTensor("u", (4,), F32, 32)], data=bytes(99)), "'t' and 'u' overlap"),
        (gguf_bytes(tensors=[RawTensor("x" * 65, (4,))], data=bytes(99)), "65 bytes, the limit is 64"),
    ],
)
def test_a_hostile_file_is_refused_by_what_is_wrong_with_it(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=message):
        header_of(content, tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=r"absent\.gguf cannot be read: No such file"):
        read_header(tmp_path / "absent.gguf")


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    for length in range(len(SMALL)):
        with pytest.raises(GgufError):
            header_of(SMALL[:length], tmp_path)


def test_flipped_bytes_give_an_error_or_a_header_and_never_cost_memory(tmp_path: Path) -> None:
    generator = random.Random(8)
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(1000):
            content = bytearray(SMALL)
            for _ in range(generator.randint(1, 4)):
                content[generator.randrange(len(content))] = generator.randrange(256)
            try:
                header_of(bytes(content), tmp_path)
            except GgufError:
                refused += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused > 300
    assert peak < 1 << 20
