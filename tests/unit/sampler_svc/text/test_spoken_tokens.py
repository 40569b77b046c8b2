"""Special tokens that a request wants to read are text by their names; all others stay unread."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import decoders

from sampler_svc.logprobs import TokenLogprob
from sampler_svc.request_state import Delta, Finish, RequestState
from sampler_svc.text.vocabulary import Vocabulary
from tests.fakes.sampler_tokenizers import byte_tokenizer, llama_decoder, tokenizer_of
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.sampling import Sampling
from triserve.v1 import common_pb2, sampler_pb2

EOS, CALL, OTHER = 256, 257, 258
BYTES = Vocabulary(byte_tokenizer(special=["<eos>", "[CALL]", "<|other|>"]))
# Ids 0 to 3, then the special ones.
LLAMA = Vocabulary(tokenizer_of(["<unk>", "▁a", "▁b", "<0xC3>"], llama_decoder(), special=["<eos>", "[CALL]"]))
WORDS = Vocabulary(tokenizer_of(["[UNK]", "a", "##b", "c"], decoders.WordPiece(), special=["<eos>", "[CALL]"]))


def answered(vocabulary: Vocabulary, tokens: list[int], *, logprobs: bool = False, **stopping: Any) -> Delta:
    fields: dict[str, Any] = {"max_tokens": 100, "stop_token_ids": [EOS], "spoken_tokens": ["[CALL]", "[nonesuch]"]} | stopping
    opening = sampler_pb2.OpenRequest(
        prompt_token_ids=[1],
        sampling=Sampling(temperature=0.0, top_logprobs=0 if logprobs else None).write(),
        stopping=common_pb2.StoppingParams(**fields),
    )
    state = RequestState(opening, vocabulary, 300)
    assert list(state.replay()) == []
    delta = state.delta()
    for token in tokens:
        state.advance(token, delta, TokenLogprob(token, -1.0, []) if logprobs else None)
    return delta


def test_names_that_were_asked_for_are_text_and_no_others() -> None:
    assert answered(BYTES, [*b"a", OTHER, CALL, *b"b", EOS]).text == "a[CALL]b"
    assert answered(BYTES, [*b"a", CALL, *b"b", EOS], spoken_tokens=[]).text == "ab"


@pytest.mark.parametrize("spoken", [["<eos>"], ["<eos>", "[CALL]"]])
def test_an_end_token_is_no_text_whatever_was_asked_for(spoken: list[str]) -> None:
    delta = answered(BYTES, [*b"a", EOS], spoken_tokens=spoken)
    assert (delta.text, delta.finish) == ("a", Finish.STOP)


def test_a_character_that_a_special_token_cuts_is_replaced_and_the_text_goes_on() -> None:
    assert answered(BYTES, [0xC3, CALL, *b"b"]).text == "\ufffd[CALL]b"
    assert answered(BYTES, [0xC3, OTHER, 0xA9]).text == "é"
    assert answered(LLAMA, [3, 5, 2], stop_token_ids=[]).text == "\ufffd[CALL] b"


@pytest.mark.parametrize(("vocabulary", "text"), [(LLAMA, "[CALL] a[CALL] b"), (WORDS, "[CALL] c[CALL]b")])
def test_text_beside_the_name_is_what_it_would_be_without(vocabulary: Vocabulary, text: str) -> None:
    tokens = [5, 1, 5, 2] if vocabulary is LLAMA else [5, 3, 5, 2]
    assert answered(vocabulary, tokens, stop_token_ids=[4]).text == text


def test_a_stop_string_may_reach_over_a_name() -> None:
    delta = answered(BYTES, [*b"ab", CALL], stop_strings=["b[CA"])
    assert (delta.text, delta.finish) == ("a", Finish.STOP)


def test_log_probabilities_are_of_the_names_too() -> None:
    delta = answered(BYTES, [*b"a", OTHER, 0xC3, CALL, *b"b"], logprobs=True, max_tokens=5)
    assert delta.text == "a\ufffd[CALL]b"
    assert [(one.entry.token, one.text, one.added) for one in delta.logprobs] == [
        (97, "a", b"a"),
        (OTHER, "", b""),
        (0xC3, "\ufffd", b"\xc3"),
        (CALL, "[CALL]", b"[CALL]"),
        (98, "b", b"b"),
    ]


@pytest.mark.parametrize("names", [["x"] * 33, [""], ["x" * 65]])
def test_too_many_or_too_long_names_are_refused(names: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        answered(BYTES, [], spoken_tokens=names)
    assert refused.value.field == "spoken_tokens"


@pytest.mark.parametrize("vocabulary", [BYTES, LLAMA, WORDS])
def test_where_all_special_tokens_are_text_it_makes_no_difference_which_were_asked_for(vocabulary: Vocabulary) -> None:
    call = next(token for token, name in vocabulary.special_names.items() if name == "[CALL]")
    end = next(token for token, name in vocabulary.special_names.items() if name == "<eos>")
    spoken, unspoken = (
        answered(vocabulary, [1, call, call, 2, end], logprobs=True, skip_special_tokens=False, stop_token_ids=[end], spoken_tokens=names)
        for names in (["[CALL]"], [])
    )
    assert spoken.text == unspoken.text
    assert spoken.text.count("[CALL]") == 2
    assert "".join(one.text for one in spoken.logprobs) == spoken.text


def test_a_spoken_token_that_is_a_stop_string_may_stay_in_the_text() -> None:
    kept = answered(BYTES, [*b"a", CALL], stop_strings=["[CALL]"], include_stop_string=True)
    assert (kept.text, kept.finish) == ("a[CALL]", Finish.STOP)
    assert answered(BYTES, [*b"a", CALL], stop_strings=["[CALL]"]).text == "a"
