"""Lines come out whole and in order, whatever pieces their bytes come in."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.local.log_lines import MAX_LINE_BYTES, LineCutter

texts = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=10)


@given(st.lists(texts), texts, st.lists(st.integers(0, 200)))
def test_lines_do_not_depend_on_the_pieces_they_come_in(lines: list[str], last: str, cuts: list[int]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode() + last.encode()
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    cutter = LineCutter()
    got = [line for start, stop in itertools.pairwise(places) for line in cutter.feed(data[start:stop])] + cutter.end()
    assert got == lines + ([last] if last else [])


def test_the_ends_of_lines_of_other_systems_are_removed() -> None:
    assert LineCutter().feed(b"a\r\nb\n") == ["a", "b"]


def test_a_line_without_end_is_cut_at_the_limit() -> None:
    cutter = LineCutter()
    assert cutter.feed(b"x" * (2 * MAX_LINE_BYTES + 1)) == ["x" * MAX_LINE_BYTES] * 2
    assert cutter.end() == ["x"]


def test_bytes_that_are_not_text_are_replaced() -> None:
    assert LineCutter().feed(b"\xffa\n") == ["\ufffda"]
