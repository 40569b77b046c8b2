"""Batches: decodes first, every token where its page is, logits where they are wanted."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.engine.steps.batch_builder import BatchBuilder
from compute_svc.layers.forward_batch import ForwardBatch, begun_pages
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.request import Request

CONFIG = SchedulerConfig(4, 32, 64, 16, 4, 4)


def _submit(scheduler: Scheduler, number: int, prompt: list[int]) -> None:
    scheduler.submit(Request(number, "", np.array(prompt, dtype=np.int64), np.empty(0, np.int64), 8, 0.0))


def test_a_merge_step_holds_decodes_then_chunks() -> None:
    scheduler = Scheduler(CONFIG)
    builder = BatchBuilder(CONFIG, scheduler.memory.slots, torch.device("cpu"))
    _submit(scheduler, 1, [10, 11, 12, 13])
    plan = scheduler.step(0.0)
    batch = builder.build(plan)
    assert (batch.num_decodes, batch.query_starts, batch.kv_lengths) == (0, (0, 4), (4,))
    assert batch.logit_rows.tolist() == [3]
    assert batch.slots.tolist() == [0, 1, 2, 3]
    scheduler.complete(plan)
    plan.prefills[0].state.append(14)
    _submit(scheduler, 2, [20, 21, 22])
    _submit(scheduler, 3, list(range(30, 50)))
    batch = builder.build(scheduler.step(0.0))
    assert batch.num_decodes == 1
    assert batch.query_starts == (0, 1, 4, 16)
    assert batch.kv_lengths == (5, 3, 12)
    assert batch.token_ids.tolist() == [14, 20, 21, 22, *range(30, 42)]
    assert batch.positions.tolist() == [4, 0, 1, 2, *range(12)]
    # The third request's prompt goes on, so only the others' last rows are wanted.
    assert batch.logit_rows.tolist() == [0, 3]
    assert batch.page_table.shape == (3, 3)
    owners = [0, 1, 1, 1] + [2] * 12
    expected = [
        int(batch.page_table[owner, position // 4]) * 4 + position % 4
        for owner, position in zip(owners, batch.positions.tolist(), strict=True)
    ]
    assert batch.slots.tolist() == expected
    assert len(set(expected)) == 16


def test_rows_of_the_page_table_are_padded_with_zeros_also_after_use() -> None:
    scheduler = Scheduler(CONFIG)
    builder = BatchBuilder(CONFIG, scheduler.memory.slots, torch.device("cpu"))
    _submit(scheduler, 1, list(range(16)))
    scheduler.complete(scheduler.step(0.0))
    scheduler.release(1)
    _submit(scheduler, 2, [20, 21, 22])
    _submit(scheduler, 3, list(range(30, 42)))
    batch = builder.build(scheduler.step(0.0))
    assert batch.page_table[0, 1:].tolist() == [0, 0]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=5), st.integers(1, 5))
def test_begun_pages_are_those_that_get_their_first_token_and_not_their_last(requests: list[tuple[int, int]], page_size: int) -> None:
    lengths = [computed + count for computed, count in requests]
    table = np.arange(len(requests) * 30).reshape(len(requests), 30)
    expected = [
        int(table[request, page])
        for request, (computed, count) in enumerate(requests)
        for page in range(30)
        if computed <= page * page_size < computed + count < (page + 1) * page_size
    ]
    assert begun_pages(table, [count for _, count in requests], lengths, page_size).tolist() == expected


def test_a_device_gets_what_the_cpu_gets() -> None:
    def batch(device: torch.device) -> ForwardBatch:
        scheduler = Scheduler(CONFIG)
        builder = BatchBuilder(CONFIG, scheduler.memory.slots, device)
        _submit(scheduler, 1, [10, 11, 12, 13, 14])
        _submit(scheduler, 2, [20, 21, 22])
        return builder.build(scheduler.step(0.0))

    on_cpu, elsewhere = batch(torch.device("cpu")), batch(torch.device("meta"))
    for field in fields(ForwardBatch):
        ours, theirs = getattr(on_cpu, field.name), getattr(elsewhere, field.name)
        if isinstance(ours, torch.Tensor):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype) and theirs.device.type == "meta"
        else:
            assert ours == theirs
    assert on_cpu.begun_pages.tolist() == [int(on_cpu.page_table[0, 1]), int(on_cpu.page_table[1, 0])]
