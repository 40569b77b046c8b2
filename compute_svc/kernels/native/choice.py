"""Whether the library is used in this process."""

from __future__ import annotations

import logging
from functools import cache

from compute_svc.kernels.cpu_features import InstructionSet, instruction_set
from compute_svc.kernels.native.compiling import BuildError
from compute_svc.kernels.native.known_answers import check_known_answers
from compute_svc.kernels.native.library import KnownAnswerError, NativeKernelsError, NativeLibrary, NativeMode, load_library

_log = logging.getLogger(__name__)

_mode: NativeMode = "auto"


def use_native_kernels(mode: NativeMode) -> None:
    """Says whether this process uses the library: as soon as it can, never, or always.

    Raises:
        NativeKernelsError: It is required and cannot be used.

    Effects: on the whole process; weights already packed keep their layout.
    """
    global _mode
    _mode = mode
    native_library.cache_clear()
    if mode != "off":
        native_library()


@cache
def native_library() -> NativeLibrary | None:
    """The library for this CPU, built if it has to be; None = torch's own operations compute.

    Raises:
        NativeKernelsError: It is required and cannot be used.

    Effects: the first call may run a compiler, for some seconds; the log says, once, what was chosen and why.
    """
    if _mode == "off":
        _log.info("native kernels are off")
        return None
    try:
        library = checked_library(instruction_set())
    except (BuildError, KnownAnswerError, OSError, AttributeError) as error:
        if _mode == "required":
            raise NativeKernelsError(f"COMPUTE_NATIVE_KERNELS is required, but they cannot be used: {error}") from error
        _log.warning("torch's own operations compute, not native kernels, which cannot be used: %s", error)
        return None
    _log.info("native kernels compute, for %s", library.instruction_set)
    return library


@cache
def checked_library(built_for: InstructionSet) -> NativeLibrary:
    """The library for an instruction set that this CPU has, its known answers checked.

    Raises:
        BuildError: It cannot be built.
        OSError: It cannot be loaded.
        AttributeError: It lacks a function.
        KnownAnswerError: It computes wrongly here.
    """
    library = load_library(built_for)
    check_known_answers(library)
    return library
