from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tokenizer_svc.calibration_ids import read_ids

TINY = Path(__file__).parents[2] / "tiny_model"


def test_ids_are_the_first_of_the_text_and_nothing_is_added(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("Über die Brücke, and back again. " * 40, encoding="utf-8")
    expected = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(text.read_text("utf-8"), add_special_tokens=False).ids
    assert read_ids(TINY, text, 100).tolist() == expected[:100]
    assert read_ids(TINY, text, 10_000).tolist() == expected


def test_a_long_text_is_cut_between_characters(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"a" + "ü".encode() * 100)
    assert len(read_ids(TINY, text, 1)) == 1


def test_what_is_not_utf_8_is_refused_by_its_place(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"plain \xff text")
    with pytest.raises(ValueError, match="is not UTF-8: invalid start byte at byte 6"):
        read_ids(TINY, text, 100)
