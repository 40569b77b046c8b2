"""The engine under any use: whatever the others do, a request is answered as if it were alone, and every page has one owner."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import NoneType

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from compute_svc.engine.engine import MAX_FAILED_STEPS
from compute_svc.kv.window import KvWindow
from compute_svc.layers.forward_batch import ForwardBatch
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.reservation import PredictedMemory
from compute_svc.wire.request import HiddenStates, Request
from tests.examples import examples
from tests.fakes.engine_reader import (
    DEVICE,
    GREEDY,
    SERVICE,
    TOP_3,
    WIDTH,
    Reader,
    answer_alone,
    assert_read_as_alone,
    request_of,
    small_engine,
)
from tests.fakes.hash_model import HashModel
from tests.fakes.unreliable_model import FAULTS, Fault, UnreliableModel
from triserve.rpc.errors import DeadlineExceeded, Internal, Overloaded
from triserve.rpc.sampling import Sampling


class AnyUse(RuleBasedStateMachine):
    """Random arrivals, prefixes, budgets, verdict delays, cancels, pauses, deadlines and page shortage."""

    window: KvWindow | None = None
    drawing = SERVICE
    make_memory: type[KvMemory] = KvMemory
    runs_ahead = False
    samplings: tuple[Sampling, ...] = (GREEDY, GREEDY, TOP_3)
    most_tokens = 20
    errors: tuple[type, ...] = (DeadlineExceeded, NoneType)

    def __init__(self) -> None:
        super().__init__()
        self.model = self.make_model()
        sizes = {"num_pages": 14, "step_budget_tokens": 7, "max_running_requests": 3, "max_waiting_requests": 3}
        if self.window is not None:
            sizes |= {"window_tokens": self.window.tokens, "chunk_tokens": self.window.chunk_tokens}
        self.engine = small_engine(
            self.model,
            self.drawing,
            self.make_memory,
            runs_ahead=self.runs_ahead,
            draws_ahead=True,
            max_model_len_tokens=26 + self.most_tokens,
            **sizes,
        )
        self.pins: dict[int, Request] = {}
        self.reader = Reader(self.engine)
        self.requests: dict[int, Request] = {}
        self.answers: dict[int, list[int]] = {}
        self.cancelled: set[int] = set()
        self.paused: set[int] = set()
        self.now = 0.0

    def make_model(self) -> HashModel:
        return HashModel(WIDTH, levels=64, window=self.window)

    @rule(
        tenant=st.sampled_from(["a", "a", "b"]),
        prompt=st.lists(st.sampled_from([1, 1, 1, 2]), min_size=1, max_size=24),
        length=st.floats(0, 1),
        generated=st.lists(st.integers(0, WIDTH - 1), max_size=2),
        stops=st.frozensets(st.integers(0, WIDTH - 1), max_size=3),
        kind=st.integers(0, 11),
        deadline=st.sampled_from([None, None, None, 5.0]),
        prompt_logprobs=st.sampled_from([None, None, 0, 2]),
        hidden_states=st.sampled_from([HiddenStates.NONE, *HiddenStates]),
        draws=st.sampled_from([True, True, True, False]),
    )
    def submit(
        self,
        tenant: str,
        prompt: list[int],
        length: float,
        generated: list[int],
        stops: frozenset[int],
        kind: int,
        deadline: float | None,
        prompt_logprobs: int | None,
        hidden_states: HiddenStates,
        draws: bool,
    ) -> None:
        generated = generated if draws else []
        number = len(self.requests)
        request = request_of(
            number,
            prompt,
            1 + round(length * (self.most_tokens - 1)) + len(generated) if draws else 0,
            tenant=tenant,
            generated=generated,
            stop_token_ids=stops,
            sampling=replace(self.samplings[kind % len(self.samplings)], prompt_logprobs=prompt_logprobs),
            hidden_states=hidden_states,
            deadline=None if deadline is None else self.now + deadline,
        )
        try:
            self.engine.submit(request)
        except Overloaded:
            return
        self.requests[number] = request
        self.answers[number] = answer_alone(self.model, request, self.drawing.place)
        self.reader.given[number] = len(generated)

    @rule(tenant=st.sampled_from(["a", "a", "b"]), prompt=st.lists(st.sampled_from([1, 1, 2]), min_size=1, max_size=2))
    def pin(self, tenant: str, prompt: list[int]) -> None:
        number = 10_000 + len(self.pins)
        request = request_of(number, [token for token in prompt for _ in range(4)], 1, tenant=tenant, pins=True)
        with contextlib.suppress(Overloaded):
            self.engine.submit(request)
            self.pins[number] = request

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        request = self.pins[data.draw(st.sampled_from(sorted(self.pins)))]
        self.engine.unpin(request.tenant, request.prompt)

    @rule(wanted=st.booleans())
    def watch(self, wanted: bool) -> None:
        self.engine.watch(wanted)

    @rule(seconds=st.sampled_from([0.0, 0.0, 1.0]))
    def step(self, seconds: float) -> None:
        self.now += seconds
        before, outputs = len(self.model.batches), len(self.reader.outputs)
        blocked = {*self.reader.awaiting, *self.paused}
        due = set(self.reader.tokens) - blocked - set(self.reader.errors) - self.cancelled
        self.reader.step(self.now)
        for batch in self.model.batches[before:]:
            self._check_budget(batch)
        rows = self.reader.outputs[-1].rows if len(self.reader.outputs) > outputs else None
        computed = set() if rows is None else set(rows.numbers)
        assert not blocked & computed
        if not self.engine.load.preemptions:
            assert due <= computed | set(self.reader.errors), "decodes come first: nobody who has begun is left out of a step"

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

    @precondition(lambda self: self.reader.admitted - set(self.pins))
    @rule(data=st.data(), paused=st.booleans())
    def pause(self, data: st.DataObject, paused: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.reader.admitted - set(self.pins))))
        self.engine.pause([number], paused=paused)
        (self.paused.add if paused else self.paused.discard)(number)

    @invariant()
    def every_page_has_one_owner(self) -> None:
        self.engine.assert_consistent()
        load = self.engine.load
        assert load.used_pages + load.cached_pages + load.pinned_pages + load.free_pages == 14
        for number, tokens in self.reader.tokens.items():
            assert tokens == self.answers[number][: len(tokens)], "what a request is answered does not depend on the others"

    def teardown(self) -> None:
        self.engine.pause(list(self.requests), paused=False)
        self.engine.watch(True)
        self.reader.run(steps=60 * self.most_tokens)
        assert set(self.reader.errors) - set(self.pins) == set(self.requests), "every request ends"
        pinned = {item.number for output in self.reader.outputs for item in output.pinned}
        assert pinned | set(self.reader.errors) >= set(self.pins), "every prefix is pinned at last, or it is said why not"
        cached: set[int] = set()
        for changes in (output.kv_changes for output in self.reader.outputs if output.kv_changes is not None):
            cached = set(changes.stored) if changes.is_reset else (cached - set(changes.removed)) | set(changes.stored)
        assert len(cached) == self.engine.prefix_stats.cached_pages, "what is told of the cache is so"
        for number, request in self.requests.items():
            if number not in self.cancelled and self.reader.errors[number] is None:
                assert self.reader.tokens[number] == self.answers[number]
                assert_read_as_alone(self.model, request, self.reader)
            assert isinstance(self.reader.errors[number], self.errors)
        load = self.engine.load
        assert (load.running_requests, load.waiting_requests, load.used_pages) == (0, 0, 0)
        self.check_counters()

    def check_counters(self) -> None:
        load, outputs = self.engine.load, self.reader.outputs
        assert load.steps == len(self.model.batches)
        assert load.prefill_tokens == sum(batch.num_tokens - batch.num_decodes for batch in self.model.batches)
        assert load.decode_tokens == sum(len(output.rows.numbers) for output in outputs if output.rows is not None)
        if not self.pins:
            # A prefix that is pinned tells nobody how often it was preempted.
            assert load.preemptions == sum(item.preemptions for output in outputs for item in output.released)
        assert (load.free_pages, load.cached_pages, load.pinned_pages) == (
            14 - self.engine.prefix_stats.cached_pages,
            self.engine.prefix_stats.evictable_pages,
            self.engine.prefix_stats.pinned_pages,
        )


class AnyUseWithWindow(AnyUse):
    """The same where no layer sees all: requests longer than all pages together are answered as if they were alone."""

    window = KvWindow(tokens=5, chunk_tokens=8)
    most_tokens = 150


class AnyUseDrawnOnDevice(AnyUse):
    """The same where every row is drawn with the logits: what the reference draws, whoever is preempted, resumed, paused or beside."""

    drawing = DEVICE
    samplings = (
        GREEDY,
        TOP_3,
        Sampling(seed=2**63, temperature=1.3),
        Sampling(temperature=0.0, presence_penalty=3.0, repetition_penalty=1.5, frequency_penalty=-0.5),
        Sampling(seed=4, top_p=0.8, frequency_penalty=1.0, dry_multiplier=2.0, bad_words=((1, 2), (3,))),
        Sampling(seed=4, temperature=0.7, min_p=0.1, top_logprobs=2, logit_bias_ids=(1, 5), logit_bias_values=(4.0, -100.0)),
    )


class AnyUseWithRoom(AnyUse):
    """The same where room is reserved for answers that are expected."""

    make_memory = PredictedMemory


class AnyUseWithFailures(AnyUse):
    """The same where steps fail, in every way: each costs the requests it was to compute, and nobody else notices."""

    errors = (DeadlineExceeded, Internal, NoneType)
    model: UnreliableModel

    def __init__(self) -> None:
        super().__init__()
        self.failures_in_a_row = 0

    def check_counters(self) -> None:
        assert self.engine.load.steps <= len(self.model.batches), "a step that failed is not counted"

    def make_model(self) -> HashModel:
        return UnreliableModel(WIDTH, levels=64, window=self.window)

    @precondition(lambda self: self.model.fault is None and self.failures_in_a_row < MAX_FAILED_STEPS - 1)
    @rule(fault=st.sampled_from(FAULTS))
    def break_the_next_step(self, fault: Fault) -> None:
        self.model.fault = fault

    @rule(seconds=st.sampled_from([0.0, 0.0, 1.0]))
    def step(self, seconds: float) -> None:
        steps, is_to_fail = self.engine.load.steps, self.model.fault is not None
        failed = {number for number, error in self.reader.errors.items() if isinstance(error, Internal)}
        had_begun = set(self.reader.tokens)
        super().step(seconds)
        newly_failed = {number for number, error in self.reader.errors.items() if isinstance(error, Internal)} - failed
        assert len(newly_failed) <= 3, "no more fail than were in the step"
        if self.engine.load.steps > steps:
            self.failures_in_a_row = 0
        elif is_to_fail and self.model.fault is None:
            self.failures_in_a_row += 1
            assert newly_failed and self.reader.outputs[-1].rows is None
            assert had_begun >= set(self.reader.tokens), "nothing is told of a step that failed"


class AnyUseWithFailuresAndWindow(AnyUseWithFailures):
    """Failures where what lies before a window is dropped."""

    window = AnyUseWithWindow.window
    most_tokens = AnyUseWithWindow.most_tokens


class AnyUseAhead(AnyUse):
    """The same where decode steps are begun before the tokens of the step before are known."""

    drawing = DEVICE
    runs_ahead = True
    samplings = (
        GREEDY,
        GREEDY,
        Sampling(seed=5, temperature=0.8, min_p=0.2),
        Sampling(seed=2**63, temperature=1.3, top_k=9, top_p=0.95),
        Sampling(temperature=0.0, repetition_penalty=1.5),
    )

    def check_counters(self) -> None:
        assert self.engine.load.steps <= len(self.model.batches), "what is computed in advance is no step yet"


class AnyUseAheadWithFailures(AnyUseWithFailures):
    """Failures where steps are begun in advance."""

    drawing = DEVICE
    runs_ahead = True
    make_memory = PredictedMemory
    samplings = AnyUseAhead.samplings


TestAnyUse = AnyUse.TestCase
TestAnyUseWithWindow = AnyUseWithWindow.TestCase
TestAnyUseDrawnOnDevice = AnyUseDrawnOnDevice.TestCase
TestAnyUseWithRoom = AnyUseWithRoom.TestCase
TestAnyUseWithFailures = AnyUseWithFailures.TestCase
TestAnyUseWithFailuresAndWindow = AnyUseWithFailuresAndWindow.TestCase
TestAnyUseAhead = AnyUseAhead.TestCase
TestAnyUseAheadWithFailures = AnyUseAheadWithFailures.TestCase
TestAnyUse.settings = TestAnyUseWithWindow.settings = TestAnyUseDrawnOnDevice.settings = examples(40, stateful_step_count=50)
TestAnyUseWithRoom.settings = TestAnyUseWithFailures.settings = TestAnyUseWithFailuresAndWindow.settings = TestAnyUse.settings
TestAnyUseAhead.settings = TestAnyUseAheadWithFailures.settings = TestAnyUse.settings
