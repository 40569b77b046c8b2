"""Numbers of running requests in arrays: what is seen through a request and what is seen in the arrays is the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.scheduler.base import RECENT_TOKENS, Number, RequestState
from compute_svc.scheduler.batch_slots import BatchSlots
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.request import Request
from tests.examples import examples
from tests.fakes.scheduler_steps import small_config

NONE = np.empty(0, np.int64)


def _state(
    number: int, *, prompt: int = 3, max_tokens: int = 300, min_tokens: int = 0, stops: frozenset[int] = frozenset()
) -> RequestState:
    request = Request(number, "", np.arange(prompt), NONE, max_tokens, 0.0, min_tokens=min_tokens, stop_token_ids=stops)
    return RequestState(request, number)


def _accept(slots: BatchSlots, tokens: dict[int, int]) -> list[int]:
    """Accepts tokens by slot; returns the slots of those that end."""
    rows = np.array(list(tokens), dtype=np.int64)
    return [int(rows[index]) for index in slots.accept(rows, np.array(list(tokens.values())))]


def test_who_enters_and_leaves_keeps_its_numbers() -> None:
    slots = BatchSlots(2, 4)
    one, two = _state(1), _state(2, prompt=5)
    one.num_computed, two.awaiting = 2, 1
    tables = [slots.enter(state) for state in (one, two)]
    assert slots.num_computed[tables[0].row] == 2
    slots.num_computed[tables[1].row] = 4
    one.num_tokens = 9
    assert (two.num_computed, two.num_tokens, two.awaiting, int(slots.num_tokens[tables[0].row])) == (4, 5, 1, 9)
    slots.leave(two, tables[1])
    slots.num_computed[:] = 0
    assert (two.num_computed, two.num_tokens, two.awaiting) == (4, 5, 1)
    assert slots.states[tables[1].row] is None


def test_each_number_of_a_request_has_a_column() -> None:
    slots = BatchSlots(3, 4)
    slots.enter(_state(1))
    state = _state(5, prompt=7, max_tokens=20, min_tokens=4)
    row = slots.enter(state).row
    names = [name if hasattr(slots, name) else f"_{name}" for name in Number.names]
    columns: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = [getattr(slots, name) for name in names]
    assert {name: int(column[row]) for name, column in zip(names, columns, strict=True)} == {
        "num_tokens": 7,
        "num_computed": 0,
        "dropped_tokens": 0,
        "prefill_end": 7,
        "last_token": 6,
        "_awaiting": 0,
        "_paused": 0,
        "_end": 27,
        "_stops_from": 12,
        "number": 5,
        "prompt_tokens": 7,
    }
    for value, name in enumerate(Number.names, 100):
        setattr(state, name, value)
    assert [int(column[row]) for column in columns] == list(range(100, 111))
    assert [int(column[2]) for column in columns] == [0] * 11, "a free slot"


def test_what_was_dropped_is_not_in_pages() -> None:
    slots = BatchSlots(3, 4)
    states = [_state(number, prompt=9) for number in range(3)]
    rows = [slots.enter(state).row for state in states]
    for state, computed, dropped in zip(states, (9, 8, 0), (4, 0, 0), strict=True):
        state.num_computed, state.dropped_tokens = computed, dropped
    assert slots.kv_lengths(np.array([rows[1], rows[0], rows[2]])).tolist() == [8, 5, 0]
    assert [state.kv_length for state in states] == [5, 8, 0]


def test_a_request_ends_by_max_tokens_or_by_a_stop_id_behind_min_tokens() -> None:
    slots = BatchSlots(4, 4)
    states = [
        _state(1, max_tokens=2),
        _state(2, stops=frozenset({8, 9})),
        _state(3, min_tokens=1, stops=frozenset({7, 9, 11})),
        _state(4),
    ]
    row = [slots.enter(state).row for state in states]
    assert _accept(slots, {row[1]: 9, row[2]: 9, row[3]: 9, row[0]: 9}) == [row[1]]
    assert _accept(slots, {row[2]: 8, row[0]: 8}) == [row[0]]
    assert _accept(slots, {row[2]: 11, row[3]: 11}) == [row[2]]
    assert states[2].tokens[: states[2].num_tokens].tolist() == [0, 1, 2, 9, 8, 11]
    assert (states[2].last_token, states[2].position) == (11, 3)


@pytest.mark.parametrize("num_stops", [8, 9, 16384])
def test_many_stop_ids_end_their_own_request_and_cost_the_others_nothing(num_stops: int) -> None:
    slots = BatchSlots(2, 4)
    rows = [slots.enter(state).row for state in (_state(1, stops=frozenset(range(100, 100 + num_stops))), _state(2, stops=frozenset({3})))]
    assert slots._stops.shape == (2, 8)
    assert _accept(slots, {rows[0]: 99, rows[1]: 100}) == []
    assert _accept(slots, {rows[0]: 99 + num_stops, rows[1]: 3}) == rows


@pytest.mark.parametrize("num_stops", [8, 10])
def test_a_slot_forgets_the_stop_ids_of_who_had_it_before(num_stops: int) -> None:
    slots = BatchSlots(1, 4)
    first = _state(1, stops=frozenset(range(10, 10 + num_stops)))
    slots.leave(first, slots.enter(first))
    row = slots.enter(_state(2, stops=frozenset({5}))).row
    assert _accept(slots, {row: 12}) == [] and _accept(slots, {row: 5}) == [row]


@given(st.data())
@examples(40)
def test_tokens_come_in_order_however_they_are_added_and_looked_at(data: st.DataObject) -> None:
    slots = BatchSlots(2, 4)
    state, other = _state(1, prompt=data.draw(st.integers(1, 2 * RECENT_TOKENS), label="prompt")), _state(2)
    slots.enter(other)
    table = slots.enter(state)
    expected = state.request.prompt.tolist()
    for token in range(100, 100 + data.draw(st.integers(0, 3 * RECENT_TOKENS), label="tokens")):
        what = data.draw(st.sampled_from(["accept", "accept", "accept", "append", "look", "re-enter"]), label="what")
        if what == "append":
            state.append(token)
        else:
            slots.accept(np.array([table.row]), np.array([token]))
        expected.append(token)
        if what == "look":
            assert state.tokens[: state.num_tokens].tolist() == expected
        elif what == "re-enter":
            slots.leave(state, table)
            table = slots.enter(state)
    slots.leave(state, table)
    assert state.tokens[: state.num_tokens].tolist() == expected and state.last_token == expected[-1]


@pytest.mark.parametrize("held_up_by", ["awaiting", "paused"])
def test_who_is_held_up_neither_decodes_nor_prefills(held_up_by: str) -> None:
    slots = BatchSlots(3, 4)
    states = [_state(number) for number in range(3)]
    rows = np.array([slots.enter(state).row for state in states])
    states[0].num_computed = 3
    assert [part.tolist() for part in slots.split(rows)] == [[rows[0]], [rows[1], rows[2]]]
    setattr(states[0], held_up_by, True)
    setattr(states[2], held_up_by, True)
    assert [part.tolist() for part in slots.split(rows)] == [[], [rows[1]]]


def test_planning_needs_no_tokens_but_those_that_end_a_request() -> None:
    """Steps are planned from counts alone, so that the tokens of a step may stay on the device while the next one is planned."""
    planned = []
    for token in (7, 8):
        scheduler = Scheduler(small_config())
        for number in (1, 2):
            scheduler.submit(Request(number, "", np.arange(6) + 20 * number, NONE, 9, 0.0))
        steps = []
        while scheduler.num_running or scheduler.num_waiting:
            plan = scheduler.step(0.0)
            steps.append((plan.rows.tolist(), [(chunk.slot, chunk.start, chunk.length) for chunk in plan.prefills]))
            states, rows = plan.wanted, plan.wanted_rows
            scheduler.complete(plan)
            for index in scheduler.accept(rows, np.full(len(rows), token)):
                scheduler.release(states[index].request.number)
            scheduler.assert_consistent()
        planned.append(steps)
    assert planned[0] == planned[1] and len(planned[0]) == 9
