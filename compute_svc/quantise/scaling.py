"""Which scales to move from a matrix's inputs into it, so that it rounds better: AWQ's for weights, SmoothQuant's for weights and activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compute_svc.quantise.layer_inputs import InputMoments
from compute_svc.quantise.rounding import INT8_MAX, round_weight
from compute_svc.quantise.scheme import WeightForm

# Of what scales are made of; 0 leaves everything as it is.
_POWERS = tuple(step / 10 for step in range(10))
_SMALLEST = 1e-4


def awq_scales(weights: Sequence[torch.Tensor], forms: Sequence[WeightForm], moments: InputMoments) -> torch.Tensor | None:
    """AWQ (arXiv 2306.00978): inputs that are large on average get finer weights.

    Args:
        weights: [N, K] float32, of matrices with the same inputs.
        forms: How each will be stored.
        moments: Of the inputs.

    Returns:
        [K], a power of the mean |x|: that with the least squared error of the products; None = it is best to leave them.
    """
    gram = moments.gram.float()
    sizes = moments.mean_absolute.clamp(min=_SMALLEST)
    best, least = None, torch.inf
    for power in _POWERS:
        scales = _levelled(sizes.pow(power))
        error = 0.0
        for weight, form in zip(weights, forms, strict=True):
            difference = round_weight(weight * scales, form, torch.float32).dense(torch.float32) / scales - weight
            error += float(((difference @ gram) * difference).sum(dtype=torch.float64))
        if error < least:
            best, least = (None if power == 0 else scales), error
    return best


def smooth_scales(weights: Sequence[torch.Tensor], forms: Sequence[WeightForm], moments: InputMoments) -> torch.Tensor | None:
    """SmoothQuant (arXiv 2211.10438), equation 4: outliers among inputs move into the weights, as far as the products of rounded numbers gain by it.

    Args:
        weights: As of `awq_scales`.
        forms: As there.
        moments: As there.

    Returns:
        [K], max |x|^a / max |w|^(1 - a), of that a with the least squared error over sampled rows, each rounded to int8; None = it is best to leave them.
    """
    rows = torch.cat(moments.sample)
    exact = [rows @ weight.t() for weight in weights]
    inputs = moments.largest.clamp(min=_SMALLEST)
    columns = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0).clamp(min=_SMALLEST)
    best, least = None, torch.inf
    for power in _POWERS:
        scales = torch.ones_like(inputs) if power == 0 else _levelled(inputs.pow(power) / columns.pow(1 - power))
        rounded = _rounded_rows(rows / scales)
        error = 0.0
        for weight, form, right in zip(weights, forms, exact, strict=True):
            product = rounded @ round_weight(weight * scales, form, torch.float32).dense(torch.float32).t()
            error += float((product - right).square().sum(dtype=torch.float64))
        if error < least:
            best, least = (None if power == 0 else scales), error
    return best


def _levelled(scales: torch.Tensor) -> torch.Tensor:
    """Around one, so that the numbers that they move between stay of the size they had."""
    return scales / (scales.max() * scales.min()).sqrt()


def _rounded_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows as they are when each is rounded to int8 by itself."""
    steps = rows.abs().amax(dim=1, keepdim=True) / INT8_MAX
    return (rows / torch.where(steps == 0, 1.0, steps)).round_() * steps
