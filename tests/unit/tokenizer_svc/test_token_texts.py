"""Ids of the tokens that a string is in: by their own text, in every kind of vocabulary, each searched once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.tokenizers import KINDS, SPECIAL_TOKENS
from tests.unit.tokenizer_svc.conftest import MakeFolder, MakeTokenizer
from tokenizer_svc.token_texts import TokenTexts
from tokenizer_svc.tokenizer import Tokenizer
from triserve.rpc import limits
from triserve.rpc.errors import InvalidRequest


def ids_with(tokenizer: Tokenizer, *breakers: str) -> list[int]:
    return list(TokenTexts(tokenizer).ids_with(breakers))


def texts_of(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    texts = tokenizer.token_texts()
    return [texts[token_id] for token_id in token_ids]


class FewTexts(Tokenizer):
    """A tokenizer that says what each token is, and counts how often it is asked."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.asked = 0

    def token_texts(self) -> dict[int, str]:
        self.asked += 1
        return dict(enumerate(self.texts))


@pytest.mark.parametrize("kind", KINDS)
def test_every_id_has_a_text_and_special_tokens_have_none(make_tokenizer: MakeTokenizer, kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    texts = tokenizer.token_texts()
    assert list(texts) == list(range(tokenizer.vocab_size))
    for name in SPECIAL_TOKENS:
        if (token_id := tokenizer.token_id(name)) is not None:
            assert texts[token_id] == ""


@pytest.mark.parametrize("kind", ["byte_level_bpe", "prepending_bpe"])
@pytest.mark.parametrize("text", ['Hello, what is: "all"\n\nof *it*?', "Grüße, Привет мир", "  and   spaces\t"])
def test_texts_of_tokens_make_the_text(make_tokenizer: MakeTokenizer, kind: str, text: str) -> None:
    tokenizer = make_tokenizer(kind)
    ids = tokenizer.encode(f"x{text}", add_special_tokens=False, field="prompt")
    whole = [piece for piece in texts_of(tokenizer, ids) if "\ufffd" not in piece]
    assert all(piece in f" x{text}" for piece in whole)
    if len(whole) == len(ids):
        assert "".join(whole).lstrip() == f"x{text}"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(breakers=st.lists(st.sampled_from(["\n", ":", '"', "*", ",", "e", " ", "an", "мир", "ü", "世界", "nowhere", "\u0301"]), min_size=1))
def test_found_are_those_whose_own_text_has_one_of_the_strings(make_tokenizer: MakeTokenizer, kind: str, breakers: list[str]) -> None:
    tokenizer = make_tokenizer(kind)
    expected = [index for index, text in tokenizer.token_texts().items() if any(breaker in text for breaker in breakers)]
    assert ids_with(tokenizer, *breakers) == expected


def test_bytes_of_byte_level_and_of_last_resort_are_found_by_what_they_say(make_tokenizer: MakeTokenizer) -> None:
    for kind, newline in (("byte_level_bpe", "\u010a"), ("prepending_bpe", "<0x0A>")):
        tokenizer = make_tokenizer(kind)
        assert tokenizer.token_id(newline) in ids_with(tokenizer, "\n")
        assert all("\n" in text for text in texts_of(tokenizer, ids_with(tokenizer, "\n")))


def test_a_character_of_which_a_token_has_but_a_byte_is_not_in_it(make_tokenizer: MakeTokenizer) -> None:
    assert ids_with(make_tokenizer("byte_level_bpe"), "𓀀") == []


def test_a_space_in_front_is_of_the_token(make_tokenizer: MakeTokenizer) -> None:
    for kind in ("byte_level_bpe", "prepending_bpe"):
        tokenizer = make_tokenizer(kind)
        texts = texts_of(tokenizer, ids_with(tokenizer, " t"))
        assert texts and all(" t" in text for text in texts)


def test_nothing_is_found_across_two_tokens() -> None:
    texts = ["", "ab", "", "ba", "ÿ", "b", ""]
    assert ids_with(FewTexts(texts), "ab") == [1]
    assert ids_with(FewTexts(texts), "aÿ") == []
    assert ids_with(FewTexts(texts), "bb", "ÿb") == []
    assert ids_with(FewTexts(texts), "a", "b") == [1, 3, 5]
    assert ids_with(FewTexts([]), "a") == []


def test_an_id_is_found_once_however_often_it_has_the_string() -> None:
    assert ids_with(FewTexts(["aaaa", "b", "a"]), "a", "aa", "a") == [0, 2]


def test_texts_are_made_once_and_answers_kept() -> None:
    tokenizer = FewTexts(["a", "b"])
    texts = TokenTexts(tokenizer)
    assert tokenizer.asked == 0, "not before somebody asks"
    assert texts.kept_ids_with(("a",)) is None
    found = texts.ids_with(("a",))
    assert texts.kept_ids_with(("a",)) is found
    assert list(texts.ids_with(("b",))) == [1]
    assert tokenizer.asked == 1


def test_of_the_answers_the_least_lately_used_goes() -> None:
    texts = TokenTexts(FewTexts(["a"]))
    for number in range(64):
        texts.ids_with((f"{number}",))
    assert texts.kept_ids_with(("0",)) is not None
    texts.ids_with(("64",))
    assert texts.kept_ids_with(("1",)) is None
    assert texts.kept_ids_with(("0",)) is not None


def test_breakers_of_too_many_tokens_are_refused_by_the_one_with_which_they_are() -> None:
    most = limits.MAX_LISTED_TOKEN_IDS
    texts = TokenTexts(FewTexts(["a"] * (most - 1) + ["b", "c"]))
    assert len(texts.ids_with(("a", "b"))) == most
    with pytest.raises(InvalidRequest, match=f"'c', with which they are in more than {most} tokens, the limit") as caught:
        texts.ids_with(("a", "b", "c"))
    assert caught.value.field == "dry_sequence_breakers"
    assert texts.kept_ids_with(("a", "b", "c")) is None


def test_a_vocabulary_without_a_plain_token_has_texts_too(make_folder: MakeFolder) -> None:
    class Unanchored(Tokenizer):
        def _anchor(self, token_ids: Sequence[int]) -> tuple[list[int], str]:
            return [], ""

    texts = Unanchored(make_folder("byte_level_bpe", "chatml")).token_texts()
    assert "\n" in texts.values()


def test_ids_far_apart_take_no_room_in_between(make_folder: MakeFolder) -> None:
    folder = make_folder("whole_words", "chatml")
    far = 1 << 30
    vocab = {**folder.definition["model"]["vocab"], "far:": far}
    model = {**folder.definition["model"], "vocab": vocab}
    added = [token for token in folder.definition["added_tokens"] if token["content"] in vocab]
    tokenizer = Tokenizer(replace(folder, definition={**folder.definition, "model": model, "added_tokens": added}))
    assert tokenizer.vocab_size == far + 1
    assert ids_with(tokenizer, "far:") == [far]
