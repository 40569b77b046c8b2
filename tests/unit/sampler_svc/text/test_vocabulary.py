"""Tokens named by bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders

from sampler_svc.text.vocabulary import Vocabulary, load_tokenizer
from tests.fakes.sampler_tokenizers import byte_tokenizer, llama_decoder, tokenizer_of
from tests.fakes.tokenizers import KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_tokenizer_loaded_for_decoding_decodes_every_id_alike(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(KINDS[kind](), encoding="utf-8")
    whole, loaded = Tokenizer.from_str(KINDS[kind]()), load_tokenizer(tmp_path / "tokenizer.json")
    ids = list(range(whole.get_vocab_size() + 3))
    assert loaded.decode(ids) == whole.decode(ids)
    assert [loaded.id_to_token(token) for token in ids] == [whole.id_to_token(token) for token in ids]
    assert loaded.get_added_tokens_decoder().keys() == whole.get_added_tokens_decoder().keys()


def test_half_characters_keep_their_own_bytes() -> None:
    vocabulary = Vocabulary(byte_tokenizer())
    assert [vocabulary.own_bytes(byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]


def test_a_special_token_is_no_text_and_is_named_by_its_name() -> None:
    vocabulary = Vocabulary(byte_tokenizer(special=["<|end|>"]))
    assert vocabulary.own_bytes(256) == b"<|end|>"
    assert vocabulary.text_bytes(256) == b""
    assert not vocabulary.is_text(256)


def test_an_id_behind_the_vocabulary_is_no_text_and_has_no_bytes() -> None:
    for kind in KINDS:
        vocabulary = Vocabulary(Tokenizer.from_str(KINDS[kind]()))
        assert not vocabulary.is_text(100_000)
        assert vocabulary.own_bytes(100_000) == b""


@pytest.mark.parametrize(
    ("decoder", "pieces", "expected"),
    [
        (llama_decoder(), ["▁Hi", "x", "<0xE2>", "<0xZZ>"], [b" Hi", b"x", b"\xe2", b"<0xZZ>"]),
        (decoders.Metaspace(), ["▁Hi", "x", "<0xE2>"], [b" Hi", b"x", b"<0xE2>"]),
        (decoders.WordPiece(), ["hi", "##x"], [b" hi", b"x"]),
        (None, ["hi"], [b"hi"]),
    ],
    ids=["llama", "metaspace", "word_piece", "none"],
)
def test_a_token_is_named_by_what_it_adds_to_a_text(decoder: decoders.Decoder | None, pieces: list[str], expected: list[bytes]) -> None:
    vocabulary = Vocabulary(tokenizer_of(pieces, decoder))
    assert [vocabulary.own_bytes(token) for token in range(len(pieces))] == expected


@pytest.mark.parametrize(
    ("decoder", "independent"),
    [
        (decoders.ByteLevel(), True),
        (decoders.Sequence([decoders.ByteLevel()]), True),
        (decoders.Metaspace(), True),
        (llama_decoder(), True),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]), True),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]), False),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), False),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2, 0)]), False),
        (decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]), False),
        (decoders.WordPiece(), False),
        (decoders.BPEDecoder(), False),
        (decoders.CTC(), False),
        (None, False),
    ],
    ids=str,
)
def test_a_vocabulary_knows_whether_neighbours_matter(decoder: decoders.Decoder | None, independent: bool) -> None:
    assert Vocabulary(tokenizer_of(["a"], decoder)).independent is independent
