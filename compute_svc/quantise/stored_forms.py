"""The tensors that a quantised matrix becomes in a file: those of compressed-tensors, or of bitsandbytes for nf4."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from compute_svc.quantise.nf4 import NESTED_GROUP, nested_absmax
from compute_svc.quantise.scheme import WeightForm
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import BITS, NF4, pack_codes

_PACKED_BITS = 32


def is_packed(form: WeightForm) -> bool:
    """Whether compressed-tensors calls its layout "pack-quantized": several codes in an integer of 32 bits."""
    return form.code == "int4" or (form.code == "int8" and form.activations == "float")


def compressed_tensors(name: str, weight: CodedWeight, *, packed: bool) -> dict[str, torch.Tensor]:
    """What stands for a matrix in compressed-tensors' layouts.

    Args:
        name: Of the module, without ".weight".
        weight: Integers or fp8.
        packed: See `is_packed`.
    """
    scales = {f"{name}.weight_scale": weight.scales}
    if not packed:
        return {f"{name}.weight": weight.codes().contiguous()} | scales
    bits = BITS[weight.code]
    # Unsigned codes, the first in the lowest bits; a row that does not fill its last integer ends in zeros.
    unsigned = (weight.codes().to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    unsigned = torch.nn.functional.pad(unsigned, (0, -weight.num_columns % (_PACKED_BITS // bits)))
    data = pack_codes(unsigned, bits).view(torch.int32)
    return {f"{name}.weight_packed": data, **scales, f"{name}.weight_shape": torch.tensor([weight.out_features, weight.num_columns])}


def bitsandbytes(name: str, weight: CodedWeight, *, nested: bool, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What stands for a matrix in bitsandbytes' layout.

    Args:
        name: Of the module, without ".weight".
        weight: nf4.
        nested: Whether its scales are quantised.
        dtype: Of what the matrix was, which it tells.
    """
    state: dict[str, object] = {
        "quant_type": "nf4",
        "blocksize": weight.group,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": [weight.out_features, weight.in_features],
    }
    data = weight.data
    # The first of two codes has the high half of a byte there, the low half here.
    tensors = {"": ((data << 4) | (data >> 4)).flatten()[:, None], ".quant_map": torch.tensor(NF4)}
    if nested:
        inner = nested_absmax(weight.scales)
        state |= {"nested_blocksize": NESTED_GROUP, "nested_dtype": "float32", "nested_offset": inner.offset}
        tensors |= {".absmax": inner.codes, ".nested_absmax": inner.scales, ".nested_quant_map": inner.table}
    else:
        tensors |= {".absmax": weight.scales.flatten()}
    tensors[".quant_state.bitsandbytes__nf4"] = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
    return {f"{name}.weight{ending}": tensor.contiguous() for ending, tensor in tensors.items()}


def as_stored(weight: CodedWeight, *, nested: bool) -> CodedWeight:
    """A weight with the numbers that whoever reads it gets: those of nested scales in place of the scales."""
    if not nested:
        return weight
    return replace(weight, scales=nested_absmax(weight.scales).dense().view_as(weight.scales))
