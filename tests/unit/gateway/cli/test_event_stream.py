"""Events do not depend on the pieces their bytes come in."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.event_stream import EventCutter

data_lines = st.binary(max_size=8).filter(lambda line: b"\n" not in line and b"\r" not in line)


@given(st.lists(st.lists(data_lines, min_size=1, max_size=3)), st.sampled_from([b"\n", b"\r\n"]), st.lists(st.integers(0, 300)))
def test_events_do_not_depend_on_the_pieces_they_come_in(events: list[list[bytes]], end: bytes, cuts: list[int]) -> None:
    stream = b"".join(b"".join(b"data: " + line + end for line in lines) + end for lines in events)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    cutter = EventCutter()
    got = [event for start, stop in itertools.pairwise(places) for event in cutter.feed(stream[start:stop])]
    assert got == [b"\n".join(lines) for lines in events]


def test_comments_and_other_fields_are_passed_over() -> None:
    assert EventCutter().feed(b": keep-alive\n\nevent: x\nid: 1\ndata:a\n\n\n") == [b"a"]


def test_an_event_is_not_given_before_its_end() -> None:
    cutter = EventCutter()
    assert cutter.feed(b"data: a\n") == []
    assert cutter.feed(b"\n") == [b"a"]
