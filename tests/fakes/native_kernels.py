"""The native library in tests: for each instruction set that this CPU has, where there is a compiler."""

from __future__ import annotations

from typing import get_args

import pytest

from compute_svc.kernels.cpu_features import InstructionSet, has_instruction_set, instruction_set
from compute_svc.kernels.native import NativeLibrary, checked_library
from compute_svc.kernels.native.build import BuildError

INSTRUCTION_SETS: tuple[InstructionSet, ...] = get_args(InstructionSet)


def library_or_skip(built_for: InstructionSet | None = None) -> NativeLibrary:
    """The library for an instruction set, the CPU's best by default; skips the test where there can be none."""
    wanted = instruction_set() if built_for is None else built_for
    if not has_instruction_set(wanted):
        pytest.skip(f"this CPU has no {wanted}")
    try:
        return checked_library(wanted)
    except BuildError as error:
        pytest.skip(str(error))
