"""Every Triton kernel compiles for Hopper, and fits into it; `python -m tests.ahead_of_time` has more shapes, and older GPUs, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CAPABILITY, SHARED_LIMIT = 90, 227 << 10


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_kernel_fits_into_registers_and_shared_memory() -> None:
    # In a process of its own: what the interpreter has loaded cannot be compiled.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ahead_of_time", "--one-of-each", "--capability", str(CAPABILITY)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows, "there are kernels"
    for row in rows:
        assert row["spilled_bytes"] == 0, f"spills: {row}"
        assert row["shared_bytes"] <= SHARED_LIMIT, f"too much shared memory: {row}"
        assert not row["is_serialised"], f"matrix instructions wait for each other: {row}"
        assert set(row["wanted_instructions"]) <= set(row["instructions"]), f"a slow path: {row}"
