"""Deltas add up to the library's text of all tokens, and none ends in half a character."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from sampler_svc.text.detokenizer import REPLACEMENT, ByteDetokenizer, Fed, WindowDetokenizer, open_detokenizer
from sampler_svc.text.vocabulary import Vocabulary
from tests.examples import examples
from tests.fakes.sampler_tokenizers import byte_tokenizer, llama_decoder, tokenizer_of
from tests.fakes.tokenizers import KINDS

BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def tokenizer(kind: str) -> Tokenizer:
    """One real tokenizer of each kind."""
    return Tokenizer.from_str(KINDS[kind]())


@cache
def vocabulary(kind: str) -> Vocabulary:
    return Vocabulary(tokenizer(kind))


def deltas(vocabulary: Vocabulary, prompt: list[int], answer: list[int]) -> list[str]:
    """What each token of the answer adds, and the flush."""
    detokenizer = open_detokenizer(vocabulary, prompt)
    return [detokenizer.feed(token) for token in answer] + [detokenizer.flush()]


# A text, or any ids at all: unknown ones too.
PROMPTS = st.sampled_from(["", "Hello", "Hello ", "<s>", "a\n<|im_start|>assistant\n", "🙂 ü こ", "<think>", "don't , stop ."])
ANSWERS = st.lists(st.integers(0, 620), max_size=12)
TEXTS = st.text(st.sampled_from("Hello, wie geht's?  \n éüß€こんにちは🙂👩‍👧 .!"), max_size=20)


@examples(60)
@given(kind=st.sampled_from(sorted(KINDS)), prompt=PROMPTS, answer=ANSWERS, shown=st.booleans())
def test_deltas_of_any_ids_add_up_to_the_text_after_the_prompt(kind: str, prompt: str, answer: list[int], shown: bool) -> None:
    library = tokenizer(kind)
    if kind == "prepending_bpe":  # runs of bytes are a matter of their own, below
        answer = [token for token in answer if not (library.id_to_token(token) or "").startswith("<0x")]
    context = library.encode(prompt, add_special_tokens=False).ids
    whole, before = (library.decode(ids, skip_special_tokens=not shown) for ids in (context + answer, context))
    assert whole.startswith(before)
    own = vocabulary(kind).with_special_tokens if shown else vocabulary(kind)
    assert "".join(deltas(own, context, answer)) == whole[len(before) :]


def test_names_of_special_tokens_are_text_where_they_are_shown() -> None:
    shown = Vocabulary(llama()).with_special_tokens
    assert shown.with_special_tokens is shown
    assert deltas(shown, [BOS, HELLO], [BOS, WORLD]) == ["<s>", " world", ""]
    assert deltas(shown, [], [BOS, HELLO]) == ["<s>", " Hello", ""]
    first, second = "é".encode()
    assert deltas(Vocabulary(byte_tokenizer()).with_special_tokens, [], [first, 256, second]) == [
        "",
        f"{REPLACEMENT}<eos>",
        REPLACEMENT,
        "",
    ]


def test_no_space_is_put_between_special_tokens_where_none_is_wanted() -> None:
    library = tokenizer_of(["it", "##s"], decoders.WordPiece(), special=["[A]", "[B]"])
    shown, answer = Vocabulary(library).with_special_tokens, [0, 2, 3, 2, 0, 1, 3]
    assert library.decode(answer, skip_special_tokens=False) == "it [A] [B] [A] its [B]"
    for joins, expected in ((False, "it [A] [B] [A] its [B]"), (True, "it [A][B][A] its [B]")):
        detokenizer = open_detokenizer(shown, [], joins_special_tokens=joins)
        assert "".join(detokenizer.feed(token) for token in answer) + detokenizer.flush() == expected
    hidden = open_detokenizer(Vocabulary(library), [], joins_special_tokens=True)
    assert "".join(hidden.feed(token) for token in answer) == "it its", "tokens that are no text have no names to join"


@examples(60)
@given(kind=st.sampled_from(sorted(KINDS)), prompt=PROMPTS, text=TEXTS)
def test_deltas_of_a_text_have_no_half_characters(kind: str, prompt: str, text: str) -> None:
    library = tokenizer(kind)
    context, answer = (library.encode(part, add_special_tokens=False).ids for part in (prompt, text))
    whole, before = library.decode(context + answer), library.decode(context)
    pieces = deltas(vocabulary(kind), context, answer)
    assert "".join(pieces) == whole[len(before) :]
    assert REPLACEMENT not in "".join(pieces)


@examples(60)
@given(st.lists(st.integers(0, 256 + 3), max_size=12))
def test_any_bytes_give_what_the_library_makes_of_them(answer: list[int]) -> None:
    library = byte_tokenizer("ab", "c")
    assert "".join(deltas(Vocabulary(library), [], answer)) == library.decode(answer)


def test_characters_of_two_three_and_four_bytes_split_over_tokens_come_whole() -> None:
    """PPL.LLM waited for exactly three tokens, and broke characters of two and four bytes."""
    for character in "é€🙂":
        whole = character.encode()
        pieces = deltas(Vocabulary(byte_tokenizer()), [], [*whole, ord("x")])
        assert pieces == [""] * (len(whole) - 1) + [character, "x", ""]


def test_half_a_character_at_the_very_end_is_one_replacement() -> None:
    assert deltas(Vocabulary(byte_tokenizer()), [], [*"🙂".encode()[:3]]) == ["", "", "", REPLACEMENT]


def test_bytes_that_never_become_a_character_end_as_the_library_ends_them() -> None:
    library = byte_tokenizer()
    for data in (b"\xed\xa0", b"\xf4\x90", b"\xe0\x80", b"\xf0\x9f\x99", b"\xc3"):
        assert "".join(deltas(Vocabulary(library), [], [*data])) == library.decode([*data])


def test_a_special_token_within_a_character_does_not_break_it() -> None:
    first, second = "é".encode()
    assert deltas(Vocabulary(byte_tokenizer()), [], [first, 256, second]) == ["", "", "é", ""]


def test_a_character_that_the_prompt_leaves_half_belongs_to_the_answer() -> None:
    first, second, third = "€".encode()
    assert deltas(Vocabulary(byte_tokenizer()), [ord("a"), first, second], [third]) == ["€", ""]


def llama() -> Tokenizer:
    """Ids 0 to 255 are bytes, then ▁Hello, ▁world, lo, ▁ and a special token."""
    return tokenizer_of([*BYTE_PIECES, "▁Hello", "▁world", "lo", "▁"], llama_decoder(), special=["<s>"])


HELLO, WORLD, LO, SPACE, BOS = range(256, 261)


def test_the_first_token_keeps_its_space_after_a_prompt_and_drops_it_without_one() -> None:
    assert deltas(Vocabulary(llama()), [BOS, HELLO], [WORLD]) == [" world", ""]
    assert deltas(Vocabulary(llama()), [BOS], [HELLO, WORLD]) == ["Hello", " world", ""]
    assert deltas(Vocabulary(llama()), [], [SPACE, BOS, HELLO]) == ["", "", " Hello", ""]


@examples(60)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([HELLO, WORLD, LO, SPACE, BOS, 999]).map(lambda token: [token]),
            st.sampled_from("aé€🙂\n").map(lambda c: [*c.encode()]),
        )
    ),
    st.sampled_from([[], [BOS], [BOS, HELLO], [LO, *"é".encode()]]),
)
def test_bytes_as_a_last_resort_give_the_librarys_text(chunks: list[list[int]], context: list[int]) -> None:
    answer, library = [token for chunk in chunks for token in chunk], llama()
    expected = library.decode(context + answer)[len(library.decode(context)) :]
    assert "".join(deltas(Vocabulary(library), context, answer)) == expected


def test_a_bad_byte_is_replaced_and_takes_back_no_character() -> None:
    library = llama()
    euro = [*"€".encode()]
    assert library.decode([*euro, 0xFF, LO]) == REPLACEMENT * 4 + "lo", "the library takes back what a stream has sent"
    assert deltas(Vocabulary(library), [LO], [*euro, 0xFF, LO]) == ["", "", "€", REPLACEMENT, "lo", ""]
    assert deltas(Vocabulary(library), [LO], [*euro[:2], LO]) == ["", "", REPLACEMENT * 2 + "lo", ""]


@pytest.mark.parametrize(
    ("kind", "independent"),
    [("byte_level_bpe", True), ("prepending_bpe", True), ("metaspace_unigram", True), ("word_piece", False), ("whole_words", False)],
)
def test_only_vocabularies_that_look_at_neighbours_pay_for_windows(kind: str, independent: bool) -> None:
    detokenizer = open_detokenizer(vocabulary(kind), [])
    assert isinstance(detokenizer, ByteDetokenizer if independent else WindowDetokenizer)


def test_a_window_holds_back_what_may_be_half_a_character_but_not_for_ever() -> None:
    # A replacement character in the vocabulary itself never becomes anything else.
    library = tokenizer_of([REPLACEMENT, "a"], decoders.WordPiece())
    assert not Vocabulary(library).independent
    pieces = deltas(Vocabulary(library), [1], [0] * 5 + [1])
    assert "".join(pieces) == library.decode([1] + [0] * 5 + [1])[1:]
    assert pieces.index(next(piece for piece in pieces if piece)) == 3


def test_a_window_stays_small_when_tokens_add_nothing() -> None:
    detokenizer = WindowDetokenizer(Vocabulary(tokenizer_of(["a", "b"], decoders.CTC())), [])
    assert [detokenizer.feed(0) for _ in range(200)] == ["a"] + [""] * 199
    assert detokenizer.feed(1) == "b"
    assert len(detokenizer._window) <= 33


class WatchedVocabulary(Vocabulary):
    """Notes what it is asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.asked: set[int] = set()
        self.decoded: list[int] = []

    def is_text(self, token: int) -> bool:
        """Notes the token."""
        self.asked.add(token)
        return super().is_text(token)

    def decode(self, tokens: list[int]) -> str:
        """Notes how many tokens."""
        self.decoded.append(len(tokens))
        return super().decode(tokens)


def test_of_a_long_prompt_no_more_is_looked_at_than_half_a_character_and_what_stands_before_it() -> None:
    watched = WatchedVocabulary(byte_tokenizer())
    open_detokenizer(watched, [*b"a long prompt"] * 100 + [256, *b"a", 256, *"🙂".encode()[:3]])
    assert watched.asked == {*b"a", *"🙂".encode()[:3], 256}


def test_tokens_that_add_nothing_push_out_the_one_that_did_once_they_are_many() -> None:
    watched = WatchedVocabulary(tokenizer_of(["a", "b"], decoders.CTC()))
    detokenizer = WindowDetokenizer(watched, [])
    for _ in range(34):
        detokenizer.feed(0)
    # The first is decoded once more as what follows stands behind; after 32 in vain the newest four are.
    assert watched.decoded == [0, 1, 1, *range(2, 34), 4, 5]


def test_half_a_character_is_pending_until_it_is_whole_or_can_be_none() -> None:
    detokenizer = open_detokenizer(Vocabulary(byte_tokenizer()), [])
    first, second = "é".encode()
    assert detokenizer.pending is False
    for token, text, pending in ((first, "", True), (second, "é", False), (first, "", True), (ord("x"), f"{REPLACEMENT}x", False)):
        assert (detokenizer.feed(token), detokenizer.pending) == (text, pending)


def test_a_window_s_half_a_character_is_pending_until_it_is_given_up() -> None:
    detokenizer = WindowDetokenizer(Vocabulary(tokenizer_of([REPLACEMENT, "a"], decoders.WordPiece())), [1])
    assert detokenizer.pending is False
    fed = []
    for _ in range(4):
        fed.append(detokenizer.feed(0))
        assert detokenizer.pending is (not fed[-1])
    assert fed == ["", "", "", f" {REPLACEMENT}" * 4]


def test_a_token_s_own_bytes_are_those_it_has_at_its_place() -> None:
    detokenizer = open_detokenizer(Vocabulary(llama()), [])
    assert [detokenizer.feed_exactly(token) for token in (HELLO, WORLD, BOS, 0xC3, 0xA9)] == [
        Fed("Hello", b"Hello"),
        Fed(" world", b" world"),
        Fed("", b""),
        Fed("", b"\xc3"),
        Fed("é", b"\xa9"),
    ]


def test_the_bytes_of_a_token_in_a_window_are_its_text_unless_that_is_not_its_alone() -> None:
    library = tokenizer_of(["it", "##s", REPLACEMENT, f"x{REPLACEMENT}y"], decoders.WordPiece(), special=["<s>"])
    own = Vocabulary(library).text_bytes
    assert own(0) == b" it", "its own bytes are those it has after others"
    detokenizer = WindowDetokenizer(Vocabulary(library), [])
    assert detokenizer.feed_exactly(3) == Fed(f"x{REPLACEMENT}y", own(3)), "not sure to be a character"
    detokenizer = WindowDetokenizer(Vocabulary(library), [])
    assert detokenizer.feed_exactly(0) == Fed("it", b"it"), "alone it has no space"
    assert detokenizer.feed_exactly(1) == Fed("s", b"s")
    assert detokenizer.feed_exactly(2) == Fed("", own(2)), "held back"
    assert detokenizer.feed_exactly(0) == Fed(f" {REPLACEMENT} it", own(0)), "comes with what was held back"


def test_a_sentence_of_word_pieces_is_spaced_as_the_library_does() -> None:
    library = tokenizer("word_piece")
    answer = library.encode("don't stop, render it.", add_special_tokens=False).ids
    assert "".join(deltas(vocabulary("word_piece"), [], answer)) == library.decode(answer)
