"""A text refused by its length has too many tokens, for every tokenizer that has a bound; and every text of twice the bound is refused."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.tokenizers import CORPUS, KINDS
from tokenizer_svc.token_reach import UNICODE_SHRINKS, TokenReach, token_reach
from tokenizer_svc.tokenizer import Tokenizer
from tokenizer_svc.tokenizer_definition import prepare
from triserve.rpc.errors import PromptTooLong

BOUNDED = ("byte_level_bpe", "prepending_bpe")
MakeTokenizer = Callable[[str], Tokenizer]
# Whatever real texts have, and whatever could be one token: pieces of the vocabularies, runs, names of tokens, letters of all lengths.
PIECES = st.sampled_from(
    [*CORPUS, " ", "  ", "\n", "a" * 19, "<think>", "</think>", "<|im_start|>", "é", "e\u0301", "世", "🙂", "\u212a", "K"]
)


def definition(kind: str, **changed: Any) -> Mapping[str, Any]:
    return prepare({**json.loads(KINDS[kind]()), **changed}, ())


@pytest.mark.parametrize("kind", BOUNDED)
@given(pieces=st.lists(PIECES | st.text(max_size=8), max_size=12), limit=st.integers(0, 40))
def test_no_text_that_fits_is_refused(make_tokenizer: MakeTokenizer, kind: str, pieces: list[str], limit: int) -> None:
    tokenizer, text = make_tokenizer(kind), "".join(pieces)
    ids = tokenizer.encode(text, add_special_tokens=False, field="prompt")
    assert tokenizer._reach is not None
    assert not tokenizer._reach.is_exceeded(text, len(ids))
    if len(ids) <= limit:
        assert tokenizer.encode(text, add_special_tokens=False, field="prompt", max_tokens=limit) == ids
    else:
        with pytest.raises(PromptTooLong, match=f"^prompt has {len(ids)} tokens, the limit is {limit}$"):
            tokenizer.encode(text, add_special_tokens=False, field="prompt", max_tokens=limit)


@pytest.mark.parametrize("kind", BOUNDED)
def test_a_text_far_too_long_is_refused_by_its_length(make_tokenizer: MakeTokenizer, kind: str) -> None:
    reach = token_reach(definition(kind), aliases={})
    assert reach is not None
    text = "x" * int(10 * reach.num_bytes)
    assert not reach.is_exceeded(text, 10)
    assert reach.is_exceeded(text + "x", 10)
    assert not reach.is_exceeded("🙂" * 47, 10), "188 bytes, and 190 may be ten tokens"
    assert reach.is_exceeded("🙂" * 48, 10)
    with pytest.raises(PromptTooLong, match=r"^prompt has 1000000 characters, which are more than 100 tokens, the limit$"):
        make_tokenizer(kind).encode("x" * 1_000_000, add_special_tokens=True, field="prompt", max_tokens=100)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - set(BOUNDED)))
def test_a_tokenizer_that_may_drop_or_merge_any_stretch_has_no_bound(kind: str) -> None:
    assert token_reach(definition(kind), aliases={}) is None


SEQUENCE = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"String": "ab"}, "content": "c"}]}


@pytest.mark.parametrize(
    ("changed", "num_bytes"),
    [
        ({}, 19),
        ({"normalizer": {"type": "NFC"}}, 19 * 4),
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, 19),
        ({"normalizer": SEQUENCE}, 19 * 4 * 2),
        ({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}}, 19),
        ({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": ""}}, None),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}}, None),
        ({"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}}, None),
        ({"pre_tokenizer": {"type": "Whitespace"}}, None),
        ({"pre_tokenizer": None}, None),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel"}]}}, 19),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "behavior": "Removed"}, {"type": "ByteLevel"}]}}, None),
    ],
)
def test_every_step_before_the_vocabulary_counts(changed: dict[str, Any], num_bytes: float | None) -> None:
    reach = token_reach(definition("byte_level_bpe", **changed), aliases={})
    assert (reach and reach.num_bytes) == num_bytes


def test_a_vocabulary_that_lacks_a_byte_has_no_bound() -> None:
    known = json.loads(KINDS["byte_level_bpe"]())
    del known["model"]["vocab"]["Ġ"]
    assert token_reach(prepare(known, ()), aliases={}) is None
    known = json.loads(KINDS["prepending_bpe"]())
    known["model"]["byte_fallback"] = False
    assert token_reach(prepare(known, ()), aliases={}) is None


def test_an_alias_is_a_token_too() -> None:
    reach = token_reach(definition("byte_level_bpe"), aliases={"<s>": "\ufdd0" * 30})
    assert reach is not None
    assert reach.num_bytes == 90


def test_where_a_token_swallows_white_space_only_the_rest_counts() -> None:
    known = json.loads(KINDS["byte_level_bpe"]())
    known["added_tokens"][0]["rstrip"] = True
    reach = token_reach(prepare(known, ()), aliases={})
    assert reach == TokenReach(19, True)
    assert not reach.is_exceeded("\u3000 \n" * 10_000 + "x" * 19, 1)
    assert reach.is_exceeded("\u3000 \n" * 10_000 + "x" * 20, 1)


def test_no_normal_form_and_no_lower_case_shrinks_a_text_by_more() -> None:
    characters = map(chr, range(0x110000))
    everything = [one for one in characters if one.isascii() or unicodedata.decomposition(one) or one.lower() != one]
    # The longest character that becomes each character of a decomposition, and what compositions of such become.
    longest: dict[str, int] = {}
    for character in everything:
        alone = unicodedata.normalize("NFKD", character)
        if len(alone) == 1:
            longest[alone] = max(longest.get(alone, len(alone.encode())), len(character.encode()))
    for character in everything:
        assert len(character.encode()) <= UNICODE_SHRINKS * len(character.lower().encode())
        if character.isascii() or unicodedata.normalize("NFC", character) != character:
            continue
        parts = unicodedata.normalize("NFKD", character)
        if len(unicodedata.normalize("NFC", parts)) == 1:
            assert sum(longest.get(part, len(part.encode())) for part in parts) <= UNICODE_SHRINKS * len(character.encode())
