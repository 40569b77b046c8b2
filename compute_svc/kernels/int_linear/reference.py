"""The definition: sums in int64, everything after them in float64 of the weight's own values."""

from __future__ import annotations

import torch

from compute_svc.kernels.quantise_rows import QuantisedRows


def int_linear(rows: QuantisedRows, codes: torch.Tensor, group: int, scales: torch.Tensor, offsets: torch.Tensor | None) -> torch.Tensor:
    """[M, N] float64: each row times each weight.

    Args:
        rows: Of K inputs.
        codes: [N, K] integers.
        group: Inputs that share a scale.
        scales: [N, G].
        offsets: [N, G]; None = zero.
    """
    total = torch.zeros((len(rows.scales), len(codes)), dtype=torch.float64)
    for index, begin in enumerate(range(0, codes.shape[1], group)):
        x, w = rows.codes[:, begin : begin + group].long(), codes[:, begin : begin + group].long()
        row_scales = rows.scales[:, index % rows.scales.shape[1], None].double()
        total += row_scales * scales[:, index].double() * (x[:, None, :] * w).sum(dim=2).double()
        if offsets is not None:
            total += row_scales * offsets[:, index].double() * x.sum(dim=1).double()[:, None]
    return total
