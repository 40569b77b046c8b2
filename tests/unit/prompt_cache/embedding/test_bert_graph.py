"""The graphs give what the reference implementation of BERT gives, padded or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers

from prompt_cache.embedding.bert_graph import float_graph, int8_graph, peaks_name
from prompt_cache.embedding.bert_source import Array, BertSource, read_source, read_weights
from prompt_cache.embedding.embedder import Vector
from prompt_cache.embedding.onnx_embedder import ATTENTION_MASK, INPUT_IDS, OUTPUT, open_session
from tests.fakes.sentence_models import VOCABULARY, random_weights, write_sentence_model

LENGTHS = (1, 2, 7, 16, 47, 48)


def inputs(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    random = np.random.default_rng(1)
    return [random.integers(5, len(VOCABULARY), length).tolist() for length in lengths]


def reference(folder: Path, ids: list[int], pooling: str = "mean_tokens") -> Vector:
    """The unit vector of a text as transformers and the definition of the pooling give it."""
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]  # [tokens, hidden]
    pooled = {"mean_tokens": hidden.mean(0), "cls_token": hidden[0], "max_tokens": hidden.max(0).values}[pooling]
    vector: Vector = (pooled / pooled.norm()).numpy()
    return vector


def graphs(
    source: BertSource, *, unsigned: bool = False, changes: Mapping[str, Array] | None = None
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """In float32 and 8 bits.

    Args:
        changes: Weights that differ from the source's.
    """
    weights = {**read_weights(source), **(changes or {})}
    exact = float_graph(weights, source.shape, source.pooling, window_tokens=source.window_tokens)
    peaks = [np.full(source.shape.intermediate, -np.inf, np.float32) for _ in range(source.shape.layers)]
    opened = session(exact)
    for ids in inputs():
        found = opened.run([peaks_name(layer) for layer in range(len(peaks))], feed([ids]))
        peaks = [np.maximum(one, other) for one, other in zip(peaks, found, strict=True)]
    return exact, int8_graph(weights, source.shape, source.pooling, window_tokens=source.window_tokens, peaks=peaks, unsigned=unsigned)


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return open_session(model.SerializeToString(), Path("model.onnx"), threads=1)


def feed(rows: list[list[int]]) -> dict[str, Any]:
    """Of a batch, padded with a token that would change the vectors if it were seen."""
    longest = max(map(len, rows))
    return {
        INPUT_IDS: np.array([row + [7] * (longest - len(row)) for row in rows]),
        ATTENTION_MASK: np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }


def vectors(model: onnx.ModelProto, rows: list[list[int]]) -> list[Vector]:
    opened = session(model)
    return [opened.run([OUTPUT], feed([row]))[0][0] for row in rows]


@pytest.mark.parametrize(
    ("pooling", "activation"),
    [("mean_tokens", "gelu"), ("mean_tokens", "gelu_new"), ("mean_tokens", "relu"), ("cls_token", "gelu"), ("max_tokens", "gelu")],
)
def test_the_float_graph_gives_what_transformers_gives(tmp_path: Path, pooling: str, activation: str) -> None:
    folder = write_sentence_model(tmp_path / "source", pooling=pooling, hidden_act=activation)
    exact, _ = graphs(read_source(folder))
    for ids, found in zip(inputs(), vectors(exact, inputs()), strict=True):
        np.testing.assert_allclose(found, reference(folder, ids, pooling), atol=1e-5)


@pytest.mark.parametrize("unsigned", [False, True], ids=["int8", "uint8"])
def test_the_graph_of_8_bits_gives_nearly_that(tmp_path: Path, unsigned: bool) -> None:
    folder = write_sentence_model(tmp_path / "source")
    exact, rounded = graphs(read_source(folder), unsigned=unsigned)
    cosines = [float(one @ other) for one, other in zip(vectors(exact, inputs()), vectors(rounded, inputs()), strict=True)]
    assert min(cosines) > 0.99
    # It is not the float graph by another name.
    assert max(cosines) < 1 - 1e-7
    assert len(rounded.SerializeToString()) < len(exact.SerializeToString())


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "max_tokens"])
def test_padding_changes_no_vector(tmp_path: Path, pooling: str) -> None:
    exact, _ = graphs(read_source(write_sentence_model(tmp_path / "source", pooling=pooling)))
    together = session(exact).run([OUTPUT], feed(inputs()))[0]
    np.testing.assert_allclose(together, vectors(exact, inputs()), atol=1e-6)


def test_a_channel_with_huge_values_takes_no_resolution_from_the_others(tmp_path: Path) -> None:
    source = read_source(write_sentence_model(tmp_path / "source"))
    widen, narrow = (f"encoder.layer.1.{part}.dense" for part in ("intermediate", "output"))
    weights = random_weights()
    weights[f"{widen}.bias"][3] = 500.0
    # What it adds is no larger than what others add.
    weights[f"{narrow}.weight"][:, 3] *= 0.002
    exact, rounded = graphs(source, changes={name: weights[name] for name in (f"{widen}.bias", f"{narrow}.weight")})
    assert min(float(one @ other) for one, other in zip(vectors(exact, inputs()), vectors(rounded, inputs()), strict=True)) > 0.99


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    source = read_source(write_sentence_model(tmp_path / "source"))
    assert [graph.SerializeToString() for graph in graphs(source)] == [graph.SerializeToString() for graph in graphs(source)]


def test_the_graphs_are_valid_onnx(tmp_path: Path) -> None:
    for graph in graphs(read_source(write_sentence_model(tmp_path / "source"))):
        onnx.checker.check_model(graph, full_check=True)
