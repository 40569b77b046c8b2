"""Chats whose last turn is left open, and prompts of which the last ids are kept: what they are for the stages behind."""

from __future__ import annotations

import pytest

from tests.unit.tokenizer_svc.conftest import MakeEncoder
from tokenizer_svc.chat_encoder import Chat
from tokenizer_svc.chat_template import Message
from triserve.rpc.errors import InvalidRequest, PromptTooLong

CONVERSATION = (
    Message("system", "You are helpful."),
    Message("user", "What is 2+2?"),
    Message("assistant", "<think>\nhm\n</think>\n\nIt is 4."),
)


def test_a_turn_of_which_the_template_takes_something_away_is_not_continued(make_encoder: MakeEncoder) -> None:
    chat = Chat((*CONVERSATION[1:3],), {}, add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(InvalidRequest) as caught:
        make_encoder("byte_level_bpe", "inspecting").encode(chat, max_tokens=None)
    assert caught.value.field == "continue_final_message"


def test_of_a_turn_that_is_continued_nothing_behind_it_is_the_template_s(make_encoder: MakeEncoder) -> None:
    encoder, opening = make_encoder("byte_level_bpe", "chatml"), Message("assistant", "It")
    chat = Chat((*CONVERSATION[1:2], opening), {}, add_generation_prompt=False, continue_final_message=True)
    assert encoder.encode(chat, max_tokens=None).end == ""
    assert encoder.encode(Chat(CONVERSATION[1:2]), max_tokens=None).end != ""
    # Over gRPC both may be asked for.
    assert encoder.encode(chat._replace(add_generation_prompt=True), max_tokens=None).end == ""


def test_what_is_continued_has_the_system_prompt_of_any_chat(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder("byte_level_bpe", "chatml")
    chat = Chat(CONVERSATION[:2])
    open_turn = Chat((*CONVERSATION[:2], Message("assistant", "It")), {}, add_generation_prompt=False, continue_final_message=True)
    tokens = encoder.encode(chat, max_tokens=None).system_tokens
    assert tokens and encoder.encode(open_turn, max_tokens=None).system_tokens == tokens


def test_the_last_ids_are_kept_and_the_system_prompt_s_are_then_none(make_encoder: MakeEncoder) -> None:
    encoder, chat = make_encoder("byte_level_bpe", "chatml"), Chat(CONVERSATION[:2])
    whole = encoder.encode(chat, max_tokens=None)
    count = len(whole.token_ids)
    assert encoder.encode(chat, max_tokens=5, keep_last=5) == whole._replace(token_ids=whole.token_ids[-5:], system_tokens=0)
    assert encoder.encode(chat, max_tokens=count, keep_last=count + 1) == whole
    with pytest.raises(PromptTooLong, match="6 tokens, the limit is 5"):
        encoder.encode(chat, max_tokens=5, keep_last=6)
