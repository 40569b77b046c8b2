"""Folders of sentence models as sentence-transformers writes them, small and random, and folders of embedders with graphs made by hand."""

from __future__ import annotations

import hashlib
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from safetensors.numpy import save_file

from prompt_cache.embedding.bert_source import BertShape
from prompt_cache.embedding.embedder import Vector
from prompt_cache.embedding.folder import CARD_FILE, MODEL_FILE, TOKENIZER_FILE, EmbedderCard, KnownAnswer
from prompt_cache.embedding.onnx_embedder import ATTENTION_MASK, INPUT_IDS, OUTPUT

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = string.ascii_lowercase + string.digits + "?.,'"
# Each character is a token, at a word's start or inside.
VOCABULARY = {token: index for index, token in enumerate((*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)))}
WINDOW_TOKENS = 48
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}

Weights = dict[str, npt.NDArray[np.float32]]


def random_weights(*, seed: int = 2) -> Weights:
    """Of the size that `CONFIG` says, large enough for texts to differ visibly."""
    random = np.random.default_rng(seed)
    shape = BertShape(
        vocabulary=CONFIG["vocab_size"],
        hidden=CONFIG["hidden_size"],
        layers=CONFIG["num_hidden_layers"],
        heads=CONFIG["num_attention_heads"],
        intermediate=CONFIG["intermediate_size"],
        positions=CONFIG["max_position_embeddings"],
        token_types=CONFIG["type_vocab_size"],
        epsilon=CONFIG["layer_norm_eps"],
        activation="gelu",
    )
    weights = {}
    for name, size in shape.tensors().items():
        if "LayerNorm.weight" in name:
            weights[name] = random.uniform(0.5, 1.5, size).astype(np.float32)
        else:
            weights[name] = random.normal(scale=0.1 if len(size) == 1 else size[-1] ** -0.5, size=size).astype(np.float32)
    return weights


def write_sentence_model(folder: Path, weights: Weights | None = None, *, pooling: str = "mean_tokens", **config: Any) -> Path:
    """A folder that `build_embedder` converts.

    Args:
        weights: None = random ones.
        pooling: The mode that is set, without "pooling_mode_".
        config: Fields of config.json that differ.
    """
    (folder / "1_Pooling").mkdir(parents=True)
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")))
    ]
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")}
    for path, content in {
        "modules.json": modules,
        "config.json": {**CONFIG, **config},
        "sentence_bert_config.json": {"max_seq_length": WINDOW_TOKENS, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": CONFIG["hidden_size"], **modes},
        TOKENIZER_FILE: tokenizer_definition(),
    }.items():
        (folder / path).write_text(json.dumps(content))
    save_file(random_weights() if weights is None else weights, folder / "model.safetensors")
    return folder


def tokenizer_definition(**changes: Any) -> dict[str, Any]:
    """tokenizer.json of a tokenizer of single characters, which, as many published ones do, says to cut and to pad every text."""
    return {
        "version": "1.0",
        "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [
            {"id": index, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            for index, token in enumerate(SPECIAL)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [VOCABULARY[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")},
        },
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": VOCABULARY,
        },
        **changes,
    }


def write_embedder(
    folder: Path, model: onnx.ModelProto, known: dict[str, Vector], *, definition: dict[str, Any] | None = None, window_tokens: int = 32
) -> Path:
    """An embedder's folder whose hashes are right, whatever its graph does.

    Args:
        known: Texts and the vectors the card says they have.
        definition: Of the tokenizer; None = `tokenizer_definition`.
    """
    folder.mkdir(parents=True)
    data, tokenizer = model.SerializeToString(), json.dumps(definition or tokenizer_definition()).encode()
    card = EmbedderCard(
        source_name="by-hand",
        source_sha256="0" * 64,
        dimensions=len(next(iter(known.values()))),
        window_tokens=window_tokens,
        number_format="float32",
        cosine_to_float32=1.0,
        model_sha256=hashlib.sha256(data).hexdigest(),
        tokenizer_sha256=hashlib.sha256(tokenizer).hexdigest(),
        known_answers=tuple(KnownAnswer(text=text, vector=vector) for text, vector in known.items()),
    )
    for name, content in ((MODEL_FILE, data), (TOKENIZER_FILE, tokenizer), (CARD_FILE, card.to_json())):
        (folder / name).write_bytes(content)
    return folder


def table_model(table: npt.NDArray[np.float32]) -> onnx.ModelProto:
    """A model that looks at the first character alone and gives its row of a table, [vocabulary, dimensions]."""
    nodes = [
        helper.make_node("Gather", [INPUT_IDS, "one"], ["first"], axis=1),
        helper.make_node("Gather", ["table", "first"], [OUTPUT], axis=0),
    ]
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "tokens"]) for name in (INPUT_IDS, ATTENTION_MASK)],
        [helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["batch", table.shape[1]])],
        [numpy_helper.from_array(np.array(1), "one"), numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    return model


def unit_table(*, dimensions: int = 8, seed: int = 0) -> npt.NDArray[np.float32]:
    """Random unit vectors for all tokens, [vocabulary, dimensions]."""
    table = np.random.default_rng(seed).normal(size=(len(VOCABULARY), dimensions))
    rows: npt.NDArray[np.float32] = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    return rows


def known_of(table: npt.NDArray[np.float32], texts: tuple[str, ...] = ("apple", "boat")) -> dict[str, Vector]:
    """What `table_model` gives for texts, made to unit length."""
    rows = {text: table[VOCABULARY[text[0]]] for text in texts}
    return {text: (row / np.linalg.norm(row)).astype(np.float32) for text, row in rows.items()}
