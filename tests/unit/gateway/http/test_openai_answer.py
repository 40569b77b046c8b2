"""Log-probabilities as OpenAI's clients read them."""

from __future__ import annotations

from gateway.http.openai_answer import chat_logprobs, completion_logprobs
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
    assert list(top.items()) == [("b", -1.0), ("c", -2.0), ("a", -3.0)]


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
