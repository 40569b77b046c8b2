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


def bitsandbytes(t: Tensors, shape: tuple[int, int], block: int, nested_block: int | None, offset: float) -> Floats:
    """The upper half of a byte first; one scale for so many numbers, row after row, that may be coded itself."""
    content = t["weight"].contiguous().flatten().view(torch.uint8).tolist()
    table, absmax = t["weight.quant_map"].tolist(), t["weight.absmax"].tolist()
    weights = np.empty(shape[0] * shape[1], np.float32)
    for at in range(weights.size):
        code = content[at // 2] >> 4 if at % 2 == 0 else content[at // 2] & 15
        scale = np.float32(absmax[at // block])
        if nested_block is not None:
            value = np.float32(t["weight.nested_quant_map"][int(scale)])
            scale = value * np.float32(t["weight.nested_absmax"][at // block // nested_block]) + np.float32(offset)
        weights[at] = np.float32(table[code]) * scale
    return weights.reshape(shape)


def bitnet(t: Tensors, *, divides: bool) -> Floats:
    """Two bits for each of four outputs, a quarter of all apart; one less than the code."""
    content, scale = t["weight"].tolist(), np.float32(t["weight_scale"].item())
    quarter, inputs = len(content), len(content[0])
    weights = np.empty((4 * quarter, inputs), np.float32)
    for n, k in np.ndindex(*weights.shape):
        value = np.float32((content[n % quarter][k] >> 2 * (n // quarter) & 3) - 1)
        weights[n, k] = value * (np.float32(1) / scale if divides else scale)
    return weights


def squeezellm(t: Tensors) -> Floats:
    """What the table of its output says of each code, and numbers of compressed sparse rows."""
    words, outputs = t["qweight"].shape
    qweight, tables = t["qweight"].t().tolist(), t["lookup_table"].float().tolist()
    weights = np.empty((outputs, words * 8), np.float32)
    for n, k in np.ndindex(*weights.shape):
        weights[n, k] = np.float32(tables[n][code_at(qweight[n], k, 4)])
    for n in range(outputs if "rows" in t else 0):
        for at in range(int(t["rows"][n]), int(t["rows"][n + 1])):
            weights[n, int(t["cols"][at])] += np.float32(t["vals"][at])
    return weights


def quanto_groups(t: Tensors, bits: int, shape: tuple[int, int]) -> Floats:
    """Groups one behind the other; the bits of a byte belong to as many groups, equally far apart."""
    content, scales, shift = t["weight._data._data"], t["weight._scale"], t["weight._shift"]
    groups = np.empty((len(scales), content.shape[1]), np.float32)
    for row, k in np.ndindex(*groups.shape):
        code = int(content[row % len(content), k]) >> row // len(content) * bits & (1 << bits) - 1
        scale = np.float32(scales[row].item())
        if shift.is_floating_point():
            groups[row, k] = np.float32(code) * scale - np.float32(shift[row].item())
        else:
            groups[row, k] = np.float32(code - int(shift[row])) * scale
    return groups.reshape(shape)
