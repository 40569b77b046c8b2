"""What a follower makes of a stream's entries: the answer, each delta once, or nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_cache.entry import CachedDelta
from prompt_cache.flights import Failed, Finished, Flight
from prompt_cache.flights.records import Record, RecordCodec
from prompt_cache.flights.scripts import StreamEntry, id_order
from prompt_cache.flights.stream_reader import absorb
from prompt_cache.keys import CacheKey
from prompt_cache.sealing import CorruptEntry

KEY = CacheKey("aa", "11" * 32)
CODEC = RecordCodec((b"0123456789abcdef",))
END = Finished("stop", 7)


def deltas(start: int, end: int) -> tuple[CachedDelta, ...]:
    return tuple(CachedDelta(f"{number} ", (number,)) for number in range(start, end))


def entry(record: Record) -> StreamEntry:
    return StreamEntry(b"1-1", CODEC.encode(KEY, record))


def begun(count: int = 0) -> Flight:
    flight = Flight()
    flight.take_over()
    flight.put(deltas(0, count))
    return flight


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=8), st.integers(0, 6), st.data())
def test_records_that_overlap_give_each_delta_once(cuts: list[tuple[int, int]], known: int, data: st.DataObject) -> None:
    """A record may be written twice, with more behind it the second time; a follower may have the start already."""
    entries, end = [], 0
    for more, back in cuts:
        first = max(0, end - back)
        end += more
        entries.append(entry(Record(first, deltas(first, end), None)))
    entries.append(entry(Record(end, (), END)))
    flight = begun(min(known, end))
    split = data.draw(st.integers(0, len(entries)))
    num_streamed = absorb(CODEC, KEY, entries[:split], flight, 0)
    assert absorb(CODEC, KEY, entries[split:], flight, num_streamed) == end
    assert (flight.since(0), flight.end) == (deltas(0, end), END)


@pytest.mark.parametrize(
    ("records", "known"),
    [
        ([Record(1, deltas(1, 2), None)], 0),
        ([Record(1, deltas(1, 2), None)], 1),
        ([Record(0, deltas(0, 1), None), Record(2, deltas(2, 3), None)], 0),
        ([Record(0, deltas(0, 1), END)], 2),
        ([Record(0, (CachedDelta("0 1 ", (0, 1)),), None)], 1),
    ],
    ids=["a gap", "a start that is missing for others", "a gap later", "an end too early", "other pieces"],
)
def test_what_does_not_go_on_from_what_is_there_is_refused(records: list[Record], known: int) -> None:
    with pytest.raises(CorruptEntry):
        absorb(CODEC, KEY, map(entry, records), begun(known), 0)


def test_a_leader_that_gave_up_and_was_replaced_leaves_no_trace() -> None:
    flight = begun()
    records = [Record(0, deltas(0, 2), Failed("gone")), Record(2, deltas(2, 3), END)]
    absorb(CODEC, KEY, map(entry, records), flight, 0)
    assert (flight.since(0), flight.end) == (deltas(0, 3), END)


def test_ids_are_ordered_by_number_and_entries_with_others_values_have_none() -> None:
    assert id_order(b"9-10") < id_order(b"10-2") < id_order(b"10-11")
    assert StreamEntry.of(b"1-1", [b"a", b"b"]) == StreamEntry(b"1-1", b"")
    with pytest.raises(ValueError, match="invalid literal"):
        StreamEntry.of(b"next", [b"a"])
