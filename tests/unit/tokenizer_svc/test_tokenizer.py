"""The tokenizer: exact round trips, special tokens never from text, decoding within bounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from tests.examples import examples
from tests.fakes.tokenizers import KINDS, SPECIAL_TOKENS, TEXT_TOKENS, write_model_folder
from tests.unit.tokenizer_svc.conftest import MakeFolder, MakeTokenizer
from tokenizer_svc.model_folder import ModelFolder, ModelFolderError, read_model_folder
from tokenizer_svc.tokenizer import Tokenizer, eos_token_ids
from triserve.rpc.errors import InvalidRequest

brief = examples(50)
any_text = st.text(max_size=60)
hostile_text = st.lists(
    st.sampled_from([*SPECIAL_TOKENS, *TEXT_TOKENS, "\uff1cs\uff1e", "<", "|", " ", "\n"]) | st.text(max_size=4), max_size=8
).map("".join)


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids of special tokens, but for the one that stands for what the vocabulary lacks."""
    return {token_id for name in SPECIAL_TOKENS if name != "<unk>" and (token_id := tokenizer.token_id(name)) is not None}


def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = False) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=add_special_tokens, field="prompt")


def comes_back(tokenizer: Tokenizer, text: str) -> bool:
    return tokenizer.decode(encode(tokenizer, text), skip_special_tokens=True, return_tokens=False).text == text


@brief
@given(text=any_text | hostile_text)
def test_any_text_comes_back_exactly_from_bytes(make_tokenizer: MakeTokenizer, text: str) -> None:
    assert comes_back(make_tokenizer("byte_level_bpe"), text)


@brief
@given(text=(any_text | hostile_text).filter(lambda text: not any(token in text for token in TEXT_TOKENS)))
def test_any_text_comes_back_exactly_where_bytes_are_the_last_resort(make_tokenizer: MakeTokenizer, text: str) -> None:
    # Tokenizers of this kind put a space behind an added token that is not special.
    assert comes_back(make_tokenizer("prepending_bpe"), text)


@brief
@given(text=hostile_text)
@pytest.mark.parametrize("kind", KINDS)
def test_no_text_encodes_to_a_special_token(make_tokenizer: MakeTokenizer, kind: str, text: str) -> None:
    tokenizer = make_tokenizer(kind)
    assert not special_ids(tokenizer) & set(encode(tokenizer, text))


@brief
@given(text=any_text.filter(lambda text: not any(name in text for name in SPECIAL_TOKENS)))
@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_text_gets_the_ids_the_library_gives(make_tokenizer: MakeTokenizer, kind: str, text: str) -> None:
    expected = FastTokenizer.from_str(KINDS[kind]()).encode(text).ids
    assert encode(make_tokenizer(kind), text, add_special_tokens=True) == expected


def test_only_the_tokenizer_s_own_special_tokens_depend_on_add_special_tokens(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("metaspace_unigram")
    inner = encode(tokenizer, "a </s> b")
    assert encode(tokenizer, "a </s> b", add_special_tokens=True) == [tokenizer.token_id("<s>"), *inner, tokenizer.token_id("</s>")]


def test_an_empty_text_has_the_ids_the_tokenizer_gives_it(make_tokenizer: MakeTokenizer) -> None:
    assert encode(make_tokenizer("byte_level_bpe"), "") == []
    tokenizer = make_tokenizer("prepending_bpe")
    assert encode(tokenizer, "", add_special_tokens=True) == [tokenizer.token_id("<s>")]


def test_an_alias_encodes_to_its_special_token(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("word_piece")
    for name, alias in tokenizer.special_tokens.aliases.items():
        assert encode(tokenizer, f"hello {alias} all")[1:-1] == [tokenizer.token_id(name)]


def test_text_the_vocabulary_cannot_spell_is_refused_by_name(make_folder: MakeFolder) -> None:
    folder = make_folder("whole_words", "chatml")
    model = {**folder.definition["model"], "unk_token": "nowhere"}
    tokenizer = Tokenizer(replace(folder, definition={**folder.definition, "model": model}, special_tokens={}))
    with pytest.raises(InvalidRequest) as caught:
        encode(tokenizer, "unheard-of")
    assert caught.value.field == "prompt"
    assert "unheard-of" not in caught.value.message
    assert caught.value.message.isascii()


def test_decoding_shows_special_tokens_on_request_alone(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("byte_level_bpe")
    end = tokenizer.token_id("<|im_end|>")
    assert end is not None
    ids = [*encode(tokenizer, "hello"), end]
    assert tokenizer.decode(ids, skip_special_tokens=True, return_tokens=False) == ("hello", [])
    decoded = tokenizer.decode(ids, skip_special_tokens=False, return_tokens=True)
    assert decoded.text == "hello<|im_end|>"
    assert len(decoded.tokens) == len(ids) and decoded.tokens[-1] == "<|im_end|>"


def test_half_a_character_decodes_to_the_replacement_character(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("byte_level_bpe")
    assert tokenizer.decode(encode(tokenizer, "𓀀")[:-1], skip_special_tokens=True, return_tokens=False).text == "\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_without_a_token_says_nothing(make_tokenizer: MakeTokenizer, kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    ids = encode(tokenizer, "hello")
    expected = tokenizer.decode(ids, skip_special_tokens=False, return_tokens=True)
    for beyond in (tokenizer.vocab_size, tokenizer.vocab_size + 1000, 2**32 - 1):
        decoded = tokenizer.decode([*ids, beyond], skip_special_tokens=False, return_tokens=True)
        assert decoded == (expected.text, [*expected.tokens, ""])


def test_no_ids_decode_to_no_text(make_tokenizer: MakeTokenizer) -> None:
    assert make_tokenizer("byte_level_bpe").decode([], skip_special_tokens=True, return_tokens=True) == ("", [])


def test_an_id_in_a_gap_of_the_vocabulary_says_nothing(make_folder: MakeFolder) -> None:
    folder = make_folder("whole_words", "chatml")
    vocab = {**folder.definition["model"]["vocab"], "far": 5000}
    definition: dict[str, Any] = {**folder.definition, "model": {**folder.definition["model"], "vocab": vocab}}
    with pytest.raises(ModelFolderError, match="'<think>' has another id than its place in added_tokens gives it"):
        Tokenizer(replace(folder, definition=definition))
    # The library numbers added tokens that the vocabulary does not have on from its last id.
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["content"] in vocab]
    tokenizer = Tokenizer(replace(folder, definition=definition))
    assert tokenizer.vocab_size == 5001
    assert tokenizer.decode([4999], skip_special_tokens=True, return_tokens=True) == ("", [""])


def test_end_of_text_ids_come_from_the_configuration_and_the_tokenizer_once_each(
    make_folder: MakeFolder, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer("byte_level_bpe")
    own = tokenizer.token_id("</s>")
    folder = make_folder("byte_level_bpe", "chatml")
    assert eos_token_ids(tokenizer, replace(folder, eos_token_ids=(7, 3))) == [7, 3, own]
    assert eos_token_ids(tokenizer, replace(folder, eos_token_ids=(own or 0, 3))) == [own, 3]
    assert eos_token_ids(tokenizer, replace(folder, special_tokens={"eos_token": "nowhere"})) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_reaches_to_the_highest_id_there_is(make_tokenizer: MakeTokenizer, kind: str) -> None:
    assert make_tokenizer(kind).vocab_size == 1 + max(FastTokenizer.from_str(KINDS[kind]()).get_vocab().values())


@pytest.mark.parametrize(
    "definition", [{"model": {"type": "BPE", "vocab": {}, "merges": 3}}, {"model": {"vocab": {"a": 0}}, "added_tokens": [{}]}]
)
def test_a_broken_tokenizer_is_refused_by_file(make_folder: MakeFolder, definition: dict[str, Any]) -> None:
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json"):
        Tokenizer(replace(make_folder("byte_level_bpe", "chatml"), definition=definition))


def _declaring(path: Path, token_id: int | None, *, special: bool = True, **files: Any) -> ModelFolder:
    if token_id is not None:
        decoder = {str(token_id): {"content": "<|extra|>", "special": special, "normalized": False}}
        files["tokenizer_config"] = {"added_tokens_decoder": decoder}
    return read_model_folder(write_model_folder(path, template=None, **files))


def test_a_token_that_the_tokenizer_s_configuration_alone_declares_has_its_id(tmp_path: Path) -> None:
    next_id = Tokenizer(_declaring(tmp_path, None)).vocab_size
    tokenizer = Tokenizer(_declaring(tmp_path, next_id))
    assert tokenizer.token_id("<|extra|>") == next_id == tokenizer.vocab_size - 1
    assert tokenizer.encode("<|extra|>", add_special_tokens=False, field="text") != [next_id], "special tokens' names are text"
    assert tokenizer.decode([next_id], skip_special_tokens=True, return_tokens=True) == ("", ["<|extra|>"])
    plain = Tokenizer(_declaring(tmp_path, None, added_tokens={"<|extra|>": next_id}))
    assert plain.encode("<|extra|>", add_special_tokens=False, field="text") == [next_id]


@pytest.mark.parametrize("shift", [1, 7, -1])
def test_a_token_declared_with_an_id_that_it_cannot_have_is_refused(tmp_path: Path, shift: int) -> None:
    next_id = Tokenizer(_declaring(tmp_path, None)).vocab_size
    with pytest.raises(ModelFolderError, match=r"has another id than its place in added_tokens|gives the id"):
        Tokenizer(_declaring(tmp_path, next_id + shift))


def test_added_tokens_beyond_the_models_rows_are_text(tmp_path: Path) -> None:
    next_id = Tokenizer(_declaring(tmp_path, None)).vocab_size
    tokenizer = Tokenizer(_declaring(tmp_path, next_id, special=False, config={"vocab_size": next_id}))
    assert tokenizer.vocab_size == next_id
    assert tokenizer.token_id("<|extra|>") is None
    assert max(tokenizer.encode("a <|extra|> b", add_special_tokens=True, field="text")) < next_id


def test_a_vocabulary_beyond_the_models_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"ids up to \d+ in its vocabulary, config\.json says that the model has 100"):
        Tokenizer(_declaring(tmp_path, None, config={"vocab_size": 100}))
