"""torch's own operations, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from compute_svc.kernels.exact_products import divided
from compute_svc.kernels.quantise_rows.rows import Norm, QuantisedRows

_LARGEST_CODE = 127.0


def quantise_rows(x: torch.Tensor, group: int | None) -> QuantisedRows:
    """See the public function."""
    num_rows, num_columns = x.shape
    length = num_columns if group is None else min(group, num_columns)
    num_groups = -(-num_columns // length)
    groups = F.pad(x.float(), (0, num_groups * length - num_columns)).view(num_rows, num_groups, length)
    scales = divided(groups.abs().amax(dim=2), _LARGEST_CODE)
    usable = (scales > 0.0) & torch.isfinite(scales)
    # Divided by infinity, numbers are zeros; a scale so small that it is rounded itself can give more than the largest code.
    codes = groups / torch.where(usable, scales, torch.inf)[:, :, None]
    codes = codes.round_().clamp_(-_LARGEST_CODE, _LARGEST_CODE).nan_to_num_(0.0)
    return QuantisedRows(codes.to(torch.int8).flatten(1)[:, :num_columns].contiguous(), scales)


def normalise(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """[M, K] float32: the mean in float64, so that the order of its sum does not show; the root and both products rounded to float32."""
    wide = x.float()
    mean_square = wide.double().square().mean(dim=1, keepdim=True)
    return wide * mean_square.add_(norm.eps).sqrt_().reciprocal_().float() * norm.weight
