"""The built library in this process, and whether it is used."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from compute_svc.kernels.cpu_features import InstructionSet
from compute_svc.kernels.native.compiling import find_library

NativeMode = Literal["auto", "off", "required"]

_log = logging.getLogger(__name__)

# Numbers of the number formats that the library reads and writes: `DType` of source/common.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1}

# Types of arguments: x, its dtype, rows, columns and groups, what it is normalised by, codes, scales, threads.
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
QUANTISE_ROWS = (_POINTER, _NUMBER, _NUMBER, _NUMBER, _NUMBER, _POINTER, ctypes.c_double, _POINTER, _POINTER, _NUMBER)


class NativeKernelsError(ValueError):
    """The library is required and cannot be used; the message names the setting and the reason."""


class KnownAnswerError(Exception):
    """A function of the library gives a wrong answer on this machine; the message names it."""


class NativeLibrary:
    """Functions of a built library, which run on torch's own threads.

    Attributes:
        instruction_set: What it was built for.
        path: Its file.
        uses_threads: Whether it runs on torch's threads, or on the calling one alone.
    """

    def __init__(self, path: Path, built_for: InstructionSet) -> None:
        """Loads it, into no namespace but its own.

        Raises:
            OSError: The file is not a library for this machine.
        """
        self.instruction_set = built_for
        self.path = path
        self._library = ctypes.CDLL(str(path))
        start = self.function("triserve_use_threads_of", (ctypes.c_void_p,))
        parallel = _gomp_parallel()
        start(parallel)
        self.uses_threads = parallel is not None

    def function(self, name: str, argument_types: Sequence[type]) -> Callable[..., None]:
        """A function by its name. Resolve it once: that is what makes a call cheap.

        Raises:
            AttributeError: There is none of that name.
        """
        found = self._library[name]
        found.argtypes = list(argument_types)
        found.restype = None
        return found


@cache
def _gomp_parallel() -> int | None:
    """The address of GOMP_parallel in the OpenMP that torch computes with; None = it has none, and the library stays on one thread.

    Looked up among what torch itself is linked with: a second OpenMP in the process would spin against the first.
    """
    torch_library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    try:
        return ctypes.cast(torch_library.GOMP_parallel, ctypes.c_void_p).value
    except AttributeError:
        _log.warning("native kernels run on one thread: torch's OpenMP has no GOMP_parallel")
        return None


@cache
def load_library(built_for: InstructionSet) -> NativeLibrary:
    """The library for an instruction set, which this CPU must have.

    Raises:
        BuildError: It is nowhere and cannot be built.
        OSError: It cannot be loaded.
    """
    return NativeLibrary(find_library(built_for), built_for)
