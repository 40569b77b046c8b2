"""A batch, or the rows of a decode step, as bytes, so that every rank computes the same."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.engine.steps.decode_graphs import DecodeRows
from compute_svc.layers.forward_batch import ForwardBatch

_Array = npt.NDArray[np.int64]

# What a batch has as tensors, as tuples and as numbers; a page table has two dimensions.
_TENSORS = ("token_ids", "positions", "slots", "page_table", "logit_rows", "begun_pages", "hidden_rows")
_TUPLES = ("query_starts", "kv_lengths")
_NUMBERS = ("num_decodes", "position_limit")
_NONE = -1

assert {field.name for field in fields(ForwardBatch)} == {*_TENSORS, *_TUPLES, *_NUMBERS}, "all of a batch is sent"


def encode_batch(batch: ForwardBatch) -> bytes:
    """A batch whose tensors are on the host: numbers, lengths, then all that has lengths, int64 as this machine has them."""
    arrays = [_array(getattr(batch, name)) for name in (*_TENSORS, *_TUPLES)]
    lengths = [_NONE if array is None else array.size for array in arrays]
    head = np.array([*(getattr(batch, name) for name in _NUMBERS), len(batch.page_table), *lengths], dtype=np.int64)
    return np.concatenate([head, *(array.reshape(-1) for array in arrays if array is not None)]).tobytes()


def decode_batch(data: bytes) -> ForwardBatch:
    """What `encode_batch` was given; on the host, in memory of its own."""
    words = np.frombuffer(bytearray(data), dtype=np.int64)
    num_numbers, names = len(_NUMBERS), (*_TENSORS, *_TUPLES)
    numbers = dict(zip(_NUMBERS, words[:num_numbers].tolist(), strict=True))
    num_requests = int(words[num_numbers])
    lengths = words[num_numbers + 1 : num_numbers + 1 + len(names)].tolist()
    at = num_numbers + 1 + len(names)
    parts: dict[str, _Array | None] = {}
    for name, length in zip(names, lengths, strict=True):
        parts[name] = None if length == _NONE else words[at : at + length]
        at += max(0, length)
    tensors = {name: None if (part := parts[name]) is None else torch.from_numpy(part) for name in _TENSORS}
    table = tensors["page_table"]
    assert table is not None, "every batch has pages"
    tensors["page_table"] = table.view(num_requests, -1)
    tuples = {name: tuple(part.tolist()) for name in _TUPLES if (part := parts[name]) is not None}
    return ForwardBatch(**tensors, **tuples, **numbers)  # type: ignore[arg-type]  # by name, as the assertion above says


def encode_rows(rows: DecodeRows) -> bytes:
    """Rows of a decode step: how many, then their columns and their pages."""
    count = np.array([len(rows.positions)], dtype=np.int64)
    return np.concatenate([count, rows.positions, rows.slots, rows.kv_lengths, rows.page_table.reshape(-1)]).tobytes()


def decode_rows(data: bytes) -> DecodeRows:
    """What `encode_rows` was given."""
    words = np.frombuffer(data, dtype=np.int64)
    count = int(words[0])
    positions, slots, kv_lengths = words[1 : 1 + 3 * count].reshape(3, count)
    return DecodeRows(positions, slots, kv_lengths, words[1 + 3 * count :].reshape(count, -1))


def _array(value: torch.Tensor | tuple[int, ...] | None) -> _Array | None:
    if value is None:
        return None
    return value.numpy() if isinstance(value, torch.Tensor) else np.array(value, dtype=np.int64)
