"""A sentencepiece tokenizer.model becomes a tokenizer.json that gives the same ids."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from tokenizer_svc.convert import convert_folder
from triserve.model_files.gguf_header import GgufError

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "hello there, hello world; lower and lower the prices go",
    "日本語 のテキスト と English mixed 2026",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9 . , ! ? ' - ( )",
    "Grüße aus Köln, café und naïve Ideen",
]
TEXTS = (*CORPUS, "  two  spaces, three   spaces ", "emoji \N{GRINNING FACE} and \u0435\u0436", "newline\nand\ttab", "x", "")


def write_model(folder: Path, kind: str, **options: Any) -> Any:
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_writer=content,
        model_type=kind,
        vocab_size=420,
        byte_fallback=True,
        minloglevel=2,
        **options,
    )
    (folder / "tokenizer.model").write_bytes(content.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=content.getvalue())


@pytest.mark.parametrize("prefix", [True, False])
def test_bpe_gives_the_ids_of_sentencepiece(prefix: bool, tmp_path: Path) -> None:
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": prefix}
    processor = write_model(tmp_path, "bpe", **options)
    convert_folder(tmp_path, tmp_path)
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for words in TEXTS:
        # Begin-of-text comes first, as in the models that use this form.
        expected = [1, *processor.encode(words)]
        assert ours.encode(words).ids == expected, words
        assert ours.decode(ours.encode(words).ids) == words


def test_unigram_gives_the_ids_of_sentencepiece(tmp_path: Path) -> None:
    processor = write_model(tmp_path, "unigram", hard_vocab_limit=False)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_eos_token": False}))
    convert_folder(tmp_path, tmp_path)
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for words in CORPUS:
        assert ours.encode(words).ids == processor.encode(words), words


def test_tokens_added_after_training_keep_their_ids(tmp_path: Path) -> None:
    write_model(tmp_path, "bpe")
    added = {"421": {"content": "<|end|>", "special": True}, "423": {"content": "<tool>", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, "add_bos_token": False}))
    convert_folder(tmp_path, tmp_path)
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (ours.token_to_id("<|end|>"), ours.token_to_id("<tool>")) == (421, 423)
    assert ours.encode("<tool><|end|>").ids == [423, 421]


def test_a_tokenizer_json_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    convert_folder(tmp_path, tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=r"has neither tokenizer\.json nor tokenizer\.model"):
        convert_folder(tmp_path, tmp_path)
    for content in (b"", b"\xff\xff\xff"):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(GgufError, match="is no sentencepiece model"):
            convert_folder(tmp_path, tmp_path)
