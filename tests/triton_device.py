"""Where tests run Triton kernels: on the GPU if there is one, else in Triton's interpreter. Import it before Triton."""

from __future__ import annotations

import os
import sys

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if DEVICE.type == "cpu":
    assert "triton" not in sys.modules or os.environ.get("TRITON_INTERPRET") == "1", "Triton looks for its interpreter when it is imported"
    os.environ["TRITON_INTERPRET"] = "1"
