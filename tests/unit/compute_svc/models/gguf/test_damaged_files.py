"""Whatever happens to a GGUF file, reading it gives a model or an error that says what is wrong, and nothing else."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
import torch

from compute_svc.convert import convert_gguf as convert_weights
from compute_svc.models.registry import load_model
from compute_svc.models.weights import CheckpointError
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.gguf_files import write_gguf
from tokenizer_svc.convert import convert_gguf as convert_tokenizer
from triserve.model_files.gguf_file import open_gguf
from triserve.model_files.gguf_header import GgufError

_TOKENIZERS = ("llama", "gpt2", "t5", "bert")


def small_model(folder: Path, tokenizer: str) -> bytes:
    """A Llama of one layer with a vocabulary of its own."""
    published = folder / "published"
    published.mkdir()
    save_checkpoint(published, "llama", num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=8, vocab_size=12)
    tokens = ["<unk>", "<s>", "</s>", "<0x41>", "\u2581", "a", "b", "ab", "\u2581a", "c", "d", "e"]
    metadata = {
        "tokenizer.ggml.model": tokenizer,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(index) for index in range(12)],
        "tokenizer.ggml.token_type": [2, 3, 3, 6, *[1] * 8],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    write_gguf(published, folder / "model.gguf", metadata=metadata)
    return (folder / "model.gguf").read_bytes()


def read_all(path: Path, folder: Path) -> bool:
    """Whether everything there is to read of a file can be read."""
    folder.mkdir()
    try:
        convert_tokenizer(path, folder)
        convert_weights(path, folder, safetensors=False)
        load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    except (GgufError, CheckpointError):
        return False
    return True


@pytest.mark.parametrize("tokenizer", _TOKENIZERS)
def test_flipped_bytes_anywhere_in_the_header_give_an_error_or_a_model(tokenizer: str, tmp_path: Path) -> None:
    whole = small_model(tmp_path, tokenizer)
    end = min(tensor.offset for tensor in open_gguf(tmp_path / "model.gguf").tensors.values())
    assert read_all(tmp_path / "model.gguf", tmp_path / "whole")
    generator = random.Random(tokenizer)
    outcomes = set()
    for number in range(100):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            content[generator.randrange(end)] = generator.randrange(256)
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(content)
        outcomes.add(read_all(path, tmp_path / str(number)))
    assert outcomes == {True, False}


@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1])
def test_any_number_of_the_metadata_may_be_anything(value: int, tmp_path: Path) -> None:
    whole = small_model(tmp_path, "llama")
    header = open_gguf(tmp_path / "model.gguf")
    names = ["block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "attention.key_length"]
    names += ["rope.dimension_count", "context_length", "feed_forward_length"]
    keys = [f"llama.{name}".encode() for name in names]
    for number, key in enumerate(keys):
        assert key.decode() in header
        at = whole.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4
        (tmp_path / f"{number}.gguf").write_bytes(whole[:at] + struct.pack("<I", value) + whole[at + 4 :])
        # Nothing grows with the length of the context; every other size must be what the tensors are.
        fits = value == header.count(key.decode()) or (value > 0 and key == b"llama.context_length")
        assert read_all(tmp_path / f"{number}.gguf", tmp_path / str(number)) == fits, key
