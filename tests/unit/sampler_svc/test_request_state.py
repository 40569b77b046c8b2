"""One answer from its first token to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_svc.errors import Disagreement
from sampler_svc.request_state import MAX_TOKENS, REPLAY_PIECE_TOKENS, Delta, Finish, RequestState
from sampler_svc.text.vocabulary import Vocabulary
from tests.fakes.sampler_tokenizers import byte_tokenizer
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.sampling import Sampling
from triserve.v1 import common_pb2, sampler_pb2

EOS = 256
WIDTH = 257
VOCABULARY = Vocabulary(byte_tokenizer())


def opening(
    *, generated: Sequence[int] = (), prompt: Sequence[int] = (ord("?"),), sampling: Sampling | None = None, **stopping: Any
) -> sampler_pb2.OpenRequest:
    """A greedy request whose tokens are bytes; id 256 ends it."""
    fields: dict[str, Any] = {"max_tokens": 100, "stop_token_ids": [EOS]} | stopping
    return sampler_pb2.OpenRequest(
        request=1,
        gateway=5,
        gateway_request=7,
        epoch=2,
        request_id="r-1",
        prompt_token_ids=prompt,
        generated_token_ids=generated,
        sampling=(sampling or Sampling(temperature=0.0)).write(),
        stopping=common_pb2.StoppingParams(**fields),
    )


def answer(state: RequestState, text: str | Sequence[int]) -> Delta:
    """One delta of all tokens up to the end."""
    delta = state.delta()
    for token in text.encode() if isinstance(text, str) else text:
        assert delta.finish is None
        state.advance(token, delta)
    return delta


def state(**fields: Any) -> RequestState:
    made = RequestState(opening(**fields), VOCABULARY, WIDTH)
    for _ in made.replay():
        pass
    return made


def test_a_delta_says_whose_it_is_and_where_it_begins() -> None:
    request = state()
    answer(request, "ab")
    delta = answer(request, "cd")
    assert (delta.gateway, delta.gateway_request, delta.epoch, delta.first_position) == (5, 7, 2, 2)
    assert (delta.tokens, delta.text, delta.finish) == ([*b"cd"], "cd", None)


def test_a_stop_id_ends_the_answer_is_counted_and_gives_no_text() -> None:
    """PPL.LLM ignored the client's stop ids, and sent stop tokens as text."""
    delta = answer(state(stop_token_ids=[ord("!")]), "hi!")
    assert (delta.text, delta.tokens, delta.finish) == ("hi", [*b"hi!"], Finish.STOP)


def test_end_of_text_on_the_last_allowed_token_is_a_stop() -> None:
    """PPL.LLM reported the length."""
    delta = answer(state(max_tokens=3), [*b"hi", EOS])
    assert (delta.text, delta.finish) == ("hi", Finish.STOP)


def test_the_last_allowed_token_ends_the_answer_by_length() -> None:
    delta = answer(state(max_tokens=2), "hi")
    assert (delta.text, delta.finish) == ("hi", Finish.LENGTH)


def test_a_stop_string_cuts_the_text() -> None:
    delta = answer(state(stop_strings=("END", "\n\n")), "one\n\n")
    assert (delta.text, delta.finish) == ("one", Finish.STOP)
    assert delta.tokens == [*b"one\n\n"]


def test_a_stop_string_stays_in_the_text_where_it_is_wanted_and_nothing_behind_it() -> None:
    kept = state(stop_strings=("END", "\n\n", "\n\n!"), include_stop_string=True)
    delta = answer(kept, "one\n\n")
    assert (delta.text, delta.finish) == ("one\n\n", Finish.STOP)
    assert answer(state(stop_strings=("EN",), include_stop_string=True, max_tokens=3), "xEN").text == "xEN"
    assert answer(state(stop_strings=("END",), include_stop_string=True), [*b"xEN", EOS]).text == "xEN", "it did not come"
    assert answer(state(include_stop_string=True, stop_token_ids=[ord("!")]), "hi!").text == "hi", "a stop id is no string"


def test_special_tokens_that_are_shown_are_text_but_for_the_one_that_ends_the_answer() -> None:
    vocabulary = Vocabulary(byte_tokenizer(special=["<eos>", "<|x|>"]))

    def answered(tokens: Sequence[int], **stopping: Any) -> Delta:
        return answer(RequestState(opening(skip_special_tokens=False, **stopping), vocabulary, WIDTH + 1), tokens)

    assert answered([*b"a", 257, *b"b", EOS]).text == "a<|x|>b"
    assert answered([*b"a", 257], stop_strings=("x|",)).text == "a<|", "names are matched as any text"
    assert answered([*b"a", 257], stop_strings=("<|x|>",), include_stop_string=True).text == "a<|x|>"
    assert answered([EOS, *b"a"], stop_token_ids=[], max_tokens=2).text == "<eos>a"


def test_a_stop_string_on_the_last_allowed_token_is_a_stop() -> None:
    assert answer(state(max_tokens=3, stop_strings=("bc",)), "abc").finish is Finish.STOP


def test_a_stop_id_goes_before_the_stop_string_that_half_came() -> None:
    delta = answer(state(stop_strings=("END",)), [*b"xEN", EOS])
    assert (delta.text, delta.finish) == ("xEN", Finish.STOP)


def test_text_held_back_is_sent_when_the_length_ends_the_answer() -> None:
    delta = answer(state(max_tokens=3, stop_strings=("END",)), "xEN")
    assert (delta.text, delta.finish) == ("xEN", Finish.LENGTH)


def test_half_a_character_is_replaced_only_at_the_very_end() -> None:
    half = [*b"a", *"é".encode()[:1]]
    assert answer(state(), half).text == "a"
    assert answer(state(max_tokens=2), half).text == "a\ufffd"
    assert answer(state(), [*half, EOS]).text == "a\ufffd"
    assert answer(state(stop_strings=("a!",)), [*half, EOS]).text == "a\ufffd", "in the order of the text"


def test_stop_strings_do_not_count_before_min_tokens() -> None:
    delta = answer(state(stop_strings=("b",), min_tokens=3), "abcb")
    assert (delta.text, delta.finish) == ("abc", Finish.STOP)
    assert answer(state(stop_strings=("b",), min_tokens=2), "ab").finish is Finish.STOP, "complete with the second token"


def test_a_stop_id_before_min_tokens_breaks_the_contract() -> None:
    request = state(min_tokens=2)
    answer(request, "ab")
    assert answer(request, [EOS]).finish is Finish.STOP
    with pytest.raises(Disagreement):
        answer(state(min_tokens=2), [ord("a"), EOS])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": [WIDTH]}, "prompt_token_ids"),
        ({"generated": [WIDTH]}, "generated_token_ids"),
        ({"generated": [*b"ab"], "max_tokens": 2}, "generated_token_ids"),
        ({"generated": [*b"ab"], "stop_strings": ("b",)}, "generated_token_ids"),
        ({"generated": [EOS]}, "generated_token_ids"),
        ({"generated": [EOS], "min_tokens": 1}, "generated_token_ids"),
        ({"max_tokens": None}, "max_tokens"),
        ({"sampling": Sampling(top_p=0.0, seed=1)}, "top_p"),
        ({"sampling": Sampling(top_k=0, seed=1)}, "top_k"),
        ({"sampling": Sampling(temperature=0.0, bad_words=((WIDTH,),))}, "bad_words"),
        ({"stop_strings": ("",)}, "stop_strings"),
    ],
    ids=str,
)
def test_a_bad_request_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        state(**fields)
    assert caught.value.field == field


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.sampled_from("ab€"), max_size=10),
    cut=st.integers(0, 30),
    stops=st.lists(st.text("ab€", min_size=1, max_size=3), max_size=2),
    min_tokens=st.integers(0, 12),
)
def test_an_attempt_that_goes_on_from_earlier_tokens_sends_exactly_the_rest(text: str, cut: int, stops: list[str], min_tokens: int) -> None:
    tokens = [*text.encode()]
    fields: dict[str, Any] = {"max_tokens": 20, "stop_strings": tuple(stops), "min_tokens": min_tokens}
    first = state(**fields)
    before = first.delta()
    done = 0
    for token in tokens[:cut]:
        if before.finish is not None:
            break
        first.advance(token, before)
        done += 1
    if before.finish is not None:
        return
    second = state(generated=tokens[:done], **fields)
    assert second.position == first.position == done
    one, other = first.delta(), second.delta()
    for token in tokens[done:]:
        if one.finish is None:
            first.advance(token, one)
            second.advance(token, other)
    assert one == other


def test_replayed_tokens_are_punished_like_drawn_ones() -> None:
    sampling = Sampling(temperature=0.0, frequency_penalty=1.0, dry_multiplier=1.0)
    first = state(sampling=sampling)
    answer(first, "aabaa")
    second = state(sampling=sampling, generated=[*b"aabaa"])
    row = np.zeros(WIDTH, np.float32)
    assert second.changes.apply(row, 5).tolist() == first.changes.apply(row, 5).tolist() != row.tolist()


def test_a_stop_string_that_is_a_special_token_s_name_ends_the_answer_at_it() -> None:
    vocabulary = Vocabulary(byte_tokenizer(special=["<eos>", "<|x|>"]))
    marked = 257

    def ended(stops: Sequence[str], tokens: Sequence[int], **stopping: Any) -> Delta:
        request = RequestState(opening(stop_strings=tuple(stops), stop_token_ids=(), **stopping), vocabulary, WIDTH + 1)
        return answer(request, tokens)

    delta = ended(["<|x|>"], [*b"hi", marked])
    assert (delta.text, delta.finish) == ("hi", Finish.STOP)
    assert ended(["i<|x|>"], [*b"hi", marked]).text == "h"
    assert ended(["<|x|>\n"], [*b"hi", marked, *b"\n"]).finish is Finish.STOP
    assert ended(["<eos>"], [*b"hi", EOS]).text == "hi", "with ignore_eos, the end token is one like any other"
    assert ended(["<|x|>"], [*b"hi", marked, *b"you"], min_tokens=4, max_tokens=6).text == "hiyou", "not before min_tokens"
    assert ended(["|x"], [ord("a"), marked, ord("b")], max_tokens=3).text == "ab", "no part of a name that nobody sees"
    assert ended(["<|x|>!"], [*b"hi", marked, ord("?")], max_tokens=4).text == "hi?"


def test_a_long_answer_is_replayed_in_pieces() -> None:
    made = RequestState(opening(generated=[*b"ab"] * REPLAY_PIECE_TOKENS, max_tokens=10_000), VOCABULARY, WIDTH)
    positions = [made.position for _ in made.replay()]
    assert positions == [REPLAY_PIECE_TOKENS]
    assert made.position == 2 * REPLAY_PIECE_TOKENS


def test_an_answer_that_is_complete_is_refused_before_it_is_replayed() -> None:
    with pytest.raises(InvalidRequest, match="ended"):
        RequestState(opening(generated=[ord("a")] * 5, max_tokens=5), VOCABULARY, WIDTH)


@pytest.mark.parametrize("is_prompt", [True, False])
def test_more_tokens_than_any_context_has_are_refused_unread(is_prompt: bool) -> None:
    tokens = range(MAX_TOKENS + 1)
    with pytest.raises(InvalidRequest, match=f"{MAX_TOKENS + 1 if is_prompt else MAX_TOKENS + 2} tokens, the limit is {MAX_TOKENS}"):
        state(max_tokens=2**32 - 1, **({"prompt": tokens} if is_prompt else {"generated": tokens}))
