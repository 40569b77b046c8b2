"""The definition: rows in float32 operations, products in float64."""

from __future__ import annotations

import torch

from compute_svc.kernels.exact_products import divided
from compute_svc.kernels.quantise_rows import QuantisedRows


def quantise_rows_to_fp8(x: torch.Tensor, group: int | None) -> QuantisedRows:
    """See the public function."""
    num_rows, num_columns = x.shape
    length = num_columns if group is None else min(group, num_columns)
    num_groups = -(-num_columns // length)
    groups = torch.nn.functional.pad(x.float(), (0, num_groups * length - num_columns)).view(num_rows, num_groups, length)
    scales = divided(groups.abs().amax(dim=2), 448.0)
    usable = (scales > 0.0) & torch.isfinite(scales)
    quotients = groups / torch.where(usable, scales, torch.inf)[:, :, None]
    codes = quotients.nan_to_num_(0.0).clamp_(-448.0, 448.0).to(torch.float8_e4m3fn)
    return QuantisedRows(codes.flatten(1)[:, :num_columns].contiguous(), scales)


def fp8_linear(rows: QuantisedRows, codes: torch.Tensor, group: int, scales: torch.Tensor) -> torch.Tensor:
    """[M, N] float64: each row times each weight; codes [N, K], scales [N, G]."""
    of_input = torch.arange(codes.shape[1]) // group
    x = rows.codes.double() * rows.scales.double()[:, of_input % rows.scales.shape[1]]
    return x @ (codes.double() * scales.double()[:, of_input]).t()
