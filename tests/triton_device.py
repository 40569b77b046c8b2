"""Where tests run Triton kernels: on the GPU if there is one, else in Triton's interpreter. Import it before Triton."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if DEVICE.type == "cpu":
    assert "triton" not in sys.modules or os.environ.get("TRITON_INTERPRET") == "1", "Triton looks for its interpreter when it is imported"
    os.environ["TRITON_INTERPRET"] = "1"

    from triton.runtime.interpreter import InterpretedFunction  # the setting is read by its import

    from tests import triton_sanitizer
    from tests.triton_interpreter import hasten

    hasten()
    triton_sanitizer.install()
    _run = InterpretedFunction.run

    def _run_as_compiled(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        """The interpreter takes any number of warps and stages; a compiler does not."""
        warps, stages = options.get("num_warps", 4), options.get("num_stages", 3)
        assert warps in (1, 2, 4, 8, 16, 32), f"num_warps is {warps}, no power of two up to 32"
        assert 1 <= stages <= 8, f"num_stages is {stages}"
        return _run(self, *arguments, grid=grid, warmup=warmup, **options)

    InterpretedFunction.run = _run_as_compiled
