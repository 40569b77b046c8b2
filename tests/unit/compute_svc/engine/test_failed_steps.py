"""A step that fails costs the requests it was to compute and nobody else; what is not finite is never kept."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from compute_svc.engine.engine import MAX_FAILED_STEPS, Engine, StepsFail
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch
from compute_svc.scheduler.base import RequestState, SchedulerConfig
from compute_svc.scheduler.policies.first_come import FirstComeFirstServed
from compute_svc.scheduler.policies.policy import Policy
from compute_svc.wire.step_output import Pinned
from tests.fakes.engine_reader import GREEDY, TOP_3, WIDTH, Reader, answer_alone, request_of, small_engine
from tests.fakes.hash_model import HashModel, hash_kv
from tests.fakes.unreliable_model import Fault, UnreliableModel
from triserve.rpc.errors import Internal, InvalidRequest
from triserve.rpc.sampling import Sampling

RAISING: tuple[Fault, ...] = ("no memory", "half written", "a row is missing")


class AbsurdModel:
    """Writes ids as KV, gives logits by the last token, and no finite ones to a request with a 9 among its tokens.

    Args:
        writes_nan: Whether the KV of a 9 is not a number either.
    """

    def __init__(self, *, writes_nan: bool = False) -> None:
        self.writes_nan = writes_nan

    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        """See the engine's `Model`."""
        stored = kv.kv(0).data.view(2, -1)
        stored[:, batch.slots] = batch.token_ids.float()
        if self.writes_nan:
            stored[:, batch.slots[batch.token_ids == 9]] = torch.nan
        logits = torch.zeros((len(batch.logit_rows), WIDTH))
        for row, flat in enumerate(batch.logit_rows.tolist()):
            logits[row, int(batch.token_ids[flat]) - 1] = 1.0
            request = next(index for index in range(batch.num_requests) if batch.query_starts[index + 1] > flat)
            pages = batch.page_table[request, : -(-batch.kv_lengths[request] // kv.page_size_tokens)]
            context = kv.k(0)[0, pages, :, 0].view(-1)[: batch.kv_lengths[request]]
            if not bool(context.isfinite().all()) or bool((context == 9).any()):
                logits[row] = torch.nan
        return logits


@pytest.mark.parametrize(
    "kinds", list(itertools.product([GREEDY, TOP_3], repeat=2)), ids=["greedy twice", "greedy, drawn", "drawn, greedy", "drawn twice"]
)
def test_a_row_that_is_missing_hands_nobody_his_neighbours_token(kinds: tuple[Sampling, Sampling]) -> None:
    model = UnreliableModel(WIDTH)
    reader = Reader(small_engine(model))
    requests = [request_of(number, [number] * (3 + number), 8, sampling=kind) for number, kind in enumerate(kinds, 1)]
    for request in requests:
        reader.engine.submit(request)
    model.fault = "a row is missing"
    reader.step()
    assert [type(reader.errors.get(number)) for number in (1, 2)] == [Internal] * 2
    assert not reader.tokens and not reader.awaiting
    reader.engine.assert_consistent()


@pytest.mark.parametrize("fault", RAISING)
def test_a_failed_step_costs_its_own_requests_alone(fault: Fault) -> None:
    model = UnreliableModel(WIDTH)
    engine = small_engine(model)
    reader = Reader(engine)
    innocent, guilty = request_of(1, range(5), 8, sampling=TOP_3), request_of(2, range(1, 10), 8)
    engine.submit(innocent)
    reader.step()
    engine.submit(guilty)
    model.fault = fault
    output = reader.step()
    assert output is not None and output.rows is None and output.started == [], "nothing is told of a step that failed"
    assert reader.awaiting.keys() == {1}
    assert isinstance(reader.errors[2], Internal) and "failed" in str(reader.errors[2])
    engine.assert_consistent()
    assert (engine.load.steps, engine.load.used_pages, engine.load.prefill_tokens) == (1, 2, 5)
    reader.run()
    assert reader.tokens == {1: answer_alone(model, innocent)}
    engine.submit(request_of(3, range(1, 10), 8))
    reader.run()
    assert [started.cached_tokens for output in reader.outputs for started in output.started] == [0, 0], "nothing of it was kept"
    assert reader.tokens[3] == model.greedy_answer(range(1, 10), 8)


def test_a_failed_step_keeps_what_earlier_steps_computed_for_others() -> None:
    model = UnreliableModel(WIDTH)
    engine = small_engine(model)
    reader = Reader(engine)
    engine.submit(request_of(1, range(22), 8))
    reader.step()
    model.fault = "half written"
    reader.step()
    assert isinstance(reader.errors[1], Internal)
    assert (engine.load.cached_pages, engine.load.free_pages) == (4, 12), "the first 16 tokens were computed well"
    engine.submit(request_of(2, range(22), 8))
    reader.run()
    assert reader.tokens[2] == model.greedy_answer(range(22), 8)


def test_requests_that_wait_behind_a_failed_one_are_computed() -> None:
    model = UnreliableModel(WIDTH)
    engine = small_engine(model, max_running_requests=1)
    reader = Reader(engine)
    for number in (1, 2, 3):
        engine.submit(request_of(number, [number] * 6, 4))
    model.fault = "no memory"
    reader.run()
    assert isinstance(reader.errors[1], Internal)
    assert reader.tokens == {number: model.greedy_answer([number] * 6, 4) for number in (2, 3)}


def test_steps_that_fail_in_a_row_end_the_engine_and_a_good_one_between_them_does_not() -> None:
    model = UnreliableModel(WIDTH)
    engine = small_engine(model)
    reader = Reader(engine)
    for number in range(2 * MAX_FAILED_STEPS - 1):
        engine.submit(request_of(number, range(5), 1))
        model.fault = None if number == MAX_FAILED_STEPS - 1 else "half written"
        reader.step()
    assert [number for number, error in reader.errors.items() if error is None] == [MAX_FAILED_STEPS - 1]
    engine.submit(request_of(100, range(5), 1))
    model.fault = "half written"
    with pytest.raises(
        StepsFail, match=f"{MAX_FAILED_STEPS} steps have failed in a row, the last one with RuntimeError: the device is lost"
    ):
        reader.step()


class _SometimesLost(FirstComeFirstServed):
    """Raises when it is asked at an odd time."""

    def first(self, now: float) -> RequestState | None:
        """See `Policy`."""
        if now % 2:
            raise IndexError("lost count")
        return super().first(now)


def _engine_with(policy: Policy, model: HashModel) -> Engine:
    config = SchedulerConfig(4, 16, 64, 16, 4, 8)
    return Engine(model, hash_kv(16, 4), config, logits_width=WIDTH, device=torch.device("cpu"), policy=policy)


def test_a_step_that_cannot_be_planned_costs_who_runs_and_nobody_who_waits() -> None:
    model = HashModel(WIDTH)
    engine = _engine_with(_SometimesLost(), model)
    reader = Reader(engine)
    for number in range(5):
        engine.submit(request_of(number, [number] * 6, 4, deadline=3.0 if number == 4 else None))
    reader.step(0.0)
    reader.step(3.0)
    assert {number for number, error in reader.errors.items() if isinstance(error, Internal)} == {0, 1, 2, 3} - {
        number for number in range(4) if number not in reader.admitted
    }
    assert 4 in reader.errors, "its time was over before the plan failed"
    engine.assert_consistent()
    reader.run()
    waited = {0, 1, 2, 3} - {number for number, error in reader.errors.items() if isinstance(error, Internal)}
    assert waited and all(reader.tokens[number] == model.greedy_answer([number] * 6, 4) for number in waited)


def test_plans_that_fail_in_a_row_end_the_engine() -> None:
    engine = _engine_with(_SometimesLost(), HashModel(WIDTH))
    engine.submit(request_of(1, range(5), 1))
    with pytest.raises(StepsFail, match="in a row, the last one with IndexError: lost count"):
        for _ in range(MAX_FAILED_STEPS):
            assert engine.step(1.0) is not None, "somebody who waits for an output asks for the next step"


@pytest.mark.parametrize("writes_nan", [False, True], ids=["finite KV", "KV that is not"])
@pytest.mark.parametrize("changes", [{}, {"sampling": TOP_3}, {"pins": True}], ids=["greedy", "sampled", "pinned"])
def test_kv_of_a_row_without_finite_logits_never_stays_in_the_prefix_cache(changes: dict[str, Any], writes_nan: bool) -> None:
    engine = small_engine(AbsurdModel(writes_nan=writes_nan), num_pages=32)
    reader = Reader(engine)
    engine.watch(True)
    prompt = [*range(1, 9), 9, *range(10, 24), 3]
    engine.submit(request_of(1, prompt, 4, **changes))
    reader.run()
    assert isinstance(reader.errors[1], Internal)
    assert (engine.load.cached_pages, engine.load.pinned_pages, engine.load.free_pages) == (0, 0, 32)
    stored: set[int] = set()
    for kv_changes in (output.kv_changes for output in reader.outputs if output.kv_changes is not None):
        stored = (stored | set(kv_changes.stored)) - set(kv_changes.removed)
    assert not stored, "who watches is told that it is gone"


def test_what_a_broken_row_found_in_the_cache_stays_there_for_others() -> None:
    model = AbsurdModel()
    engine = small_engine(model, num_pages=32)
    reader = Reader(engine)
    engine.submit(request_of(1, [1] * 8, 1, pins=True))
    engine.submit(request_of(2, [1] * 8 + [2] * 4, 2))
    reader.run()
    engine.submit(request_of(3, [1] * 8 + [2] * 4 + [9] * 8, 2))
    reader.run()
    assert isinstance(reader.errors[3], Internal)
    assert (engine.load.pinned_pages, engine.load.cached_pages) == (2, 1)


def test_a_request_that_shares_a_broken_rows_pages_is_not_hurt_and_leaves_nothing_behind() -> None:
    model = AbsurdModel()
    engine = small_engine(model, num_pages=32, step_budget_tokens=8)
    reader = Reader(engine)
    engine.submit(request_of(1, [1] * 16 + [9], 2))
    reader.step()
    engine.submit(request_of(2, [*[1] * 8, 2, 2, 2, 2, 3], 6))
    reader.run()
    assert isinstance(reader.errors[1], Internal)
    assert reader.tokens[2] == [2, 1, 0, WIDTH - 1, WIDTH - 2, WIDTH - 3]
    engine.assert_consistent()
    assert engine.load.used_pages == 0


def test_what_a_request_that_left_early_broke_is_forgotten_with_the_first_row_that_reads_it() -> None:
    engine = small_engine(AbsurdModel(writes_nan=True), num_pages=32)
    reader = Reader(engine)
    engine.submit(request_of(1, [*[1] * 6, 9, *[2] * 13], 2))
    reader.step()
    engine.release(1)
    assert engine.load.cached_pages == 4, "nobody can know yet"
    engine.submit(request_of(2, [*[1] * 6, 9, *[2] * 9], 2))
    reader.run()
    assert isinstance(reader.errors[2], Internal)
    assert engine.load.cached_pages == 1, "the first page is finite, and found by the second request"


def test_a_prefix_is_pinned_whole_under_any_window() -> None:
    model = HashModel(WIDTH)
    for window in (1, 2, 3, 5):
        engine = small_engine(model, num_pages=32, step_budget_tokens=5, window_tokens=window, chunk_tokens=4, max_model_len_tokens=200)
        reader = Reader(engine)
        engine.submit(request_of(1, [3] * 32, 1, pins=True))
        for _ in range(20):
            reader.step()
        assert [item for output in reader.outputs for item in output.pinned] == [Pinned(1, 32, 32)], f"under a window of {window}"
        assert engine.load.pinned_pages == 8
        engine.assert_consistent()


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"prompt": []}, "token_ids", "token_ids is empty, it must have at least one id"),
        ({"prompt": [1, WIDTH]}, "token_ids", f"token_ids has id {WIDTH}, the limit is {WIDTH - 1}"),
        ({"prompt": [1, -1]}, "token_ids", f"token_ids has id -1, the limit is {WIDTH - 1}"),
        ({"generated": [WIDTH]}, "generated_token_ids", f"generated_token_ids has id {WIDTH}, the limit is {WIDTH - 1}"),
        ({"prompt": [1] * 6, "pins": True}, "token_ids", "token_ids has 6 ids, what is pinned is whole pages of 4"),
    ],
)
def test_a_request_that_would_fail_a_step_is_refused_by_field(changes: dict[str, Any], field: str, says: str) -> None:
    engine = small_engine()
    prompt = changes.pop("prompt", [1, 2])
    with pytest.raises(InvalidRequest) as refused:
        engine.submit(request_of(1, prompt, 4, **changes))
    assert (refused.value.field, refused.value.message) == (field, says)
    assert engine.step(0.0) is None and engine.load.waiting_requests == 0


def test_the_largest_id_is_no_id_too_many() -> None:
    engine = small_engine()
    reader = Reader(engine)
    engine.submit(request_of(1, [WIDTH - 1, 0], 2))
    reader.run()
    assert reader.errors == {1: None}


def test_the_kv_store_counts_pages_of_finite_numbers_from_the_first_on() -> None:
    kv = KvPageStore(2, 6, 4, 1, 2, torch.float32, torch.device("cpu"))
    kv.v(1)[0, 3, 2, 1] = torch.inf
    assert kv.count_finite(np.array([0, 5, 3, 1])) == 2
    assert kv.count_finite(np.array([0, 5, 1])) == 3


class _Corrupting(HashModel):
    """Miscounts a page, and fails."""

    engine: Engine

    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        """See `HashModel`."""
        self.engine._scheduler.memory.tree.evictable_pages += 1
        raise RuntimeError("the device is lost")


def test_an_engine_whose_pages_are_not_where_they_belong_after_a_failed_step_does_not_go_on() -> None:
    model = _Corrupting(WIDTH)
    engine = model.engine = small_engine(model)
    engine.submit(request_of(1, range(5), 4))
    with pytest.raises(AssertionError, match="evictable pages is off"):
        engine.step(0.0)
