"""torch's own operations, in float32."""

from __future__ import annotations

import torch

from compute_svc.kernels.quantise_rows.rows import Norm, QuantisedRows

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


def normalise(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """[M, K] float32: the mean in float64, so that the order of its sum does not show; the root and both products rounded to float32."""
    wide = x.float()
    mean_square = wide.double().square().mean(dim=1, keepdim=True)
    return wide * mean_square.add_(norm.eps).sqrt_().reciprocal_().float() * norm.weight
