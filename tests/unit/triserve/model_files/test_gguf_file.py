"""A split model is one model; metadata are asked for by type."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.fakes.gguf_bytes import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT16, UINT32, RawTensor, array_of, entry, gguf_bytes, text
from triserve.model_files.gguf_file import gguf_of, open_gguf
from triserve.model_files.gguf_header import GgufError


def write_part(
    folder: Path, number: int, count: int, *, tensor: str, says: tuple[int, int] | None = None, total: int | None = None
) -> Path:
    told, of = says or (number - 1, count)
    entries = [entry("split.no", UINT16, struct.pack("<H", told)), entry("split.count", UINT16, struct.pack("<H", of))]
    if total is not None:
        entries.append(entry("split.tensors.count", INT32, struct.pack("<i", total)))
    if number == 1:
        entries.append(entry("general.architecture", STRING, text("llama")))
    path = folder / f"m-{number:05d}-of-{count:05d}.gguf"
    path.write_bytes(gguf_bytes(entries, [RawTensor(tensor, (2,))], data=bytes(8)))
    return path


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_any_part_of_a_split_model_opens_all_of_it(asked: int, tmp_path: Path) -> None:
    paths = [write_part(tmp_path, number, 3, tensor=f"t{number}", total=3) for number in (1, 2, 3)]
    file = open_gguf(paths[asked - 1])
    assert file.architecture == "llama"
    assert {name: tensor.path for name, tensor in file.tensors.items()} == {f"t{number}": paths[number - 1] for number in (1, 2, 3)}
    assert gguf_of(tmp_path) == paths[0]


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    path = write_part(tmp_path, 1, 2, tensor="t")
    with pytest.raises(GgufError, match=r"part m-00002-of-00002\.gguf is not beside it"):
        open_gguf(path)


def test_a_part_of_another_model_is_refused(tmp_path: Path) -> None:
    path = write_part(tmp_path, 1, 2, tensor="a")
    write_part(tmp_path, 2, 2, tensor="b", says=(0, 2))
    with pytest.raises(GgufError, match="does not say that it is part 2 of 2"):
        open_gguf(path)


def test_tensors_that_two_parts_hold_or_none_are_refused(tmp_path: Path) -> None:
    path = write_part(tmp_path, 1, 2, tensor="a", total=3)
    write_part(tmp_path, 2, 2, tensor="b")
    with pytest.raises(GgufError, match="hold 2 tensors, it says 3"):
        open_gguf(path)
    write_part(tmp_path, 2, 2, tensor="a")
    with pytest.raises(GgufError, match="tensor 'a', which another part holds too"):
        open_gguf(path)


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    path = write_part(tmp_path, 1, 2, tensor="a").rename(tmp_path / "m.gguf")
    with pytest.raises(GgufError, match="split into 2 files, but its name is not"):
        open_gguf(path)


def test_a_folder_of_several_models_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(gguf_bytes())
    with pytest.raises(GgufError, match=r"several GGUF models, a\.gguf and b\.gguf"):
        gguf_of(tmp_path)
    assert gguf_of(tmp_path / "none") is None


def test_metadata_of_another_type_or_range_are_refused_by_their_key(tmp_path: Path) -> None:
    entries = [
        entry("text", STRING, text("x")),
        entry("flag", BOOL, b"\1"),
        entry("zero", UINT32, bytes(4)),
        entry("nan", FLOAT32, struct.pack("<f", float("nan"))),
        entry("flags", ARRAY, array_of(BOOL, 1, b"\1")),
        entry("ints", ARRAY, array_of(INT32, 1, bytes(4))),
    ]
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(entries))
    file = open_gguf(tmp_path / "m.gguf")
    for call, key in (
        (file.count, "text"),
        (file.count, "flag"),
        (file.count, "zero"),
        (file.number, "nan"),
        (file.flag, "zero"),
        (file.text, "zero"),
        (file.texts, "ints"),
        (file.counts, "flags"),
        (file.numbers, "text"),
        (file.counts, "absent"),
    ):
        with pytest.raises(GgufError, match=key):
            call(key)
    assert (file.text("text"), file.flag("flag"), file.count("zero", at_least=0), file.count("absent", 7)) == ("x", True, 0, 7)
