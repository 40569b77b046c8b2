"""Kernels that are wrong on a GPU alone are found where there is none."""

from __future__ import annotations

import pytest
import torch

from tests.triton_device import DEVICE

import triton  # isort: skip  - the interpreter is chosen before
import triton.language as tl  # isort: skip
from triton.runtime.errors import InterpreterError  # isort: skip

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU compute-sanitizer looks for these")


@triton.jit
def copy_kernel(source, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(source + at, mask=at < count, other=0.0), mask=at < count)


@triton.jit
def same_place_kernel(out):
    tl.store(out, tl.program_id(0))


@triton.jit
def neighbour_kernel(out, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    tl.store(out + program, program)
    tl.store(out + 8 + program, tl.load(out + (program + 1) % BLOCK))


@triton.jit
def sum_of_all_kernel(values, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    total = tl.sum(tl.load(values + at))
    tl.debug_barrier()
    tl.store(values + tl.program_id(0), total)


@triton.jit
def sum_by_last_kernel(values, parts, out, counter, COUNT: tl.constexpr, HAS_BARRIER: tl.constexpr):
    program = tl.program_id(0)
    tl.store(parts + program, tl.load(values + program))
    if HAS_BARRIER:
        tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="acq_rel") == COUNT - 1:
        tl.store(out, tl.sum(tl.load(parts + tl.arange(0, COUNT))))


@triton.jit
def reversed_kernel(out, BLOCK: tl.constexpr, HAS_BARRIER: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, at)
    if HAS_BARRIER:
        tl.debug_barrier()
    tl.store(out + BLOCK + at, tl.load(out + BLOCK - 1 - at))


@triton.jit
def turned_kernel(values, BLOCK: tl.constexpr, HAS_BARRIER: tl.constexpr):
    at = tl.arange(0, BLOCK)
    turned = tl.load(values + at) + tl.load(values + BLOCK - 1 - at)
    if HAS_BARRIER:
        tl.debug_barrier()
    tl.store(values + at, turned)


@triton.jit
def doubled_kernel(values, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(values + at, 2 * tl.load(values + at))


@triton.jit
def counted_kernel(counter):
    tl.store(counter, tl.load(counter) + 1)


def test_what_is_masked_may_be_anywhere() -> None:
    source, out = torch.arange(5.0), torch.zeros(5)
    copy_kernel[(2,)](source, out, 5, BLOCK=4)
    assert torch.equal(out, source)


@pytest.mark.parametrize("lacking", ["source", "out"])
def test_an_access_behind_a_tensor_is_found(lacking: str) -> None:
    sizes = {"source": 8, "out": 8, lacking: 7}
    with pytest.raises(InterpreterError, match=r"copy_kernel: program .* accesses"):
        copy_kernel[(2,)](torch.zeros(sizes["source"]), torch.zeros(sizes["out"]), 8, BLOCK=4)


def test_two_programs_that_write_one_place_are_found() -> None:
    with pytest.raises(
        InterpreterError, match=r"same_place_kernel: program .* writes what was written by program .*, and nothing orders them"
    ):
        same_place_kernel[(4,)](torch.zeros(1, dtype=torch.int32))


def test_a_program_that_reads_what_another_one_writes_is_found_in_either_order() -> None:
    with pytest.raises(InterpreterError, match=r"neighbour_kernel: program .* (reads|writes) what was (written|read) by"):
        neighbour_kernel[(4,)](torch.zeros(16, dtype=torch.int32), BLOCK=4)


def test_a_program_that_writes_what_all_read_is_found() -> None:
    with pytest.raises(InterpreterError, match=r"sum_of_all_kernel: program .* (reads|writes) what was (written|read) by"):
        sum_of_all_kernel[(4,)](torch.ones(4), COUNT=4)


def test_the_last_of_all_programs_may_read_what_the_others_wrote_before_they_counted() -> None:
    values, out = torch.arange(8.0), torch.zeros(1)
    sum_by_last_kernel[(8,)](values, torch.zeros(8), out, torch.zeros(1, dtype=torch.int32), COUNT=8, HAS_BARRIER=True)
    assert out.item() == 28


def test_a_count_without_a_barrier_before_it_orders_nothing() -> None:
    with pytest.raises(InterpreterError, match=r"sum_by_last_kernel: program .* reads what was written by program"):
        sum_by_last_kernel[(8,)](
            torch.zeros(8), torch.zeros(8), torch.zeros(1), torch.zeros(1, dtype=torch.int32), COUNT=8, HAS_BARRIER=False
        )


def test_threads_read_each_others_numbers_behind_a_barrier() -> None:
    out = torch.zeros(16, dtype=torch.int32)
    reversed_kernel[(1,)](out, BLOCK=8, HAS_BARRIER=True)
    assert out[8:].tolist() == list(range(7, -1, -1))
    with pytest.raises(InterpreterError, match=r"no barrier is between"):
        reversed_kernel[(1,)](out, BLOCK=8, HAS_BARRIER=False)


def test_threads_write_what_others_read_behind_a_barrier() -> None:
    values = torch.arange(8)
    turned_kernel[(1,)](values, BLOCK=8, HAS_BARRIER=True)
    assert values.tolist() == [7] * 8
    with pytest.raises(InterpreterError, match=r"turned_kernel: program .* writes what its other threads read"):
        turned_kernel[(1,)](values, BLOCK=8, HAS_BARRIER=False)
    with pytest.raises(InterpreterError, match=r"counted_kernel: program .* writes what its other threads read"):
        counted_kernel[(1,)](values)


def test_a_thread_may_write_what_it_has_read() -> None:
    values = torch.arange(8)
    doubled_kernel[(1,)](values, BLOCK=8)
    assert values.tolist() == list(range(0, 16, 2))


def test_programs_run_in_no_order() -> None:
    orders = set()
    for _ in range(3):
        order = torch.zeros(8, dtype=torch.int32)
        order_kernel[(8,)](order, torch.zeros(1, dtype=torch.int32))
        orders.add(tuple(order.tolist()))
    assert len(orders) > 1 and all(sorted(order) == list(range(8)) for order in orders)


@triton.jit
def order_kernel(order, counter):
    tl.store(order + tl.program_id(0), tl.atomic_add(counter, 1))
