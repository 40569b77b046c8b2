"""Written references: families that transformers does not ship, computed plainly from what was published of them; knows nothing of this engine."""

from __future__ import annotations

import importlib
import pkgutil

from tests.oracle.references.written_model import ReferenceCase, Streaming, WrittenModel

__all__ = ["CASES", "ReferenceCase", "Streaming", "WrittenModel"]


def _cases() -> tuple[ReferenceCase, ...]:
    names = [info.name for info in pkgutil.iter_modules(__path__) if info.name != "written_model"]
    return tuple(case for name in names for case in importlib.import_module(f"{__name__}.{name}").CASES)


CASES = _cases()
"""Every case there is: each module lists its own."""
