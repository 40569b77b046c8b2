"""How a chat's prompt ends: with a turn that is left open, or with the last of its ids alone."""

from __future__ import annotations

import pytest

from tests.fakes.template_styles import STYLES
from tests.unit.tokenizer_svc.conftest import MakeEncoder, MakeFolder, MakeTokenizer
from tests.unit.tokenizer_svc.test_chat_encoder import CONVERSATION, encoder_of, reference_ids, special_ids
from tokenizer_svc.chat_encoder import Chat
from tokenizer_svc.chat_template import Message
from triserve.rpc.errors import InvalidRequest, PromptTooLong

OPENINGS = ("", "It is", "It is ", " It\nis\n\n", "<think>\nhm", "It is <|im_end", "a </s> b", "\ufffe")


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("style", ["chatml", "headers", "instructions", "inspecting", "roles_as_tokens", "framing"])
@pytest.mark.parametrize("kind", ["byte_level_bpe", "prepending_bpe"])
def test_a_turn_that_is_continued_ends_the_prompt_as_in_transformers(
    make_encoder: MakeEncoder, make_tokenizer: MakeTokenizer, make_folder: MakeFolder, kind: str, style: str, opening: str
) -> None:
    chat = Chat((*CONVERSATION[1:2], Message("assistant", opening)), {}, add_generation_prompt=False, continue_final_message=True)
    ids = make_encoder(kind, style).encode(chat, max_tokens=None).token_ids
    if opening != "a </s> b":  # there a special token, here text
        assert ids == reference_ids(make_folder(kind, style), chat)
    text = make_tokenizer(kind).decode(ids, skip_special_tokens=False, return_tokens=False).text
    if kind == "byte_level_bpe":
        assert text.rstrip().endswith(opening.strip())
    assert len(special_ids(make_tokenizer(kind), ids)) < len(
        special_ids(
            make_tokenizer(kind), make_encoder(kind, style).encode(chat._replace(continue_final_message=False), max_tokens=None).token_ids
        )
    ), "the turn is not closed"


@pytest.mark.parametrize("style", STYLES)
def test_a_turn_is_continued_in_the_template_of_every_family(make_tokenizer: MakeTokenizer, style: str) -> None:
    tokenizer = make_tokenizer("byte_level_bpe")
    encoder = encoder_of(STYLES[style], tokenizer)
    closed = Chat((*CONVERSATION[1:2], Message("assistant", "It is 4, and")), {}, add_generation_prompt=False)

    def text(chat: Chat) -> str:
        return tokenizer.decode(encoder.encode(chat, max_tokens=None).token_ids, skip_special_tokens=False, return_tokens=False).text

    prompt = text(closed._replace(continue_final_message=True))
    assert prompt.endswith("It is 4, and")
    assert text(closed).startswith(prompt)


def test_a_turn_of_which_the_template_takes_something_away_is_not_continued(make_encoder: MakeEncoder) -> None:
    chat = Chat((*CONVERSATION[1:3],), {}, add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(InvalidRequest) as caught:
        make_encoder("byte_level_bpe", "inspecting").encode(chat, max_tokens=None)
    assert caught.value.field == "continue_final_message"


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


def test_of_a_turn_that_is_continued_nothing_behind_it_is_the_template_s(make_encoder: MakeEncoder) -> None:
    encoder, opening = make_encoder("byte_level_bpe", "chatml"), Message("assistant", "It")
    chat = Chat((*CONVERSATION[1:2], opening), {}, add_generation_prompt=False, continue_final_message=True)
    assert encoder.encode(chat, max_tokens=None).end == ""
    assert encoder.encode(Chat(CONVERSATION[1:2]), max_tokens=None).end != ""
    # Over gRPC both may be asked for.
    assert encoder.encode(chat._replace(add_generation_prompt=True), max_tokens=None).end == ""
