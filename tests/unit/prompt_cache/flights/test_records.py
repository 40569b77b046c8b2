"""Records of a flight in Redis: whole, of this answer, from somebody with the secret, or none at all."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_cache.entry import CachedAnswer, CachedDelta, EntryCodec
from prompt_cache.flights import Failed, Finished
from prompt_cache.flights.records import Record, RecordCodec
from prompt_cache.keys import CacheKey
from prompt_cache.sealing import CorruptEntry, Sealer

SECRETS = (b"0123456789abcdef",)
KEY, OTHER = CacheKey("aa", "11" * 32), CacheKey("aa", "22" * 32)
CODEC = RecordCodec(SECRETS)

deltas = st.builds(
    CachedDelta, st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple)
)
ends = st.one_of(
    st.none(),
    st.builds(Finished, st.sampled_from(["stop", "length"]), st.integers(0, 2**32 - 1)),
    st.builds(Failed, st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
)


@given(st.builds(Record, st.integers(0, 2**40), st.lists(deltas, max_size=4).map(tuple), ends))
def test_a_record_comes_back_under_its_key_and_under_no_other(record: Record) -> None:
    data = CODEC.encode(KEY, record)
    assert CODEC.decode(KEY, data) == record
    with pytest.raises(CorruptEntry):
        CODEC.decode(OTHER, data)


@given(st.binary(max_size=80))
def test_rubbish_is_no_record(data: bytes) -> None:
    with pytest.raises(CorruptEntry):
        CODEC.decode(KEY, data)


@pytest.mark.parametrize(
    "columns",
    [
        {},
        [],
        [0, [], []],
        [0, [], [], None, None],
        [-1, [], [], None],
        [True, [], [], None],
        ["0", [], [], None],
        [0, ["a"], [], None],
        [0, [1], [[1]], None],
        [0, ["a"], [[-1]], None],
        [0, ["a"], [[2**32]], None],
        [0, [], [], 1],
        [0, [], [], ["stop"]],
        [0, [], [], ["tools", 1]],
        [0, [], [], ["stop", -1]],
    ],
)
def test_what_is_sealed_but_no_record_is_refused(columns: object) -> None:
    with pytest.raises(CorruptEntry):
        CODEC.decode(KEY, Sealer(SECRETS, "flight").seal(KEY.digest, json.dumps(columns).encode()))


def test_records_and_answers_do_not_pass_for_each_other() -> None:
    entries = EntryCodec(SECRETS)
    with pytest.raises(CorruptEntry):
        entries.decode(KEY, CODEC.encode(KEY, Record(0, (), None)))
    with pytest.raises(CorruptEntry):
        CODEC.decode(KEY, entries.encode(KEY, CachedAnswer(deltas=(), finish_reason="stop", prompt_tokens=1, created_at=0)))
