"""Log-probabilities belong to the answer's text: joined they are it, and they end where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sampler_svc.logprobs import TextLogprob, TokenLogprob
from sampler_svc.request_state import Delta, Finish, RequestState
from sampler_svc.text.vocabulary import Vocabulary
from tests.examples import examples
from tests.fakes.sampler_tokenizers import byte_tokenizer, llama_decoder, tokenizer_of
from tests.fakes.tokenizers import KINDS
from triserve.v1 import common_pb2, sampler_pb2

EOS, CAPITAL, SPECIAL = 258, 256, 259
BYTES = Vocabulary(byte_tokenizer("Ġcapital", "ab<", special=["<eos>", "<|x|>"]))
WIDTH = 1024


@cache
def vocabulary_of(kind: str) -> Vocabulary:
    return BYTES if kind == "bytes" else Vocabulary(Tokenizer.from_str(KINDS[kind]()))


def opening(prompt: Sequence[int], stopping: common_pb2.StoppingParams) -> sampler_pb2.OpenRequest:
    sampling = common_pb2.SamplingParams(temperature=0, top_logprobs=0)
    return sampler_pb2.OpenRequest(request=1, prompt_token_ids=prompt, sampling=sampling, stopping=stopping)


def answer(
    tokens: Sequence[int],
    *,
    vocabulary: Vocabulary = BYTES,
    prompt: Sequence[int] = (ord("?"),),
    max_tokens: int = 100,
    min_tokens: int = 0,
    stops: Sequence[str] = (),
    one_delta: bool = True,
    **text: Any,
) -> Delta:
    """All deltas of an answer as one; log-probabilities are asked for, and tell of the token's place."""
    stopping = common_pb2.StoppingParams(max_tokens=max_tokens, min_tokens=min_tokens, stop_token_ids=[EOS], stop_strings=stops, **text)
    state = RequestState(opening(prompt, stopping), vocabulary, WIDTH)
    whole = state.delta()
    for place, token in enumerate(tokens):
        if whole.finish is not None:
            break
        delta = whole if one_delta else state.delta()
        state.advance(token, delta, TokenLogprob(token, -float(place), []))
        if delta is not whole:
            assert "".join(one.text for one in [*whole.logprobs, *delta.logprobs]) in whole.text + delta.text
            whole.text += delta.text
            whole.logprobs += delta.logprobs
            whole.finish = delta.finish
    return whole


def tokens_of(entries: Sequence[TextLogprob]) -> list[int]:
    return [one.entry.token for one in entries]


def offsets(delta: Delta) -> list[int]:
    return [one.offset for one in delta.logprobs]


def test_offsets_count_characters_of_the_text_and_not_of_shown_tokens() -> None:
    delta = answer([*"🙂".encode(), ord("!"), CAPITAL, EOS])
    assert delta.text == "🙂! capital"
    assert offsets(delta) == [0, 0, 0, 0, 1, 2]
    assert [one.text for one in delta.logprobs] == ["", "", "", "🙂", "!", " capital"]
    assert b"".join(one.added for one in delta.logprobs) == delta.text.encode()


def test_the_token_that_ends_the_answer_is_not_listed() -> None:
    assert tokens_of(answer([*b"hi", EOS]).logprobs) == [*b"hi"]


def test_tokens_behind_the_stop_string_s_beginning_are_not_listed() -> None:
    delta = answer([*b"one\n\n"], stops=["\n\n"])
    assert (delta.text, tokens_of(delta.logprobs)) == ("one", [*b"one"])
    assert answer([*b"END"], stops=["END"]).logprobs == []


def test_a_token_that_a_stop_string_cuts_has_the_text_before_it() -> None:
    delta = answer([ord("x"), 257, *b"/p>"], stops=["</p>"])
    assert (delta.text, tokens_of(delta.logprobs)) == ("xab", [ord("x"), 257])
    assert (delta.logprobs[-1].text, delta.logprobs[-1].added) == ("ab", b"ab")


def test_text_held_back_that_comes_to_nothing_is_listed_with_its_text() -> None:
    delta = answer([*b"a</q", EOS], stops=["</p>"], one_delta=False)
    assert (delta.text, tokens_of(delta.logprobs)) == ("a</q", [*b"a</q"])


def test_entries_of_a_delta_never_run_ahead_of_its_text() -> None:
    state = RequestState(opening([ord("?")], common_pb2.StoppingParams(max_tokens=9, stop_strings=["ab"])), BYTES, WIDTH)
    delta = state.delta()
    state.advance(ord("a"), delta, TokenLogprob(ord("a"), 0.0, []))
    assert (delta.text, delta.logprobs, delta.tokens) == ("", [], [ord("a")])
    state.advance(ord("c"), delta, TokenLogprob(ord("c"), -1.0, []))
    assert (delta.text, [one.text for one in delta.logprobs]) == ("ac", ["a", "c"])


def test_half_a_character_at_the_end_is_its_last_token_s() -> None:
    delta = answer([*b"a", *"🙂".encode()[:2], EOS])
    assert delta.text == "a\ufffd"
    assert [one.text for one in delta.logprobs] == ["a", "", "\ufffd"]
    assert offsets(delta) == [0, 1, 1]


def test_a_byte_that_is_no_character_moves_the_next_token() -> None:
    delta = answer([*"🙂".encode()[:2], ord("a"), ord("b"), EOS])
    assert (delta.text, offsets(delta)) == ("\ufffdab", [0, 0, 1, 2])
    assert len(delta.logprobs) == 4


def test_a_special_token_within_the_answer_has_no_text_of_its_own() -> None:
    delta = answer([ord("a"), SPECIAL, ord("b"), EOS])
    assert [(one.text, one.added, one.offset) for one in delta.logprobs] == [("a", b"a", 0), ("", b"", 1), ("b", b"b", 1)]


def test_the_first_word_of_a_text_is_listed_without_the_space_it_lost() -> None:
    vocabulary = Vocabulary(tokenizer_of(["▁Hello", "▁world"], llama_decoder()))
    delta = answer([0, 1, EOS], vocabulary=vocabulary, prompt=[])
    assert delta.text == "Hello world"
    assert [one.added for one in delta.logprobs] == [b"Hello", b" world"]


@examples(150)
@given(
    kind=st.sampled_from(["bytes", *sorted(KINDS)]),
    tokens=st.lists(st.integers(0, 620) | st.sampled_from([*"🙂é".encode(), *b"ab", SPECIAL]), max_size=14),
    stops=st.lists(st.text("ab <é🙂", min_size=1, max_size=3) | st.sampled_from(["<|x|>", "a<|x|>", "<|x|>b"]), max_size=2),
    max_tokens=st.integers(1, 15),
    one_delta=st.booleans(),
    text=st.fixed_dictionaries(
        dict.fromkeys(("include_stop_string", "skip_special_tokens", "spaces_between_special_tokens"), st.booleans())
    ),
)
def test_texts_of_all_entries_are_the_answer_s_text(
    kind: str, tokens: list[int], stops: list[str], max_tokens: int, one_delta: bool, text: dict[str, Any]
) -> None:
    delta = answer(tokens, vocabulary=vocabulary_of(kind), stops=stops, max_tokens=max_tokens, one_delta=one_delta, **text)
    if delta.finish is None:
        return
    assert "".join(one.text for one in delta.logprobs) == delta.text
    assert offsets(delta) == sorted(offsets(delta))
    assert all(offset <= len(delta.text) for offset in offsets(delta))
    if delta.finish is Finish.LENGTH:
        assert len(delta.logprobs) == max_tokens
    if "\ufffd" not in delta.text:
        assert b"".join(one.added for one in delta.logprobs) == delta.text.encode()
