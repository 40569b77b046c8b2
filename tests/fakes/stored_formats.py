"""What published checkpoints mean by their tensors, written from the formats' descriptions: one weight at a time, in plain loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Tensors = Mapping[str, torch.Tensor]
Floats = npt.NDArray[np.float32]


def code_at(words: Any, index: int, bits: int) -> int:
    """The code at an index of a row of 32-bit words; the first has the lowest bits."""
    word = int(words[index * bits // 32]) & 0xFFFFFFFF
    return word >> index * bits % 32 & (1 << bits) - 1


def gptq(t: Tensors, bits: int, group: int, *, less_one: bool) -> Floats:
    """Codes along the inputs, zeros along the outputs, which the first version stores less one."""
    (words, outputs), one_each = t["qweight"].shape, sum(1 << at for at in range(0, 32, bits))
    qweight, qzeros, scales = (t[name].tolist() for name in ("qweight", "qzeros", "scales"))
    inputs = words * 32 // bits
    weights = np.empty((outputs, inputs), np.float32)
    for k in range(inputs):
        g = int(t["g_idx"][k]) if "g_idx" in t else k // group
        zeros = [(word + one_each * less_one) & 0xFFFFFFFF for word in qzeros[g]]
        for n in range(outputs):
            code = code_at([row[n] for row in qweight], k, bits)
            weights[n, k] = np.float32(code - code_at(zeros, n, bits)) * np.float32(scales[g][n])
    return weights


def awq(t: Tensors, group: int) -> Floats:
    """Codes along the outputs, eight in a word in this order."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    qweight, qzeros, scales = (t[name].tolist() for name in ("qweight", "qzeros", "scales"))
    weights = np.empty((len(qweight[0]) * 8, len(qweight)), np.float32)
    for k, row in enumerate(qweight):
        for word in range(len(row)):
            for lane in range(8):
                n = word * 8 + order[lane]
                code, zero = code_at([row[word]], lane, 4), code_at([qzeros[k // group][word]], lane, 4)
                weights[n, k] = np.float32(code - zero) * np.float32(scales[k // group][n])
    return weights


def pack_quantized(t: Tensors, bits: int, group: int) -> Floats:
    """Codes along the inputs, more by half of their range; zeros along the outputs, likewise."""
    outputs, inputs = t["weight_shape"].tolist()
    half = 1 << (bits - 1)
    packed, scales = t["weight_packed"].tolist(), t["weight_scale"].float().tolist()
    zeros = t["weight_zero_point"].t().tolist() if "weight_zero_point" in t else None
    weights = np.empty((outputs, inputs), np.float32)
    for n in range(outputs):
        for k in range(inputs):
            g = int(t["weight_g_idx"][k]) if "weight_g_idx" in t else k // group
            zero = 0 if zeros is None else code_at(zeros[g], n, bits) - half
            weights[n, k] = np.float32(code_at(packed[n], k, bits) - half - zero) * np.float32(scales[n][g])
    return weights


def by_block(codes: torch.Tensor, scales: torch.Tensor, rows: int, columns: int, zeros: torch.Tensor | None = None) -> Floats:
    """One scale, and perhaps one zero, for so many rows and columns."""
    values, factors = codes.float().numpy(), scales.float().numpy()
    weights = np.empty(values.shape, np.float32)
    for n, k in np.ndindex(*values.shape):
        zero = np.float32(0) if zeros is None else np.float32(zeros[n // rows, k // columns])
        weights[n, k] = (values[n, k] - zero) * factors[n // rows, k // columns]
    return weights


def two_of_four(t: Tensors) -> npt.NDArray[Any]:
    """Values row by row where the mask, lowest bit first, has a one."""
    outputs, inputs = t["shape"].flatten().tolist()
    whole = np.zeros((outputs, inputs), np.float32)
    for n in range(outputs):
        values = iter(t["compressed"][n].float().tolist())
        for k in range(inputs):
            if int(t["bitmask"][n, k // 8]) >> k % 8 & 1:
                whole[n, k] = next(values)
    return whole
