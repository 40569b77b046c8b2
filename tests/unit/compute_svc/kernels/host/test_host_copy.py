"""What goes to a device and comes back is what was sent, in as few copies as there can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.kernels.host import host_copy
from compute_svc.kernels.host.host_copy import PendingRead, rows_of, to_device

CPU = torch.device("cpu")
META = torch.device("meta")


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6), st.integers(0, 1 << 30))
def test_arrays_arrive_whole_and_keep_nothing_of_the_host(shapes: list[tuple[int, int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    arrays = [random.integers(-(1 << 60), 1 << 60, shape) for shape in shapes]
    sent = [array.copy() for array in arrays]
    tensors = to_device(arrays, CPU)
    for array in arrays:
        array[:] = 0
    assert [tensor.numpy().tolist() for tensor in tensors] == [array.tolist() for array in sent]
    assert [tuple(tensor.shape) for tensor in tensors] == shapes


def test_slices_of_larger_arrays_arrive_as_they_look() -> None:
    table = np.arange(20).reshape(4, 5)
    columns, rows = to_device([table[:, 1:3], table[::2]], CPU)
    assert columns.tolist() == table[:, 1:3].tolist() and rows.tolist() == table[::2].tolist()


def test_copies_that_nobody_waits_for_are_made_here_alone() -> None:
    """Elsewhere the memory would not be pinned, and the copy would wait after all."""
    sources = Path(host_copy.__file__).parent.rglob("*.py")
    assert {path.name for path in sources if "non_blocking" in path.read_text()} == {"host_copy.py"}


def test_reads_keep_every_bit() -> None:
    floats = torch.tensor([[1.5, -0.0], [torch.inf, torch.nan], [1e-42, -torch.inf]])
    ids = torch.tensor([[0], [(1 << 31) - 1], [7]])
    read_floats, read_ids, read_transposed = PendingRead(floats, ids, floats.flip(1)).take()
    assert read_floats.tobytes() == floats.numpy().tobytes() and read_floats.dtype == np.float32
    assert read_ids.tolist() == ids.tolist() and read_ids.dtype == np.int64
    assert read_transposed.tobytes() == floats.numpy()[:, ::-1].tobytes()


def test_rows_are_copies_in_the_order_asked_for() -> None:
    values = torch.arange(12.0).view(4, 3)
    rows = rows_of(values, [3, 1, 3])
    values.zero_()
    assert rows.tolist() == [[9, 10, 11], [3, 4, 5], [9, 10, 11]]
    assert rows_of(values.to(META), [3, 1]).shape == (2, 3)
