"""Entries come back whole or not at all."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_cache.entry import CachedAnswer, CachedDelta, EntryCodec
from prompt_cache.keys import CacheKey
from prompt_cache.sealing import CorruptEntry, UnknownKey

CODEC = EntryCodec([b"0123456789abcdef"])
KEY = CacheKey("00", hashlib.sha256(b"a").hexdigest())
OTHER_KEY = CacheKey("00", hashlib.sha256(b"b").hexdigest())

ids = st.integers(0, 2**32 - 1)
answers = st.builds(
    CachedAnswer,
    deltas=st.lists(st.builds(CachedDelta, st.text(max_size=5), st.lists(ids, max_size=3).map(tuple)), max_size=5).map(tuple),
    finish_reason=st.sampled_from(["stop", "length"]),
    prompt_tokens=ids,
    created_at=ids,
    took_ms=ids,
)
ANSWER = CachedAnswer(deltas=(CachedDelta("Grüße", (1, 2)), CachedDelta("", ())), finish_reason="stop", prompt_tokens=3, created_at=0)


@given(answers)
def test_an_answer_comes_back_as_it_was(answer: CachedAnswer) -> None:
    assert CODEC.decode(KEY, CODEC.encode(KEY, answer)) == answer


@given(st.binary(max_size=64))
def test_rubbish_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptEntry):
        CODEC.decode(KEY, data)


@given(answers, st.data())
def test_one_changed_bit_is_noticed(answer: CachedAnswer, data: st.DataObject) -> None:
    encoded = bytearray(CODEC.encode(KEY, answer))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptEntry):
        CODEC.decode(KEY, bytes(encoded))


@given(answers, st.data())
def test_a_truncated_entry_is_corrupt(answer: CachedAnswer, data: st.DataObject) -> None:
    encoded = CODEC.encode(KEY, answer)
    with pytest.raises(CorruptEntry):
        CODEC.decode(KEY, encoded[: data.draw(st.integers(0, len(encoded) - 1))])


def test_an_entry_under_another_key_is_corrupt() -> None:
    with pytest.raises(CorruptEntry):
        CODEC.decode(OTHER_KEY, CODEC.encode(KEY, ANSWER))


def test_an_entry_made_with_another_secret_is_corrupt() -> None:
    with pytest.raises(CorruptEntry):
        CODEC.decode(KEY, EntryCodec([b"fedcba9876543210"]).encode(KEY, ANSWER))


@pytest.mark.parametrize(
    "columns",
    [
        {},
        [],
        [["a"], [[1]], "stop", 1],
        [["a"], [], "stop", 1, 0, 0],
        [[1], [[1]], "stop", 1, 0, 0],
        [["a"], [1], "stop", 1, 0, 0],
        [["a"], [[-1]], "stop", 1, 0, 0],
        [["a"], [[2**32]], "stop", 1, 0, 0],
        [["a"], [[True]], "stop", 1, 0, 0],
        [["a"], [[1.0]], "stop", 1, 0, 0],
        [["a"], [[1]], "error", 1, 0, 0],
        [["a"], [[1]], ["stop"], 1, 0, 0],
        [["a"], [[1]], "stop", None, 0, 0],
        [["a"], [[1]], "stop", -1, 0, 0],
        [["a"], [[1]], "stop", 1, 0.5, 0],
        [["a"], [[1]], "stop", 1, -1, 0],
        [["a"], [[1]], "stop", 1, 0, None],
        [["a"], [[1]], "stop", 1, 0, 2.5],
    ],
)
def test_an_encrypted_entry_of_another_shape_is_corrupt(columns: object) -> None:
    body = json.dumps(columns).encode()
    with pytest.raises(CorruptEntry):
        CODEC.decode(KEY, CODEC.seal(KEY, body))


def test_who_reads_an_entry_without_the_secret_learns_no_answer() -> None:
    secret = CachedAnswer(deltas=(CachedDelta("confidential", (4711,)),) * 20, finish_reason="stop", prompt_tokens=3, created_at=0)
    encoded = CODEC.encode(KEY, secret)
    assert b"confidential" not in encoded
    assert b"4711" not in encoded
    assert CODEC.encode(KEY, secret) != encoded, "equal answers look different"


@pytest.mark.parametrize("text", ["\ud800"])
def test_text_that_is_not_unicode_is_refused_when_encoding(text: str) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        CODEC.encode(KEY, CachedAnswer(deltas=(CachedDelta(text, (1,)),), finish_reason="stop", prompt_tokens=1, created_at=0))


def test_an_id_out_of_range_is_refused_when_encoding() -> None:
    with pytest.raises(ValueError, match="token ids"):
        CODEC.encode(KEY, CachedAnswer(deltas=(CachedDelta("a", (-1,)),), finish_reason="stop", prompt_tokens=1, created_at=0))


OLD, NEW = b"0123456789abcdef", b"fedcba9876543210"


def test_after_a_change_of_secrets_old_entries_open_and_new_ones_are_sealed_with_the_new_secret() -> None:
    before, both, after = EntryCodec([OLD]), EntryCodec([NEW, OLD]), EntryCodec([NEW])
    assert both.decode(KEY, before.encode(KEY, ANSWER)) == ANSWER
    assert after.decode(KEY, both.encode(KEY, ANSWER)) == ANSWER
    with pytest.raises(UnknownKey):
        before.decode(KEY, both.encode(KEY, ANSWER))


def test_an_entry_of_the_layout_before_is_skipped_and_never_misread() -> None:
    """Bytes as version 2 wrote them: its own header, then nonce and ciphertext under a key of its own; the names differ by the version too."""
    version_2 = bytes.fromhex("02" + "a0a1a2a3a4a5a6a7a8a9aaab" + "5e" * 64)
    with pytest.raises(CorruptEntry):
        CODEC.decode(KEY, version_2)
    assert not KEY.redis_name.startswith("triserve:cache:2:")
