"""Bad words become the ids by which a model would write them: at the beginning of a text, and behind another word."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest

from tests.fakes.tokenizers import KINDS
from tests.unit.tokenizer_svc.conftest import MakeFolder, MakeTokenizer
from tokenizer_svc.sampling_strings import SamplingStringEncoder, SamplingStrings
from tokenizer_svc.tokenizer import Tokenizer
from triserve.rpc.errors import InvalidRequest

WORDS = ["capital", "Grüße", "Привет", "世界", "🙂", "of France", "\n", "<think>", "<|im_end|>", "𓀀"]
NO_BREAKERS = array("I")


def bad_words(tokenizer: Tokenizer, *words: str) -> list[list[int]]:
    return SamplingStringEncoder(tokenizer).encode(SamplingStrings.check(words, ()), NO_BREAKERS).bad_words


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, field="prompt")


@pytest.mark.parametrize("kind", ["byte_level_bpe", "prepending_bpe"])
@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_encoded_as_it_stands_and_behind_a_space(make_tokenizer: MakeTokenizer, kind: str, word: str) -> None:
    tokenizer = make_tokenizer(kind)
    assert bad_words(tokenizer, word) == [encode(tokenizer, word), encode(tokenizer, f" {word}")]
    assert bad_words(tokenizer, f" {word}") == bad_words(tokenizer, word), "with a space of its own it is the same word"


@pytest.mark.parametrize("kind", ["byte_level_bpe", "prepending_bpe"])
def test_what_is_banned_is_what_a_text_with_the_word_is_made_of(make_tokenizer: MakeTokenizer, kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    ids, found = encode(tokenizer, "what is the capital of it"), bad_words(tokenizer, "capital")
    assert any(ids[start : start + len(word)] == word for word in found for start in range(len(ids)))


def test_forms_that_come_to_the_same_ids_are_one(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("word_piece")
    assert bad_words(tokenizer, "hello", "hello", " hello") == [encode(tokenizer, "hello")]


def test_spaces_alone_are_a_word(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("byte_level_bpe")
    assert bad_words(tokenizer, " ") == [encode(tokenizer, " "), encode(tokenizer, "  ")]


@pytest.mark.parametrize("kind", KINDS)
def test_no_special_token_is_banned_by_a_word_like_its_name(make_tokenizer: MakeTokenizer, kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    try:
        found = bad_words(tokenizer, "</s>")
    except InvalidRequest as error:
        assert "for which the vocabulary has no tokens" in error.message
    else:
        assert not any(tokenizer.token_id("</s>") in ids for ids in found)


@pytest.mark.parametrize(
    ("kind", "word"), [("word_piece", "𓀀"), ("whole_words", "unheard-of"), ("metaspace_unigram", "𓀀"), ("word_piece", "\u200b")]
)
def test_a_word_that_the_vocabulary_has_nothing_for_is_named(make_tokenizer: MakeTokenizer, kind: str, word: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        bad_words(make_tokenizer(kind), "hello" if kind != "whole_words" else "and", word)
    assert caught.value.field == "bad_words"
    assert caught.value.message == f"bad_words has {word!r}, for which the vocabulary has no tokens"


def test_a_word_that_the_library_cannot_encode_is_named(make_folder: MakeFolder) -> None:
    folder = make_folder("whole_words", "chatml")
    model = {**folder.definition["model"], "unk_token": "nowhere"}
    tokenizer = Tokenizer(replace(folder, definition={**folder.definition, "model": model}, special_tokens={}))
    with pytest.raises(InvalidRequest, match="bad_words has 'unheard-of', for which the vocabulary has no tokens"):
        bad_words(tokenizer, "unheard-of")


def test_a_word_of_too_many_tokens_is_named_shortened(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("byte_level_bpe")
    fits = "\x01" * 63
    assert [len(ids) for ids in bad_words(tokenizer, fits)] == [63, 64]
    with pytest.raises(InvalidRequest, match=r"^bad_words has '(\\x01){64}', which is 65 tokens, the limit is 64$"):
        bad_words(tokenizer, "\x01" * 64)
    with pytest.raises(InvalidRequest, match=r"^bad_words has '(\\x02){64}\.\.\.', which is 200 tokens, the limit is 64$"):
        bad_words(tokenizer, "\x02" * 200)


@pytest.mark.parametrize(
    ("words", "breakers", "what"),
    [
        (["x"] * 513, [], "bad_words has 513 strings, the limit is 512"),
        ([""], [], "bad_words has a string of 0 characters, the limits are 1 and 256"),
        (["x" * 257], [], "bad_words has a string of 257 characters, the limits are 1 and 256"),
        ([], ["x"] * 17, "dry_sequence_breakers has 17 strings, the limit is 16"),
        ([], [""], "dry_sequence_breakers has a string of 0 characters, the limits are 1 and 40"),
        ([], ["x" * 41], "dry_sequence_breakers has a string of 41 characters, the limits are 1 and 40"),
    ],
)
def test_strings_are_bounded_here_too(words: list[str], breakers: list[str], what: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingStrings.check(words, breakers)
    assert caught.value.message == what
    assert caught.value.field == what.split()[0]


def test_strings_at_their_limits_are_taken_and_cost_what_they_take() -> None:
    strings = SamplingStrings.check(["é" * 256] * 512, ["x" * 40] * 16)
    assert (len(strings.bad_words), strings.breakers) == (512, ("x" * 40,))
    assert strings.num_bytes == 512 * 2 * (512 + 32)
    assert SamplingStrings.check([], ["x"]).num_bytes == 0


def test_breakers_are_searched_for_unless_they_were_lately(make_tokenizer: MakeTokenizer) -> None:
    encoder = SamplingStringEncoder(make_tokenizer("byte_level_bpe"))
    strings = SamplingStrings.check(["a"], ["\n", ":"])
    assert encoder.kept_breaker_ids(strings) is None
    found = encoder.encode(strings, None).breaker_ids
    assert len(found) > 2
    assert encoder.kept_breaker_ids(strings) is found
    assert encoder.kept_breaker_ids(SamplingStrings.check(["a"], [])) == NO_BREAKERS
