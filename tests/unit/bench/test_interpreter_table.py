"""What the interpreter's table says of every kernel, it says of kernels as they are."""

from __future__ import annotations

import json

import pytest

from tests.interpreter_table import RESULTS, table
from tests.triton_device import DEVICE


@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type != "cpu", reason="there is a real device")
def test_every_kernel_is_near_its_reference_and_in_the_table() -> None:
    rows = list(table())
    assert not [row for row in rows if "failed" in row]
    kept = json.loads(RESULTS.read_text())["rows"]
    names = [[(row["part"], row["name"], row["load"], row["who"]) for row in some] for some in (rows, kept)]
    assert names[0] == names[1], "run python -m tests.interpreter_table"
