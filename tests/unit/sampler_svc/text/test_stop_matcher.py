"""A stop string never leaks, and everything before it is exact."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sampler_svc.text.stop_matcher import Matched, StopMatcher, StopPatterns
from tests.examples import examples


def run(stops: list[str], pieces: list[str], armed_from: int = 0, *, includes_stop: bool = False) -> tuple[str, str | None, list[str]]:
    """What was sent in all, the stop string, and what was sent after each piece."""
    matcher = StopMatcher(StopPatterns(stops), includes_stop=includes_stop)
    sent = []
    for index, piece in enumerate(pieces):
        text, stop = matcher.feed(piece, armed=index >= armed_from)
        sent.append(text)
        if stop is not None:
            return "".join(sent), stop, sent
    sent.append(matcher.flush())
    return "".join(sent), None, sent


def first_stop(stops: list[str], text: str, counts_from: int) -> tuple[int, str] | None:
    """Where the text is cut: by the stop that is complete first, the longest of those, if it is complete after some characters."""
    for end in range(counts_from + 1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return end - len(longest), longest
    return None


STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=5)
PIECES = st.lists(st.text("abc", max_size=4), max_size=12)


@examples(200)
@given(STOPS, PIECES, st.integers(0, 12))
def test_the_text_before_the_first_counting_stop_is_sent_and_nothing_else(stops: list[str], pieces: list[str], armed_from: int) -> None:
    text, unarmed = "".join(pieces), len("".join(pieces[:armed_from]))
    expected = first_stop(stops, text, unarmed)
    sent, stop, _ = run(stops, pieces, armed_from)
    assert (sent, stop) == ((text[: expected[0]], expected[1]) if expected else (text, None))
    included, stop, _ = run(stops, pieces, armed_from, includes_stop=True)
    assert (included, stop) == ((sent + expected[1], expected[1]) if expected else (text, None))


@examples(200)
@given(STOPS, PIECES, st.booleans())
def test_what_is_sent_can_never_become_part_of_a_stop_string_and_all_else_is_sent(stops: list[str], pieces: list[str], armed: bool) -> None:
    matcher, seen, sent = StopMatcher(StopPatterns(stops)), "", ""
    for piece in pieces:
        text, stop = matcher.feed(piece, armed=armed)
        seen, sent = seen + piece, sent + text
        if stop is not None:
            return
        may_yet_match = max(
            (length for stop in stops for length in range(len(stop)) if seen.endswith(stop[:length])),
            default=0,
        )
        assert sent == seen[: len(seen) - may_yet_match]


@given(STOPS, st.text("abc", max_size=20))
def test_the_outcome_does_not_depend_on_how_the_text_is_cut(stops: list[str], text: str) -> None:
    assert run(stops, [text])[:2] == run(stops, list(text))[:2]


def test_overlapping_stops_end_at_the_one_complete_first() -> None:
    assert run(["bcd", "c"], ["abcd"])[:2] == ("ab", "c")
    assert run(["ab", "abc"], ["xabc"])[:2] == ("x", "ab")
    assert run(["c", "bc"], ["abc"])[:2] == ("a", "bc")


def test_a_beginning_that_comes_to_nothing_is_sent_as_soon_as_that_is_clear() -> None:
    assert run(["aab"], ["a", "a", "a", "c"]) == ("aaac", None, ["", "", "a", "aac", ""])


def test_a_stop_over_many_pieces_is_found() -> None:
    assert run(["<|end|>"], ["hi", "<", "|e", "nd", "|", ">x"]) == ("hi", "<|end|>", ["hi", "", "", "", "", ""])


def test_what_is_held_back_at_the_end_is_sent() -> None:
    assert run(["stop"], ["no st"]) == ("no st", None, ["no ", "st"])


def test_a_stop_complete_while_it_does_not_count_is_text() -> None:
    assert run(["aa"], ["aa", "b", "aa"], armed_from=1)[:2] == ("aab", "aa")
    assert run(["aa"], ["aa", "a"], armed_from=1)[:2] == ("a", "aa"), "an overlapping one that is complete later counts"
    assert run(["ab", "b"], ["ab"], armed_from=1) == ("ab", None, ["ab", ""]), "it holds back what may begin another and no more"
    assert run(["aba"], ["aba"], armed_from=1) == ("aba", None, ["ab", "a"])


def test_one_automaton_serves_many_texts() -> None:
    patterns = StopPatterns(["ab"])
    one, other = StopMatcher(patterns), StopMatcher(patterns)
    assert one.feed("a", armed=True) == Matched("", None)
    assert other.feed("b", armed=True) == Matched("b", None)
    assert one.feed("b", armed=True) == Matched("", "ab")


def test_the_longest_and_most_stop_strings_are_cheap_on_text_that_almost_matches() -> None:
    stops = ["a" * 255 + chr(ord("b") + index) for index in range(16)]
    sent, stop, pieces = run(stops, ["a"] * 2000 + ["Z"])
    assert (sent, stop) == ("a" * 2000 + "Z", None)
    assert max(map(len, pieces[:-2])) == 1


def test_a_hidden_piece_is_matched_and_never_sent() -> None:
    matcher = StopMatcher(StopPatterns(["<|x|>", "a<|y|>b"]))
    assert matcher.feed("one", armed=True) == Matched("one", None)
    assert matcher.feed("<|x|>", armed=False, hidden=True) == Matched("", None)
    assert matcher.feed("a", armed=True) == Matched("", None)
    assert matcher.feed("<|y|>", armed=True, hidden=True) == Matched("", None)
    assert matcher.feed("c", armed=True) == Matched("ac", None), "what came of it is sent without what is hidden"
    assert matcher.feed("two", armed=True) == Matched("two", None)
    assert matcher.feed("<|x|>", armed=True, hidden=True) == Matched("", "<|x|>")


@examples(200)
@given(STOPS, st.lists(st.tuples(st.text("abc", max_size=4), st.booleans()), max_size=8))
def test_hidden_pieces_leave_the_text_as_it_is_but_for_themselves(stops: list[str], pieces: list[tuple[str, bool]]) -> None:
    matcher = StopMatcher(StopPatterns(stops))
    sent, stop = "", None
    for text, hidden in pieces:
        more, stop = matcher.feed(text, armed=True, hidden=hidden)
        sent += more
        if stop is not None:
            break
    else:
        sent += matcher.flush()
    whole = "".join(text for text, _ in pieces)
    expected = first_stop(stops, whole, 0)
    assert stop == (expected[1] if expected else None)
    visible = [not hidden for text, hidden in pieces for _ in text]
    end = expected[0] if expected else len(whole)
    assert sent == "".join(character for character, shows in zip(whole[:end], visible[:end], strict=True) if shows)
