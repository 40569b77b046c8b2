"""Whole answers, usage and log-probabilities as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gateway.flow.generations.answer import Delta
from gateway.flow.generations.generation import Piece, Timeline, Usage
from gateway.http.openai.answer import (
    Look,
    WholeChoice,
    chat_choice,
    completion_choice,
    extra_body,
    gather,
    usage_body,
)
from gateway.http.openai.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from triserve.v1 import sampler_pb2

EMOJI = "🙂".encode()


def entry(
    token: int, added: bytes, text: str | None = None, *top: tuple[int, bytes, float], logprob: float = -0.5
) -> sampler_pb2.TokenLogprobs:
    likeliest = [sampler_pb2.TopLogprob(token=one, token_bytes=own, logprob=value) for one, own, value in top]
    shown = added.decode() if text is None else text
    return sampler_pb2.TokenLogprobs(token=token, token_bytes=added, text=shown, logprob=logprob, top=likeliest)


def test_tokens_of_a_chat_joined_are_its_content_and_their_bytes_are_exact() -> None:
    parts = [entry(byte, bytes([byte]), "🙂" if index == 3 else "", (byte, bytes([byte]), -0.5)) for index, byte in enumerate(EMOJI)]
    content = chat_logprobs([*parts, entry(7, b"!")])["content"]
    assert "".join(one["token"] for one in content) == "🙂!"
    assert bytes(byte for one in content for byte in one["bytes"]) == "🙂!".encode()
    assert [one["top_logprobs"][0]["token"] for one in content[:4]] == [one["token"] for one in content[:4]]


def test_other_likely_tokens_of_a_chat_that_are_parts_of_characters_are_spelt_out() -> None:
    (one,) = chat_logprobs([entry(1, b"a", "a", (1, b"a", -0.5), (2, EMOJI[:2], -1.5), (3, EMOJI[:1], -2.5))])["content"]
    assert [top["token"] for top in one["top_logprobs"]] == ["a", "\\xf0\\x9f", "\\xf0"]
    assert [top["bytes"] for top in one["top_logprobs"]] == [[97], [0xF0, 0x9F], [0xF0]]


def test_a_chat_s_likeliest_are_as_many_as_were_asked_for() -> None:
    (one,) = chat_logprobs([entry(1, b"a")])["content"]
    assert one["top_logprobs"] == []


def test_the_drawn_token_of_a_completion_is_always_among_the_likeliest() -> None:
    assert completion_logprobs([entry(1, b"a", logprob=-3.0)])["top_logprobs"] == [{"a": -3.0}]
    (top,) = completion_logprobs([entry(1, b"a", "a", (2, b"b", -1.0), (3, b"c", -2.0), logprob=-3.0)])["top_logprobs"]
    # First, as vLLM's clients look for it.
    assert list(top.items()) == [("a", -3.0), ("b", -1.0), ("c", -2.0)]


def test_tokens_that_are_named_stand_in_place_of_the_likeliest() -> None:
    one = entry(1, b"a", "a", (2, b"b", -1.0), logprob=-3.0)
    one.named.extend(sampler_pb2.TopLogprob(token=token, token_bytes=b"c", logprob=-9.0) for token in (5, 1))
    assert completion_logprobs([one], as_ids=True)["top_logprobs"] == [{"token_id:1": -3.0, "token_id:5": -9.0}]
    assert [(top["token"], top["logprob"]) for top in chat_logprobs([one])["content"][0]["top_logprobs"]] == [("a", -3.0), ("c", -9.0)]


def test_tokens_that_look_the_same_are_all_there() -> None:
    drawn_second = entry(9, b"a", "a", (4, b"a", -0.25), (9, b"a", -0.5), (5, b"a", -4.0))
    body = completion_logprobs([drawn_second])
    assert body["top_logprobs"] == [{"token_id:4": -0.25, "a": -0.5, "token_id:5": -4.0}]
    assert body["top_logprobs"][0][body["tokens"][0]] == body["token_logprobs"][0]
    not_among = entry(9, b"a", "a", (4, b"a", -0.25), (6, b"b", -1.0), (7, b"b", -1.5))
    assert completion_logprobs([not_among])["top_logprobs"] == [{"token_id:4": -0.25, "b": -1.0, "token_id:7": -1.5, "a": -0.5}]


def test_parts_of_a_character_are_told_apart_by_their_bytes() -> None:
    one = entry(1, b"\xc3", "", (1, b"\xc3", -0.5), (2, b"\xc4", -1.5))
    body = completion_logprobs([one])
    assert body["tokens"] == ["bytes:\\xc3"]
    assert body["top_logprobs"] == [{"bytes:\\xc3": -0.5, "bytes:\\xc4": -1.5}]


def test_offsets_are_the_sampler_s() -> None:
    entries = [entry(byte, bytes([byte]), "") for byte in EMOJI]
    later = entry(7, b"!")
    later.text_offset = 1
    assert completion_logprobs([*entries, later])["text_offset"] == [0, 0, 0, 0, 1]


def test_the_drawn_token_is_known_by_its_id_whatever_the_others_look_like() -> None:
    tops = ((700, b"ab", -0.125), (1300, b"ab", -0.25), (1000, b"ab", -0.375), (600, b"aa", -0.5), (1400, b"zz", -0.625))
    (named,) = completion_logprobs([entry(1000, b"ab", "ab", *tops, logprob=-0.375)])["top_logprobs"]
    assert named == {"token_id:700": -0.125, "token_id:1300": -0.25, "ab": -0.375, "aa": -0.5, "zz": -0.625}
    half = EMOJI[:2]
    (one,) = chat_logprobs([entry(1000, half, "", *((token, half, value) for token, _, value in tops))])["content"]
    assert [top["token"] for top in one["top_logprobs"]] == [*["\\xf0\\x9f"] * 2, "", *["\\xf0\\x9f"] * 2]
    assert [top["logprob"] for top in one["top_logprobs"]] == [-0.125, -0.25, -0.375, -0.5, -0.625]


def test_the_drawn_token_has_one_name_where_its_bytes_differ_at_its_place() -> None:
    (named,) = completion_logprobs([entry(1000, b"Hello", "Hello", (1000, b" Hello", -0.5), (2000, b"Hi", -1.5))])["top_logprobs"]
    assert named == {"Hello": -0.5, "Hi": -1.5}


def test_usage_adds_up() -> None:
    assert usage_body(Usage(prompt_tokens=3, completion_tokens=5, cached_tokens=2)) == {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_times_are_told_to_the_microsecond() -> None:
    body = extra_body(Timeline(tokenize_ms=1.23456, queue_ms=0, prefill_ms=2.0004, decode_ms=99.9996), None)
    assert body == {"tokenize_ms": 1.235, "queue_ms": 0, "prefill_ms": 2.0, "decode_ms": 100.0}


def test_a_rewritten_turn_is_told_with_times_and_without() -> None:
    assert extra_body(None, None) == {}
    assert extra_body(None, "") == {"system2_prompt": ""}
    assert extra_body(Timeline(1, 2, 3, 4), "a") == {
        "tokenize_ms": 1,
        "queue_ms": 2,
        "prefill_ms": 3,
        "decode_ms": 4,
        "system2_prompt": "a",
    }


class FakeGeneration:
    """Two choices whose deltas come in turns."""

    def __init__(self) -> None:
        self.form = None
        logprob = sampler_pb2.TokenLogprobs(token=1, token_bytes=b"a", text="a", logprob=-0.5)
        self._rounds = [
            [Piece(1, Delta("x", [24], [], None)), Piece(0, Delta("a", [1], [logprob], None))],
            [],
            [Piece(0, Delta("b", [2, 3], [], "stop"))],
            [Piece(1, Delta("", [], [], "length"))],
        ]

    @property
    def finished(self) -> bool:
        """Whether all was read."""
        return not self._rounds

    async def next(self) -> list[Piece]:
        """The next deltas."""
        return self._rounds.pop(0)

    def prompt_token_ids(self, choice: int) -> list[int]:
        """Different ones for each choice."""
        return [10, choice]


async def test_a_whole_answer_is_its_deltas_put_together_by_choice() -> None:
    first, second = await gather(cast(Any, FakeGeneration()), 2)
    assert completion_choice(0, first, look=Look(logprobs=True, token_ids=True)) == {
        "index": 0,
        "text": "ab",
        "logprobs": completion_logprobs(first.logprobs),
        "finish_reason": "stop",
        "prompt_logprobs": None,
        "token_ids": [1, 2, 3],
        "prompt_token_ids": [10, 0],
    }
    assert completion_choice(1, second, look=Look()) == {
        "index": 1,
        "text": "x",
        "logprobs": None,
        "finish_reason": "length",
        "prompt_logprobs": None,
        "token_ids": None,
        "prompt_token_ids": None,
    }
    assert chat_choice(0, first, look=Look(logprobs=True, token_ids=True)) == {
        "index": 0,
        "message": {"role": "assistant", "content": "ab", "refusal": None},
        "logprobs": chat_logprobs(first.logprobs),
        "finish_reason": "stop",
        "token_ids": [1, 2, 3],
    }
    assert chat_choice(1, second, look=Look()) == {
        "index": 1,
        "message": {"role": "assistant", "content": "x", "refusal": None},
        "logprobs": None,
        "finish_reason": "length",
    }
    assert [one.token for one in first.logprobs] == [1]


def test_a_choice_of_which_nothing_came_is_empty() -> None:
    assert completion_choice(0, WholeChoice(), look=Look(token_ids=True))["prompt_token_ids"] == []


def told(token: int, added: bytes, offset: int, rank: int | None, *top: tuple[int, bytes, float], logprob: float = -0.5) -> Any:
    one = entry(token, added, None, *top, logprob=logprob)
    one.text_offset = offset
    if rank is not None:
        one.rank = rank
    return one


PROMPT = [told(1, b"Hi", 0, None, logprob=0.0), told(2, b"!", 2, 3, (5, b"?", -0.1), (6, b".", -0.2), logprob=-float("inf"))]


def test_an_echo_begins_the_text_and_its_tokens_come_first_with_nothing_known_of_the_first() -> None:
    choice = WholeChoice(text=["So"], logprobs=[entry(3, b"So")], prompt_logprobs=PROMPT, finish_reason="length")
    body = completion_choice(0, choice, look=Look(logprobs=True, echo=["Hi!"], echo_top=1))
    assert body["text"] == "Hi!So"
    assert body["logprobs"] == {
        "tokens": ["Hi", "!", "So"],
        "token_logprobs": [None, -9999.0, -0.5],
        "top_logprobs": [None, {"?": pytest.approx(-0.1), "!": -9999.0}, {"So": -0.5}],
        "text_offset": [0, 2, 3],
    }
    assert completion_choice(0, choice, look=Look(echo=[None])) == {**body, "logprobs": None}
    assert completion_choice(3, choice, look=Look(echo=["Hi!", "Ho!"], n=2))["text"] == "Ho!So"


def test_offsets_of_an_echo_are_those_in_the_text_without_what_the_tokenizer_has_added() -> None:
    added = [told(0, b"<s>", 0, None), told(1, b"Hi", 3, 1)]
    choice = WholeChoice(text=["So"], logprobs=[entry(3, b"So")], prompt_logprobs=added)
    body = completion_choice(0, choice, look=Look(logprobs=True, echo=["Hi"]))
    assert (body["text"], body["logprobs"]["text_offset"]) == ("HiSo", [0, 0, 2])


def test_tokens_of_a_prompt_are_told_by_id_with_their_ranks_and_the_first_not_at_all() -> None:
    choice = WholeChoice(prompt_logprobs=PROMPT)
    for num_top, others in ((0, {}), (1, {"5": {"logprob": pytest.approx(-0.1), "rank": 1, "decoded_token": "?"}})):
        expected = [None, {**others, "2": {"logprob": -9999.0, "rank": 3, "decoded_token": "!"}}]
        assert prompt_logprobs(PROMPT, num_top) == expected
        assert completion_choice(0, choice, look=Look(prompt_logprobs=num_top))["prompt_logprobs"] == expected
    assert prompt_logprobs([], 1) == []


def test_named_ids_come_behind_the_likeliest_once() -> None:
    one = entry(1, b"a", "a", (1, b"a", -0.5))
    for token, added, logprob in ((1, b"a", -0.5), (9, b"z", -8.0)):
        one.named.add(token=token, token_bytes=added, logprob=logprob)
    assert completion_logprobs([one])["top_logprobs"] == [{"a": -0.5, "z": -8.0}]
    (shown,) = chat_logprobs([one])["content"]
    assert [(top["token"], top["logprob"]) for top in shown["top_logprobs"]] == [("a", -0.5), ("z", -8.0)]


def test_tokens_are_written_as_ids_where_that_is_asked_for() -> None:
    one = entry(1, b"a", "a", (1, b"a", -0.5), (2, b"b", -1.5))
    body = completion_logprobs([one], as_ids=True)
    assert (body["tokens"], body["top_logprobs"]) == (["token_id:1"], [{"token_id:1": -0.5, "token_id:2": -1.5}])
    (shown,) = chat_logprobs([one], as_ids=True)["content"]
    assert (shown["token"], shown["bytes"], [top["token"] for top in shown["top_logprobs"]]) == (
        "token_id:1",
        [97],
        ["token_id:1", "token_id:2"],
    )
