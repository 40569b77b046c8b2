"""Who has which page, under any use: nothing is lost, nothing is shared by mistake, and what a table holds stays valid."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from compute_svc.kv.window import KvWindow
from compute_svc.scheduler.base import RequestState
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.reservation import MaximumMemory, PredictedMemory
from tests.examples import examples
from tests.fakes.kv_requests import PAGE, decode, kv_config, kv_request, table_of


class KvMemoryMachine(RuleBasedStateMachine):
    """Requests of few different tokens, so that prefixes are shared; every slot remembers which text its KV stands for."""

    make_memory: type[KvMemory] = PredictedMemory
    window: KvWindow | None = None

    @initialize(num_pages=st.integers(2, 24))
    def start(self, num_pages: int) -> None:
        self.config = kv_config(num_pages, self.window)
        self.memory = self.make_memory(self.config)
        self.slots: dict[int, tuple[int, ...]] = {}
        self.running: list[RequestState] = []
        self.preempted: list[RequestState] = []
        self.arrivals = 0

    @rule(data=st.data(), prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20))
    def admit(self, data: st.DataObject, prompt: list[int]) -> None:
        room = min(64, self.config.max_request_tokens) - len(prompt)
        if room < 1 or len(self.running) == self.config.max_running_requests:
            return
        max_tokens = data.draw(st.integers(1, room), label="max_tokens")
        predicted = data.draw(st.integers(1, max_tokens), label="predicted")
        self.arrivals += 1
        self._admit(kv_request(self.arrivals, np.array(prompt, dtype=np.int64), max_tokens, predicted))

    @precondition(lambda self: self.preempted)
    @rule(data=st.data())
    def admit_again(self, data: st.DataObject) -> None:
        if len(self.running) < self.config.max_running_requests:
            state = data.draw(st.sampled_from(self.preempted), label="whom")
            if self._admit(state):
                self.preempted.remove(state)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 20))
    def prefill(self, data: st.DataObject, count: int) -> None:
        state = data.draw(st.sampled_from(self.running), label="who")
        # A drawn token that found no page is known and cannot be computed.
        computable = min(state.num_tokens, table_of(state).length * PAGE + state.dropped_tokens)
        for _ in range(min(count, computable - state.num_computed)):
            self._compute(state)
        self.memory.keep_computed(state)
        self.memory.slide(state)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def decode(self, data: st.DataObject, tokens: list[int]) -> None:
        state = data.draw(st.sampled_from(self.running), label="who")
        for token in tokens:
            if state.num_computed < state.num_tokens - 1:
                return
            if state.num_computed == state.num_tokens:
                if state.position == state.request.max_tokens:
                    return
                state.append(token)
            available = self.memory.num_available
            grew = self.memory.grow(state)
            assert grew or available == 0, "a page that is available is given"
            if not grew:
                return
            self._compute(state)
            self.memory.slide(state)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), ends=st.booleans())
    def leave(self, data: st.DataObject, ends: bool) -> None:
        state = data.draw(st.sampled_from(self.running), label="who")
        self.memory.leave(state)
        self.running.remove(state)
        if not ends:
            self.preempted.append(state)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), prompt=st.lists(st.integers(0, 1), min_size=1, max_size=40))
    def make_way(self, data: st.DataObject, prompt: list[int]) -> None:
        """Some give up their pages for another, who was told before whether that would do."""
        if len(prompt) + 1 > min(64, self.config.max_request_tokens):
            return
        self.arrivals += 1
        state = kv_request(self.arrivals, np.array(prompt, dtype=np.int64), 1)
        without = data.draw(st.lists(st.sampled_from(self.running), unique_by=id, max_size=3), label="without")
        staying = [other for other in self.running if other not in without]
        if len(staying) == self.config.max_running_requests:
            return
        could = self.memory.could_admit(state, without=without, headroom=len(staying))
        for other in without:
            self.memory.leave(other)
        self.running, self.preempted = staying, self.preempted + without
        # What who stays has computed and not handed to the cache yet is shared at admission: it may be less that is needed then.
        for other in staying:
            self.memory.keep_computed(other)
        exact = self.memory.could_admit(state, without=[], headroom=len(staying))
        assert exact or not could
        assert self.memory.admit(state, headroom=len(staying)) == exact
        if exact:
            self.running.append(state)

    def _admit(self, state: RequestState) -> bool:
        available = self.memory.num_available
        last = state.request.prompt.size + state.request.max_tokens - 1
        needed = -(-max(state.num_tokens, last if self.make_memory is MaximumMemory else 0) // PAGE)
        if self.window is not None:
            needed = self.memory.wanted_pages(state)
        cached = self._cached_tokens(state)
        admitted = self.memory.admit(state, headroom=len(self.running))
        if admitted:
            assert state.num_computed == cached or state.is_sliding, "everything that anybody has computed is used"
            self.running.append(state)
        else:
            headroom = 0 if self.make_memory is MaximumMemory else len(self.running)
            assert available < needed + headroom, "reserved and unused pages are no reason to refuse"
        return admitted

    def _cached_tokens(self, state: RequestState) -> int:
        """How many of its first tokens, but the last, are in whole pages that somebody has computed: in the cache or running."""
        known = state.tokens[: state.num_tokens - 1].tolist()
        texts = [state.tokens[: state.num_computed].tolist() for state in self.running if not state.is_sliding]
        whole = [end for end in range(PAGE, len(known) + 1, PAGE) if any(text[:end] == known[:end] for text in texts)]
        return max([self.memory.tree.match_length("", np.array(known, dtype=np.int64)), *whole])

    def _compute(self, state: RequestState) -> None:
        place = state.kv_length
        table = table_of(state)
        assert place // PAGE >= table.shared, "what is shared is not written"
        page = int(self.memory.tables.entries[table.row, place // PAGE])
        self.slots[page * PAGE + place % PAGE] = tuple(state.tokens[: state.num_computed + 1].tolist())
        state.num_computed += 1

    @invariant()
    def every_page_has_one_owner(self) -> None:
        self.memory.assert_owned_once(self.running)

    @invariant()
    def what_a_table_holds_stays_valid(self) -> None:
        for state in self.running:
            entries = self.memory.tables.entries[table_of(state).row]
            for place in range(state.kv_length):
                slot = int(entries[place // PAGE]) * PAGE + place % PAGE
                assert self.slots[slot] == tuple(state.tokens[: self._position(state, place) + 1].tolist())

    def _position(self, state: RequestState, place: int) -> int:
        """Which token a request holds at a place."""
        return place if self.window is None or place < self.window.chunk_tokens else place + state.dropped_tokens

    @invariant()
    def only_pages_in_use_and_the_maximum_are_not_available(self) -> None:
        used = {page for state in self.running for page in self._entries(state)}
        assert self.memory.num_available == self.config.num_pages - len(used)

    def _entries(self, state: RequestState) -> list[int]:
        table = table_of(state)
        pages: list[int] = self.memory.tables.entries[table.row, : table.length].tolist()
        return pages

    def teardown(self) -> None:
        for state in self.running:
            self.memory.leave(state)
        self.memory.assert_owned_once([])
        assert self.memory.num_available == self.config.num_pages
        assert (self.memory.tables.entries == 0).all()


class MaximumMachine(KvMemoryMachine):
    make_memory = MaximumMemory


class PagesMachine(KvMemoryMachine):
    make_memory = KvMemory


class WindowMachine(KvMemoryMachine):
    """The same with a window: what is needed stays, and a request never holds more than half of the pages or what it needs."""

    make_memory = KvMemory
    window = KvWindow(tokens=5, chunk_tokens=2 * PAGE)

    @invariant()
    def whatever_a_query_sees_is_there(self) -> None:
        for state in self.running:
            assert not state.dropped_tokens or 2 * PAGE + state.dropped_tokens <= state.num_computed - 4

    @invariant()
    def a_request_that_slides_holds_little(self) -> None:
        for state in self.running:
            if state.dropped_tokens:
                assert state.kv_length <= self.config.sliding_tokens


class TwinsMachine(RuleBasedStateMachine):
    """Prompts that share nothing: with and without prediction the same requests are admitted, grow and are refused."""

    @initialize(num_pages=st.integers(2, 24))
    def start(self, num_pages: int) -> None:
        self.config = kv_config(num_pages)
        self.memories = [make_memory(self.config) for make_memory in (KvMemory, PredictedMemory)]
        self.twins: list[list[RequestState]] = []
        self.arrivals = 0

    @rule(data=st.data(), prompt=st.integers(1, 30))
    def admit(self, data: st.DataObject, prompt: int) -> None:
        room = self.config.max_request_tokens - prompt
        if room < 1 or len(self.twins) == self.config.max_running_requests:
            return
        max_tokens = data.draw(st.integers(1, room), label="max_tokens")
        predicted = data.draw(st.integers(1, max_tokens), label="predicted")
        self.arrivals += 1
        twins = [kv_request(self.arrivals, prompt, max_tokens, predicted) for _ in self.memories]
        admitted = [memory.admit(state, headroom=len(self.twins)) for memory, state in zip(self.memories, twins, strict=True)]
        assert admitted[0] == admitted[1]
        if admitted[0]:
            for state in twins:
                state.num_computed = state.num_tokens
            self.twins.append(twins)

    @precondition(lambda self: self.twins)
    @rule(data=st.data(), count=st.integers(1, 12))
    def decode(self, data: st.DataObject, count: int) -> None:
        twins = data.draw(st.sampled_from(self.twins), label="who")
        for _ in range(min(count, twins[0].request.max_tokens - twins[0].position)):
            grown = [decode(memory, state) for memory, state in zip(self.memories, twins, strict=True)]
            assert grown[0] == grown[1]

    @precondition(lambda self: self.twins)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        twins = self.twins.pop(data.draw(st.integers(0, len(self.twins) - 1), label="who"))
        for memory, state in zip(self.memories, twins, strict=True):
            memory.leave(state)

    @invariant()
    def as_much_is_available(self) -> None:
        assert self.memories[0].num_available == self.memories[1].num_available

    @invariant()
    def every_page_has_one_owner(self) -> None:
        for index, memory in enumerate(self.memories):
            memory.assert_owned_once([twins[index] for twins in self.twins])


TestPredicted = KvMemoryMachine.TestCase
TestMaximum = MaximumMachine.TestCase
TestPages = PagesMachine.TestCase
TestWindow = WindowMachine.TestCase
TestTwins = TwinsMachine.TestCase
TestWindow.settings = TestPredicted.settings = TestMaximum.settings = TestPages.settings = TestTwins.settings = examples(
    40, stateful_step_count=30
)
