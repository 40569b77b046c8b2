"""GPTQ (arXiv 2210.17323): columns are rounded one after the other, and those that come later make up for each one's error."""

from __future__ import annotations

import torch

from compute_svc.quantise.layer_inputs import InputMoments
from compute_svc.quantise.rounding import coded, encode, scales_of
from compute_svc.quantise.scheme import WeightForm
from compute_svc.stored_weights.coded_weight import CodedWeight

# Of the mean of the diagonal, added to it (section 4, "Numerical stability"): ten times as much for every time that it is not enough.
_DAMPING = 0.01
_BLOCK_COLUMNS = 128


def gptq(weight: torch.Tensor, form: WeightForm, moments: InputMoments, scale_dtype: torch.dtype) -> CodedWeight:
    """Codes of a matrix for the inputs that it has.

    Args:
        weight: [N, K] float32; overwritten.
        form: int4 or int8.
        moments: Of its inputs.
        scale_dtype: What scales are rounded to.
    """
    columns = weight.shape[1]
    weight[:, moments.gram.diagonal() == 0] = 0.0
    factor = _inverse_factor(moments.gram)
    group = min(form.group, columns)
    # A group's scales are chosen when all columns before it have been made up for; those of whole rows at the start.
    chosen = [scales_of(weight, form, scale_dtype)] if group == columns else []
    codes = torch.empty(weight.shape, dtype=torch.int8)
    for first in range(0, columns, _BLOCK_COLUMNS):
        last = min(first + _BLOCK_COLUMNS, columns)
        errors = torch.zeros((len(weight), last - first))
        for column in range(first, last):
            if group < columns and column % group == 0:
                chosen.append(scales_of(weight[:, column : column + group].contiguous(), form, scale_dtype))
            scales = chosen[-1]
            exact = weight[:, column : column + 1]
            code = encode(exact[:, :, None], scales, form)[:, :, 0]
            error = (exact - code.float() * scales.float()) / factor[column, column]
            weight[:, column + 1 : last] -= error * factor[column, column + 1 : last]
            codes[:, column : column + 1] = code
            errors[:, column - first : column - first + 1] = error
        weight[:, last:] -= errors @ factor[first:last, last:]
    return coded(codes, torch.cat(chosen, dim=1), form, columns)


def _inverse_factor(gram: torch.Tensor) -> torch.Tensor:
    """[K, K] float32, upper triangular: the Cholesky factor of the damped matrix's inverse."""
    diagonal = gram.diagonal()
    mean = diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
    damping = _DAMPING
    while True:
        damped = gram + torch.diag(torch.where(diagonal == 0, mean, mean * damping))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            inverse, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed):
                factor: torch.Tensor = inverse.float()
                return factor
        damping *= 10.0
