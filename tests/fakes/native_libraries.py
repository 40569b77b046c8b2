"""The native library for each instruction set of this machine."""

from __future__ import annotations

from functools import cache

import pytest

from compute_svc.kernels.cpu_features import InstructionSet, has_instruction_set
from compute_svc.kernels.native import NativeLibrary, checked_library
from compute_svc.kernels.native.compiling import BuildError

INSTRUCTION_SETS: list[InstructionSet] = ["avx512_vnni", "avx2", "portable"]


@cache
def native_libraries() -> list[NativeLibrary]:
    """All that can be built and run here, the best first; skips the test if none can be built."""
    try:
        return [checked_library(one) for one in INSTRUCTION_SETS if has_instruction_set(one)]
    except BuildError as error:
        pytest.skip(f"there are no native kernels here: {error}")


def native_library_for(instruction_set: InstructionSet) -> NativeLibrary:
    """That for an instruction set; skips the test if this CPU lacks it or nothing can be built."""
    if not has_instruction_set(instruction_set):
        pytest.skip(f"this CPU has no {instruction_set}")
    return next(library for library in native_libraries() if library.instruction_set == instruction_set)
