"""SqueezeLLM: codes of four bits in words along the inputs, a table of values for each output, and numbers of sparse rows to add."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from compute_svc.models.config_fields import ConfigFields
from compute_svc.models.quantised.coded_tensor import CodedTensor, RawReader
from compute_svc.models.quantised.packing import packed_words
from compute_svc.models.quantised.parts import FLOATS, Parts, modules_with
from compute_svc.models.weights import CheckpointError, TensorInfo
from compute_svc.stored_weights.coded_weight import CodedWeight, SparsePart

_BITS = 4
_SPARSE = ("rows", "cols", "vals")
# Where threads begin.
_UNREAD = "startrows"


def coded_tensors(fields: ConfigFields, tensors: Mapping[str, TensorInfo], raw: RawReader) -> dict[str, CodedTensor]:
    """See `quantised.coded_tensors`."""
    bits = fields.count("wbits" if "wbits" in fields else "bits", _BITS)
    if bits != _BITS:
        raise CheckpointError(f"{fields.place}: wbits is {bits}; SqueezeLLM of {_BITS} bits is read")
    return {f"{module}.weight": _coded(Parts(module, tensors, fields.place)) for module in modules_with("lookup_table", tensors)}


def _coded(parts: Parts) -> CodedTensor:
    words, outputs = parts.shape("qweight", "I32", dims=2)
    inputs = words * 32 // _BITS
    parts.require("lookup_table", (outputs, 1 << _BITS), *FLOATS)
    if parts.has("full_rows"):
        raise parts.error("full_rows", "(whole rows beside the codes) is not supported")
    if any(map(parts.has, _SPARSE)):
        parts.require("rows", (outputs + 1,), "I32", "I64")
        parts.require("vals", parts.shape_of("cols", "I32", "I64"), *FLOATS)
        if len(parts.shape_of("cols", "I32", "I64")) != 1:
            raise parts.error("cols", "must have one dimension")
    names = parts.present("qweight", "lookup_table", *_SPARSE, _UNREAD)
    return CodedTensor((outputs, inputs), "tables of 16", names, partial(_read, parts), use="numbers")


def _read(parts: Parts, raw: RawReader) -> CodedWeight:
    words = parts.read(raw, "qweight")
    inputs, outputs = words.shape[0] * 32 // _BITS, words.shape[1]
    return CodedWeight(
        code="uint4",
        data=packed_words(words.t(), _BITS, inputs),
        num_columns=inputs,
        group=inputs,
        scales=torch.ones(outputs, 1),
        table=parts.numbers(raw, "lookup_table").float().clone(),
        sparse=_sparse(parts, inputs, raw) if parts.has("rows") else None,
    )


def _sparse(parts: Parts, inputs: int, raw: RawReader) -> SparsePart:
    starts, columns = parts.read(raw, "rows").long(), parts.read(raw, "cols").long()
    if int(starts[0]) or int(starts[-1]) != len(columns) or bool((starts.diff() < 0).any()):
        raise parts.error("rows", f"must rise from 0 to the {len(columns)} numbers of cols")
    if len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < inputs:
        raise parts.error("cols", f"must be from 0 to {inputs - 1}")
    return SparsePart(starts.clone(), columns.clone(), parts.numbers(raw, "vals").float().clone())
