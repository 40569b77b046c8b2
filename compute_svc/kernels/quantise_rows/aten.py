"""torch's own operations, in float32."""

from __future__ import annotations

import torch

from compute_svc.kernels.quantise_rows.rows import QuantisedRows

_LARGEST_CODE = 127.0


def quantise_rows(x: torch.Tensor) -> QuantisedRows:
    """See the public function."""
    wide = x.float()
    scales = wide.abs().amax(dim=1) / _LARGEST_CODE
    usable = (scales > 0.0) & torch.isfinite(scales)
    # Divided by infinity, numbers are zeros; a scale so small that it is rounded itself can give more than the largest code.
    codes = wide / torch.where(usable, scales, torch.inf)[:, None]
    codes = codes.round_().clamp_(-_LARGEST_CODE, _LARGEST_CODE).nan_to_num_(0.0)
    return QuantisedRows(codes.to(torch.int8), scales)
