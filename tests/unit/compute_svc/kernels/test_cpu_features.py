"""What the CPU can do is asked in one place."""

from __future__ import annotations

import torch

from compute_svc.kernels.cpu_features import multiplies_bfloat16
from compute_svc.kernels.linear.cpu import onednn_takes


def test_a_cpu_made_for_bfloat16_has_packed_weights_of_it() -> None:
    assert onednn_takes(torch.bfloat16) or not multiplies_bfloat16()
