"""Who has which page: the three ways to reserve, what is taken back, and that nothing is lost or shared by mistake."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from compute_svc.kv.page_table import PageTable
from compute_svc.kv.radix_node import count_agreeing
from compute_svc.request import Request
from compute_svc.scheduler.base import RequestState, SchedulerConfig
from compute_svc.scheduler.kv_memory import KvMemory, Reservation

PAGE = 4


def _config(num_pages: int) -> SchedulerConfig:
    return SchedulerConfig(
        page_size_tokens=PAGE,
        num_pages=num_pages,
        max_model_len_tokens=64,
        step_budget_tokens=64,
        max_running_requests=8,
        max_waiting_requests=8,
    )


def _state(number: int, prompt: npt.NDArray[np.int64] | int, max_tokens: int, predicted: int | None = None) -> RequestState:
    ids = np.arange(prompt, dtype=np.int64) + 100 * number if isinstance(prompt, int) else prompt
    state = RequestState(Request(number, "", ids, np.empty(0, np.int64), max_tokens, 0.0), number)
    state.predicted_tokens = max_tokens if predicted is None else predicted
    return state


def _table(state: RequestState) -> PageTable:
    assert state.table is not None
    return state.table


def _admit(memory: KvMemory, state: RequestState) -> None:
    assert memory.admit(state, headroom=0)
    state.num_computed = state.num_tokens


def _decode(memory: KvMemory, state: RequestState, token: int = 7) -> bool:
    """Draws one token and computes it."""
    if state.num_computed == state.num_tokens:
        state.append(token)
    if not memory.grow(state):
        return False
    state.num_computed += 1
    return True


def _lengths(state: RequestState) -> tuple[int, int]:
    return _table(state).length, _table(state).length + _table(state).room.size


def test_a_predicted_answer_lies_behind_its_prompt() -> None:
    memory = KvMemory(_config(16))
    state = _state(1, 6, max_tokens=50, predicted=10)
    _admit(memory, state)
    assert _lengths(state) == (2, 4)
    assert memory.num_available == memory.pool.num_free == 14
    for _ in range(9):
        assert _decode(memory, state)
    assert (_lengths(state), _table(state).num_extents) == ((4, 4), 1)
    memory.assert_owned_once([state])


def test_room_comes_from_the_shortest_run_that_holds_prompt_and_answer() -> None:
    memory = KvMemory(_config(16))
    states = [_state(number, 8, max_tokens=8, predicted=5) for number in range(1, 4)]
    for state in states:
        _admit(memory, state)
    memory.leave(states[0])
    memory.pool.release(memory.tree.evict(16))
    # Free: three pages in front, seven behind the last.
    other = _state(9, 5, max_tokens=20, predicted=8)
    _admit(memory, other)
    assert _table(other).owned.tolist() + _table(other).room.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "capacities"),
    # The last token's KV is not stored: pages for 4 + 7 tokens, then 4 + 15, 4 + 31, and no more than 4 + 39.
    [pytest.param(4, [3, 5, 9, 11], id="inside a page"), pytest.param(1, [2, 4, 8, 10], id="at the end of a page")],
)
def test_an_answer_that_outgrows_its_prediction_gets_as_much_again(prompt: int, capacities: list[int]) -> None:
    memory = KvMemory(_config(16))
    state = _state(1, prompt, max_tokens=40, predicted=8)
    _admit(memory, state)
    seen = {_lengths(state)[1]}
    for _ in range(39):
        assert _decode(memory, state)
        seen.add(_lengths(state)[1])
    assert sorted(seen) == capacities


def test_no_more_than_max_tokens_is_reserved() -> None:
    memory = KvMemory(_config(16))
    state = _state(1, 4, max_tokens=5, predicted=9)
    _admit(memory, state)
    assert _lengths(state) == (1, 2)


def test_one_page_extents_reserve_nothing() -> None:
    memory = KvMemory(_config(16), Reservation.PAGES)
    state = _state(1, 6, max_tokens=50, predicted=10)
    _admit(memory, state)
    assert _lengths(state) == (2, 2)
    assert all(_decode(memory, state) for _ in range(3))
    assert _lengths(state) == (3, 3)


def test_the_maximum_is_reserved_and_cannot_be_taken() -> None:
    memory = KvMemory(_config(16), Reservation.MAXIMUM)
    first = _state(1, 6, max_tokens=34, predicted=1)
    _admit(memory, first)
    assert _lengths(first) == (2, 10)
    assert memory.num_available == 6
    assert not memory.admit(_state(2, 4, max_tokens=22), headroom=0)
    _admit(memory, _state(3, 4, max_tokens=21))
    assert memory.num_available == 0
    assert all(_decode(memory, first) for _ in range(34))


def test_room_is_taken_from_the_latest_arrival_and_nobody_is_refused_for_it() -> None:
    memory = KvMemory(_config(10))
    first = _state(1, 4, max_tokens=16)
    second = _state(2, 4, max_tokens=16)
    _admit(memory, first)
    _admit(memory, second)
    assert (_lengths(first), _lengths(second), memory.num_available) == ((1, 5), (1, 5), 8)
    third = _state(3, 8, max_tokens=16)
    _admit(memory, third)
    assert (_lengths(first), _lengths(second), _lengths(third)) == ((1, 5), (1, 3), (2, 2))
    assert memory.admit(_state(4, 16, max_tokens=16), headroom=2)
    assert (_lengths(first), _lengths(second), memory.num_available) == ((1, 3), (1, 1), 2)


def test_the_room_of_an_earlier_arrival_is_taken_before_anybody_is_preempted() -> None:
    memory = KvMemory(_config(6))
    first = _state(1, 4, max_tokens=16)
    second = _state(2, 4, max_tokens=16)
    _admit(memory, first)
    _admit(memory, second)
    assert (_lengths(first), _lengths(second)) == ((1, 5), (1, 1))
    assert all(_decode(memory, second) for _ in range(16))
    assert (_lengths(first), _lengths(second)) == ((1, 1), (5, 5))
    assert not _decode(memory, first)


def test_room_is_taken_before_the_prefix_cache() -> None:
    memory = KvMemory(_config(8))
    cached = _state(1, 12, max_tokens=4)
    _admit(memory, cached)
    memory.leave(cached)
    holder = _state(2, 4, max_tokens=12)
    _admit(memory, holder)
    assert (_lengths(holder), memory.tree.num_pages) == ((1, 4), 3)
    _admit(memory, _state(3, 16, max_tokens=4))
    assert (_lengths(holder), memory.tree.num_pages) == ((1, 1), 3)


def test_room_displaces_only_a_part_of_the_prefix_cache() -> None:
    memory = KvMemory(_config(32))
    for number in (1, 2):
        cached = _state(number, 60, max_tokens=4)
        _admit(memory, cached)
        memory.leave(cached)
    filler = _state(3, 8, max_tokens=1)
    _admit(memory, filler)
    assert (memory.pool.num_free, memory.tree.num_pages) == (0, 30)
    state = _state(4, 4, max_tokens=40)
    _admit(memory, state)
    # 29 pages are nobody's then; an eighth of them may be free.
    assert memory.pool.num_free == 3
    assert memory.tree.num_pages == 26
    memory.assert_owned_once([filler, state])


def test_leaving_gives_the_room_back() -> None:
    for reservation in Reservation:
        memory = KvMemory(_config(16), reservation)
        state = _state(1, 6, max_tokens=30)
        _admit(memory, state)
        memory.leave(state)
        memory.assert_owned_once([])
        assert memory.num_available == 16
        assert (memory.tables.entries == 0).all()


def test_a_page_that_agrees_in_part_is_copied() -> None:
    memory = KvMemory(_config(16))
    cached = _state(1, np.array([1, 2, 3, 4, 5, 6, 7, 8, 9]), max_tokens=4)
    _admit(memory, cached)
    memory.leave(cached)
    state = _state(2, np.array([1, 2, 3, 4, 5, 6, 0, 0]), max_tokens=4)
    assert memory.admit(state, headroom=0)
    assert (state.num_computed, _table(state).shared) == (6, 1)
    ((source, target),) = memory.take_copies()
    assert (source, target) == (int(memory.tree.lock_match("", cached.tokens[:8]).pages[1]), int(_table(state).owned[0]))
    assert (memory.looked_up_tokens, memory.hit_tokens, memory.copied_tokens) == (9 + 8, 6, 2)


def test_the_page_a_running_request_writes_is_copied_too() -> None:
    memory = KvMemory(_config(16))
    first = _state(1, np.array([1, 2, 3, 4, 5, 6]), max_tokens=10)
    _admit(memory, first)
    for token in (7, 8, 9):
        assert _decode(memory, first, token)
    second = _state(2, np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), max_tokens=4)
    assert memory.admit(second, headroom=0)
    assert (_table(first).shared, _table(second).shared, second.num_computed) == (2, 2, 9)
    assert memory.take_copies() == [(int(_table(first).owned[0]), int(_table(second).owned[0]))]
    memory.assert_owned_once([first, second])


def test_what_is_to_be_copied_to_one_that_leaves_is_forgotten() -> None:
    memory = KvMemory(_config(16))
    cached = _state(1, np.array([1, 2, 3, 4, 5]), max_tokens=4)
    _admit(memory, cached)
    memory.leave(cached)
    state = _state(2, np.array([1, 2, 3, 0]), max_tokens=4)
    assert memory.admit(state, headroom=0)
    memory.leave(state)
    assert memory.take_copies() == []


class KvMemoryMachine(RuleBasedStateMachine):
    """Requests of few different tokens, so that prefixes are shared; every slot remembers which text its KV stands for."""

    reservation = Reservation.PREDICTED

    @initialize(num_pages=st.integers(2, 24))
    def start(self, num_pages: int) -> None:
        self.config = _config(num_pages)
        self.memory = KvMemory(self.config, self.reservation)
        self.slots: dict[int, tuple[int, ...]] = {}
        self.running: list[RequestState] = []
        self.preempted: list[RequestState] = []
        self.arrivals = 0

    @rule(data=st.data(), prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20))
    def admit(self, data: st.DataObject, prompt: list[int]) -> None:
        room = self.config.max_request_tokens - len(prompt)
        if room < 1 or len(self.running) == self.config.max_running_requests:
            return
        max_tokens = data.draw(st.integers(1, room), label="max_tokens")
        predicted = data.draw(st.integers(1, max_tokens), label="predicted")
        self.arrivals += 1
        self._admit(_state(self.arrivals, np.array(prompt, dtype=np.int64), max_tokens, predicted))

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
        self._copy()
        state = data.draw(st.sampled_from(self.running), label="who")
        # A drawn token that found no page is known and cannot be computed.
        computable = min(state.num_tokens, _table(state).length * PAGE)
        for _ in range(min(count, computable - state.num_computed)):
            self._compute(state)
        self.memory.keep_computed(state)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def decode(self, data: st.DataObject, tokens: list[int]) -> None:
        self._copy()
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

    @precondition(lambda self: self.running)
    @rule(data=st.data(), ends=st.booleans())
    def leave(self, data: st.DataObject, ends: bool) -> None:
        state = data.draw(st.sampled_from(self.running), label="who")
        self.memory.leave(state)
        self.running.remove(state)
        if not ends:
            self.preempted.append(state)

    def _admit(self, state: RequestState) -> bool:
        available = self.memory.num_available
        last = state.request.prompt.size + state.request.max_tokens - 1
        needed = -(-max(state.num_tokens, last if self.reservation is Reservation.MAXIMUM else 0) // PAGE)
        cached = self._cached_tokens(state)
        admitted = self.memory.admit(state, headroom=len(self.running))
        if admitted:
            assert state.num_computed == cached, "everything that anybody has computed is used"
            self.running.append(state)
        else:
            headroom = 0 if self.reservation is Reservation.MAXIMUM else len(self.running)
            assert available < needed + headroom, "reserved and unused pages are no reason to refuse"
        return admitted

    def _cached_tokens(self, state: RequestState) -> int:
        """How many of its first tokens, but the last, are in the cache or computed by a request whose pages are not copies to be made."""
        known = state.tokens[: state.num_tokens - 1]
        lengths = [self.memory.tree.match_length("", known)]
        for other in self.running:
            # What is to be copied is not there yet; what the request shares is.
            whole = _table(other).shared * PAGE
            computed = whole if self.memory.is_to_be_copied(other) else other.num_computed
            lengths.append(count_agreeing(other.tokens[:computed], known))
        return max(lengths)

    def _copy(self) -> None:
        self.slots = self._copied(self.memory.take_copies())

    def _copied(self, copies: list[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
        """What the slots hold behind these copies: all are read before one is written."""
        read = [(target * PAGE + offset, self.slots.get(source * PAGE + offset, ())) for source, target in copies for offset in range(PAGE)]
        return self.slots | dict(read)

    def _compute(self, state: RequestState) -> None:
        position = state.num_computed
        table = _table(state)
        assert position // PAGE >= table.shared, "what is shared is not written"
        page = int(self.memory.tables.entries[table.row, position // PAGE])
        self.slots[page * PAGE + position % PAGE] = tuple(state.tokens[: position + 1].tolist())
        state.num_computed += 1

    @invariant()
    def every_page_has_one_owner(self) -> None:
        self.memory.assert_owned_once(self.running)

    @invariant()
    def what_a_table_holds_stays_valid(self) -> None:
        slots = self._copied(self.memory.copies)
        for state in self.running:
            entries = self.memory.tables.entries[_table(state).row]
            for position in range(state.num_computed):
                slot = int(entries[position // PAGE]) * PAGE + position % PAGE
                assert slots[slot] == tuple(state.tokens[: position + 1].tolist())

    @invariant()
    def only_pages_in_use_and_the_maximum_are_not_available(self) -> None:
        used = {page for state in self.running for page in self._entries(state)}
        assert self.memory.num_available == self.config.num_pages - len(used)

    def _entries(self, state: RequestState) -> list[int]:
        table = _table(state)
        pages: list[int] = self.memory.tables.entries[table.row, : table.length].tolist()
        return pages + table.room.tolist() if self.reservation is Reservation.MAXIMUM else pages

    def teardown(self) -> None:
        for state in self.running:
            self.memory.leave(state)
        self.memory.assert_owned_once([])
        assert self.memory.num_available == self.config.num_pages
        assert (self.memory.tables.entries == 0).all()


class MaximumMachine(KvMemoryMachine):
    reservation = Reservation.MAXIMUM


class PagesMachine(KvMemoryMachine):
    reservation = Reservation.PAGES


class TwinsMachine(RuleBasedStateMachine):
    """Prompts that share nothing: with and without prediction the same requests are admitted, grow and are refused."""

    @initialize(num_pages=st.integers(2, 24))
    def start(self, num_pages: int) -> None:
        self.config = _config(num_pages)
        self.memories = [KvMemory(self.config, reservation) for reservation in (Reservation.PAGES, Reservation.PREDICTED)]
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
        twins = [_state(self.arrivals, prompt, max_tokens, predicted) for _ in self.memories]
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
            grown = [_decode(memory, state) for memory, state in zip(self.memories, twins, strict=True)]
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
TestTwins = TwinsMachine.TestCase
TestPredicted.settings = TestMaximum.settings = TestPages.settings = TestTwins.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None
)
