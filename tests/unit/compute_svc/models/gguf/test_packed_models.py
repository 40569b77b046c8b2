"""A model whose matrices are packed in blocks computes what the numbers in its blocks say, in every format and architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compute_svc.models.gguf.dequantise import READABLE_FORMATS
from compute_svc.models.gguf.model import ARCHITECTURES as READ
from tests.fakes.gguf_packing import FORMATS
from tests.gguf_table import ARCHITECTURES, RESULTS, is_equal


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_matrices_of_every_format_compute_as_their_numbers_do(architecture: str, tmp_path: Path) -> None:
    # By turns: each architecture meets most of the formats here, the table all of them.
    assert is_equal(architecture, FORMATS[ARCHITECTURES.index(architecture) % 3 :], tmp_path)


def test_the_table_has_every_architecture_and_format_and_no_difference() -> None:
    table = json.loads(RESULTS.read_text())
    assert {name.split(" ")[0] for name in table} == set(READ)
    assert all(set(row) == set(FORMATS) and set(row.values()) == {"equal"} for row in table.values())
    # Formats of which neither the library nor a test can make sensible blocks are not in it.
    assert READABLE_FORMATS - set(FORMATS) == {"F64", "IQ1_M", "MXFP4", "NVFP4"}
