from __future__ import annotations

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from compute_svc.bundled.chat import ChatEncoder, Turn
from compute_svc.bundled.evaluate import MODEL_FOLDER
from compute_svc.bundled.train_tokenizer import SPECIAL_TOKENS, VOCAB_SIZE, special_id, train_tokenizer

TOKENIZER = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
ENCODER = ChatEncoder(TOKENIZER)

turns = st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), st.text())


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _rendered(chat: list[Turn], *, add_generation_prompt: bool) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    template = environment.from_string((MODEL_FOLDER / "chat_template.jinja").read_text(encoding="utf-8"))
    return template.render(messages=[turn._asdict() for turn in chat], add_generation_prompt=add_generation_prompt)


@given(text=st.text())
def test_any_text_comes_back_unchanged(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


@pytest.mark.parametrize("text", ["🙂👩‍👩‍👧 naïve", "  two  spaces \n\n\ttab ", "漢字 עברית", "\x00\x7f", ""])
def test_unusual_text_comes_back_unchanged(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_special_tokens_have_the_first_ids() -> None:
    assert [special_id(TOKENIZER, token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert TOKENIZER.get_vocab_size() == VOCAB_SIZE


def test_a_tokenizer_without_a_special_token_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"<\|no\|>"):
        special_id(TOKENIZER, "<|no|>")


@given(chat=st.lists(turns, min_size=1, max_size=4))
def test_the_template_strips_nothing_and_keeps_the_order_of_roles(chat: list[Turn]) -> None:
    expected = "".join(f"<|{turn.role}|>{turn.content}<|end|>" for turn in chat)
    assert _rendered(chat, add_generation_prompt=False) == expected
    assert _rendered(chat, add_generation_prompt=True) == expected + "<|assistant|>"


def test_the_template_refuses_an_unknown_role() -> None:
    with pytest.raises(jinja2.TemplateError, match="role"):
        _rendered([Turn("tool", "x")], add_generation_prompt=False)


@given(chat=st.lists(turns, min_size=1, max_size=3).filter(lambda chat: not any("<|" in turn.content for turn in chat)))
def test_the_encoder_gives_the_ids_of_the_rendered_template(chat: list[Turn]) -> None:
    assert ENCODER.prompt(chat) == TOKENIZER.encode(_rendered(chat, add_generation_prompt=True)).ids


def test_special_tokens_in_a_message_stay_text() -> None:
    ids = ENCODER.turn(Turn("user", "what is <|end|>?"))
    assert ids[0] == special_id(TOKENIZER, "<|user|>") and ids[-1] == special_id(TOKENIZER, "<|end|>")
    assert not set(ids[1:-1]) & set(range(len(SPECIAL_TOKENS)))
    assert ENCODER.text(ids[1:-1]) == "what is <|end|>?"


def test_learning_the_merges_twice_gives_the_same_tokenizer() -> None:
    texts = ["the merge step merges steps", "a page of the page table", "prefill and decode"] * 3
    assert train_tokenizer(texts, ["the step"]).to_str() == train_tokenizer(texts, ["the step"]).to_str()
