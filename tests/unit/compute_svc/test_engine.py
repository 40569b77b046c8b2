"""The engine over a model that hashes what it reads from the KV: any mistake in scheduling or paging changes an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from compute_svc.engine import Engine, StepOutput
from compute_svc.forward_batch import ForwardBatch
from compute_svc.kv.page_store import KvPageStore
from compute_svc.request import Request, SamplingOptions
from compute_svc.scheduler.base import SchedulerConfig
from tests.fakes.hash_model import HashModel, hash_kv
from triserve.rpc.errors import DeadlineExceeded, Internal, Overloaded

WIDTH = 24
GREEDY = SamplingOptions()
TOP_3 = SamplingOptions(temperature=1.0, top_k=3)


def _engine(model: HashModel | None = None, **changes: int) -> Engine:
    sizes = {
        "page_size_tokens": 4,
        "num_pages": 16,
        "max_model_len_tokens": 64,
        "step_budget_tokens": 16,
        "max_running_requests": 4,
        "max_waiting_requests": 8,
    }
    config = SchedulerConfig(**{**sizes, **changes})
    kv = hash_kv(config.num_pages, config.page_size_tokens)
    return Engine(model or HashModel(WIDTH), kv, config, logits_width=WIDTH, device=torch.device("cpu"))


def _request(number: int, prompt: Sequence[int], max_tokens: int = 8, **changes: Any) -> Request:
    generated = np.array(changes.pop("generated", ()), dtype=np.int64)
    return Request(number, changes.pop("tenant", ""), np.array(prompt, dtype=np.int64), generated, max_tokens, 0.0, **changes)


class Reader:
    """Reads step outputs: tokens of each request in order, what awaits a verdict, what has left."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[int, list[int]] = {}
        self.given: dict[int, int] = {}
        self.awaiting: dict[int, tuple[int, int]] = {}
        self.errors: dict[int, Exception | None] = {}
        self.outputs: list[StepOutput] = []
        self.admitted: set[int] = set()

    def step(self, now: float = 0.0) -> StepOutput | None:
        output = self.engine.step(now)
        if output is not None:
            self.read(output)
        return output

    def read(self, output: StepOutput) -> None:
        self.outputs.append(output)
        self.admitted.update(output.admitted)
        rows = output.rows
        if rows is not None:
            start = 0
            assert len(set(rows.numbers)) == len(rows.numbers), "a request has one row in a step"
            for number, position, token, count in zip(rows.numbers, rows.positions, rows.tokens, rows.num_candidates, strict=True):
                ids = rows.candidate_ids[start : start + count].tolist()
                start += count
                answer = self.tokens.setdefault(number, [])
                assert position == len(answer) + self.given.get(number, 0), "positions have no gap and no repetition"
                if token is None:
                    # A sampler that draws by position alone, the same however the request is batched.
                    self.awaiting[number] = (position, ids[position % min(3, count)])
                else:
                    answer.append(token)
        for released in output.released:
            assert released.number not in self.errors, "a request leaves once"
            self.errors[released.number] = released.error
            self.awaiting.pop(released.number, None)

    def answer(self, number: int) -> None:
        """Gives the verdict a request awaits."""
        position, token = self.awaiting.pop(number)
        self.tokens[number].append(token)
        self.engine.verdict(number, position, token)

    def run(self, steps: int = 100) -> None:
        """Steps, with a verdict after each step, until nothing happens."""
        for _ in range(steps):
            if self.step() is None and not self.awaiting:
                return
            for number in list(self.awaiting):
                self.answer(number)
        raise AssertionError("the engine does not come to rest")


def _answer_alone(model: HashModel, request: Request) -> list[int]:
    """What a request is answered, computed without KV, batch or scheduler."""
    context = [*request.prompt.tolist(), *request.generated.tolist()]
    while True:
        position = len(context) - request.prompt.size
        logits = model.logits_of(context)
        ranking = np.lexsort((np.arange(WIDTH), -logits)).tolist()
        if request.sampling.temperature:
            token = ranking[position % 3]
        else:
            # A banned stop id makes a greedy row go to the stand-in sampler, which draws among what it gets.
            banned = position < request.min_tokens and bool(request.stop_token_ids)
            token = ranking[position % 3 if banned else 0]
        context.append(token)
        if position + 1 >= request.max_tokens or (token in request.stop_token_ids and position + 1 > request.min_tokens):
            return context[request.prompt.size + request.generated.size :]


class AnyUse(RuleBasedStateMachine):
    """Random arrivals, prefixes, budgets, verdict delays, cancels, pauses, deadlines and page shortage."""

    def __init__(self) -> None:
        super().__init__()
        self.model = HashModel(WIDTH, levels=64)
        self.engine = _engine(self.model, num_pages=12, step_budget_tokens=7, max_running_requests=3, max_waiting_requests=3)
        self.reader = Reader(self.engine)
        self.requests: dict[int, Request] = {}
        self.cancelled: set[int] = set()
        self.paused: set[int] = set()
        self.now = 0.0

    @rule(
        tenant=st.sampled_from(["a", "a", "b"]),
        prompt=st.lists(st.sampled_from([1, 1, 1, 2]), min_size=1, max_size=24),
        max_tokens=st.integers(1, 20),
        generated=st.lists(st.integers(0, WIDTH - 1), max_size=2),
        stops=st.frozensets(st.integers(0, WIDTH - 1), max_size=3),
        sampling=st.sampled_from([GREEDY, GREEDY, TOP_3]),
        deadline=st.sampled_from([None, None, None, 5.0]),
    )
    def submit(
        self,
        tenant: str,
        prompt: list[int],
        max_tokens: int,
        generated: list[int],
        stops: frozenset[int],
        sampling: SamplingOptions,
        deadline: float | None,
    ) -> None:
        number = len(self.requests)
        request = _request(
            number,
            prompt,
            max_tokens + len(generated),
            tenant=tenant,
            generated=generated,
            stop_token_ids=stops,
            sampling=sampling,
            deadline=None if deadline is None else self.now + deadline,
        )
        try:
            self.engine.submit(request)
        except Overloaded:
            return
        self.requests[number] = request
        self.reader.given[number] = len(generated)

    @rule(seconds=st.sampled_from([0.0, 0.0, 1.0]))
    def step(self, seconds: float) -> None:
        self.now += seconds
        before = len(self.model.batches)
        blocked = {*self.reader.awaiting, *self.paused}
        self.reader.step(self.now)
        for batch in self.model.batches[before:]:
            self._check_budget(batch)
        rows = self.reader.outputs[-1].rows if len(self.model.batches) > before else None
        assert rows is None or not blocked & set(rows.numbers)

    def _check_budget(self, batch: ForwardBatch) -> None:
        assert batch.num_tokens <= 7
        assert batch.num_requests <= 3

    @precondition(lambda self: self.reader.awaiting)
    @rule(data=st.data())
    def verdict(self, data: st.DataObject) -> None:
        self.reader.answer(data.draw(st.sampled_from(sorted(self.reader.awaiting))))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.requests)))
        if self.engine.release(number):
            self.cancelled.add(number)
            self.reader.awaiting.pop(number, None)

    @precondition(lambda self: self.reader.admitted)
    @rule(data=st.data(), paused=st.booleans())
    def pause(self, data: st.DataObject, paused: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.reader.admitted)))
        self.engine.pause([number], paused=paused)
        (self.paused.add if paused else self.paused.discard)(number)

    @invariant()
    def every_page_has_one_owner(self) -> None:
        self.engine.assert_consistent()
        load = self.engine.load
        assert load.used_pages + load.cached_pages + load.free_pages == 12
        for number, tokens in self.reader.tokens.items():
            expected = _answer_alone(self.model, self.requests[number])
            assert tokens == expected[: len(tokens)], "what a request is answered does not depend on the others"

    def teardown(self) -> None:
        self.engine.pause(list(self.requests), paused=False)
        self.reader.run(steps=600)
        assert set(self.reader.errors) == set(self.requests), "every request ends"
        for number, request in self.requests.items():
            if number not in self.cancelled and self.reader.errors[number] is None:
                assert self.reader.tokens[number] == _answer_alone(self.model, request)
            assert isinstance(self.reader.errors[number], DeadlineExceeded | None)
        load = self.engine.load
        assert (load.running_requests, load.waiting_requests, load.used_pages) == (0, 0, 0)


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)


def test_a_greedy_request_is_answered_and_frees_its_pages() -> None:
    model = HashModel(WIDTH)
    engine = _engine(model)
    reader = Reader(engine)
    engine.submit(_request(1, range(10), 12))
    reader.run()
    assert reader.tokens[1] == model.greedy_answer(range(10), 12)
    assert reader.errors == {1: None}
    assert engine.load.used_pages == 0
    assert engine.load.cached_pages == 5


def test_nothing_is_generated_beyond_max_tokens_or_a_stop_id() -> None:
    model = HashModel(WIDTH)
    long = model.greedy_answer(range(5), 12)
    engine = _engine(model)
    reader = Reader(engine)
    engine.submit(_request(1, range(5), 12, stop_token_ids=frozenset({long[6]})))
    engine.submit(_request(2, range(5), 1))
    reader.run()
    assert reader.tokens[1] == model.greedy_answer(range(5), 12, frozenset({long[6]}))
    assert reader.tokens[2] == long[:1]
    assert engine.load.decode_tokens == len(reader.tokens[1]) + 1


def test_stop_ids_do_not_count_before_min_tokens() -> None:
    engine = _engine()
    reader = Reader(engine)
    engine.submit(_request(1, range(5), 6, min_tokens=4, stop_token_ids=frozenset(range(WIDTH))))
    rows = []
    for _ in range(4):
        output = reader.step()
        assert output is not None and output.rows is not None
        rows.append(output.rows.tokens[0])
        if reader.awaiting:
            reader.answer(1)
    assert rows == [None] * 4
    output = reader.step()
    assert output is not None and output.rows is not None and output.rows.tokens[0] is not None
    assert len(reader.tokens[1]) == 5
    assert reader.errors == {1: None}


def test_rows_that_wait_for_a_verdict_do_not_hold_up_greedy_ones() -> None:
    engine = _engine()
    reader = Reader(engine)
    engine.submit(_request(1, range(5), 4, sampling=TOP_3))
    engine.submit(_request(2, range(6), 4))
    for _ in range(4):
        reader.step()
    assert reader.errors == {2: None}
    assert list(reader.awaiting) == [1]
    assert engine.load.used_pages == 2


def test_a_drawn_row_carries_candidates_if_log_probabilities_are_asked_for() -> None:
    model = HashModel(WIDTH)
    engine = _engine(model)
    engine.submit(_request(1, range(5), 2, sampling=SamplingOptions(top_logprobs=3)))
    engine.submit(_request(2, range(6), 2))
    output = engine.step(0.0)
    assert output is not None and output.rows is not None
    rows = output.rows
    ranking = np.lexsort((np.arange(WIDTH), -model.logits_of(range(5)))).tolist()
    assert (rows.numbers, rows.positions, rows.num_candidates) == ([2, 1], [0, 0], [0, 4])
    assert rows.tokens == [model.greedy_answer(range(6), 1)[0], ranking[0]]
    assert rows.candidate_ids.tolist() == ranking[:4]
    assert rows.candidate_logits.tolist() == model.logits_of(range(5))[ranking[:4]].tolist()
    assert rows.log_sum_exp[1] == pytest.approx(float(np.log(np.exp(model.logits_of(range(5)).astype(np.float64)).sum())), rel=1e-6)


def test_a_request_tells_when_it_was_admitted_started_and_released() -> None:
    engine = _engine()
    prompt = list(range(20))
    engine.submit(_request(1, prompt, 2))
    first, second, third = (engine.step(float(now)) for now in (3, 4, 5))
    assert first is not None and second is not None and third is not None
    assert (first.admitted, first.started, first.rows) == ([1], [], None)
    assert [(item.number, item.cached_tokens, item.submitted_at, item.admitted_at) for item in second.started] == [(1, 0, 0.0, 3.0)]
    assert [(item.number, item.preemptions, item.error) for item in third.released] == [(1, 0, None)]
    engine.submit(_request(2, prompt, 2))
    again = engine.step(6.0)
    assert again is not None and again.started[0].cached_tokens == 16
    assert again.load.cached_tokens == 16


def test_replayed_tokens_continue_the_answer() -> None:
    model = HashModel(WIDTH)
    whole = model.greedy_answer(range(5), 10)
    engine = _engine(model)
    reader = Reader(engine)
    reader.given[1] = 4
    engine.submit(_request(1, range(5), 10, generated=whole[:4]))
    reader.run()
    assert reader.tokens[1] == whole[4:]


@pytest.mark.parametrize("steps", [0, 1, 2, 4], ids=["waiting", "prefilling", "prefilled", "decoding"])
@pytest.mark.parametrize("sampling", [GREEDY, TOP_3], ids=["greedy", "sampled"])
def test_a_released_requests_pages_are_free_at_once(steps: int, sampling: SamplingOptions) -> None:
    engine = _engine()
    reader = Reader(engine)
    engine.submit(_request(1, range(20), 8, sampling=sampling))
    for _ in range(steps):
        reader.step()
        if reader.awaiting and steps == 4:
            reader.answer(1)
    assert engine.release(1)
    assert engine.load.used_pages == 0
    output = engine.step(0.0)
    assert output is not None and [item.number for item in output.released] == [1]
    assert engine.step(0.0) is None
    assert not engine.release(1)


def test_a_verdict_for_a_request_that_has_left_is_ignored() -> None:
    engine = _engine()
    engine.submit(_request(1, range(5), 4, sampling=TOP_3))
    engine.step(0.0)
    engine.release(1)
    engine.verdict(1, 0, 3)
    output = engine.step(0.0)
    assert output is not None and output.released[0].error is None


@pytest.mark.parametrize(("position", "token"), [(1, 3), (0, WIDTH), (0, -1)], ids=["position", "too large", "negative"])
def test_a_verdict_that_does_not_fit_fails_its_request_alone(position: int, token: int) -> None:
    model = HashModel(WIDTH)
    engine = _engine(model)
    reader = Reader(engine)
    engine.submit(_request(1, range(5), 4, sampling=TOP_3))
    engine.submit(_request(2, range(6), 4))
    reader.step()
    engine.verdict(1, position, token)
    reader.awaiting.clear()
    reader.run()
    assert isinstance(reader.errors[1], Internal)
    assert reader.tokens[2] == model.greedy_answer(range(6), 4)


def test_an_unasked_verdict_fails_its_request() -> None:
    engine = _engine()
    engine.submit(_request(1, range(5), 4))
    engine.step(0.0)
    engine.verdict(1, 1, 3)
    output = engine.step(0.0)
    assert output is not None and isinstance(output.released[0].error, Internal)


class _SometimesBroken(HashModel):
    """Gives NaN for contexts that begin with token 9."""

    def logits_of(self, context: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        logits = super().logits_of(context)
        return np.full_like(logits, np.nan) if context[0] == 9 else logits


@pytest.mark.parametrize("sampling", [GREEDY, TOP_3, SamplingOptions(top_logprobs=2)], ids=["greedy", "sampled", "logprobs"])
def test_a_row_without_numbers_fails_its_request_alone(sampling: SamplingOptions) -> None:
    model = _SometimesBroken(WIDTH)
    engine = _engine(model)
    reader = Reader(engine)
    engine.submit(_request(1, [9, 1, 2], 4, sampling=sampling))
    engine.submit(_request(2, range(5), 4, sampling=sampling))
    reader.run()
    assert isinstance(reader.errors[1], Internal)
    assert reader.tokens.keys() == {2} and reader.errors[2] is None
    assert engine.load.used_pages == 0


def test_same_prefix_prompts_in_one_step_are_answered_as_if_alone() -> None:
    model = HashModel(WIDTH)
    engine = _engine(model)
    reader = Reader(engine)
    for number in range(3):
        engine.submit(_request(number, [1, 1, 1, 1, 1], 6))
    reader.run()
    assert [reader.tokens[number] for number in range(3)] == [model.greedy_answer([1] * 5, 6)] * 3


def test_a_prefix_hit_does_not_inherit_a_strangers_penalties() -> None:
    options = SamplingOptions(temperature=0.0, presence_penalty=-2.0)
    prompt = [1] * 8
    engine = _engine()
    reader = Reader(engine)
    engine.submit(_request(1, prompt, 4, sampling=options))
    reader.run()
    engine.submit(_request(2, prompt, 4, sampling=options))
    output = reader.step()
    assert output is not None and output.started[0].cached_tokens == 4
    assert output.rows is not None and output.rows.num_candidates == [1], "nothing of the answer is seen yet"


def test_the_last_token_may_be_drawn_elsewhere() -> None:
    engine = _engine()
    reader = Reader(engine)
    engine.submit(_request(1, range(5), 1, sampling=TOP_3))
    reader.step()
    reader.answer(1)
    assert engine.load.used_pages == 0
    reader.run()
    assert reader.errors == {1: None}


def test_a_failing_model_is_not_hidden() -> None:
    class Broken:
        def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
            raise RuntimeError("out of order")

    config = SchedulerConfig(4, 8, 32, 8, 4, 8)
    engine = Engine(Broken(), hash_kv(8, 4), config, logits_width=WIDTH, device=torch.device("cpu"))
    engine.submit(_request(1, range(5), 1))
    with pytest.raises(RuntimeError, match="out of order"):
        engine.step(0.0)
