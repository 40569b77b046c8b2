"""Writes a BERT with its pooling as an ONNX graph, in float32 or with int8 weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from prompt_cache.embedding.bert_source import Array, BertShape, Pooling
from prompt_cache.embedding.onnx_embedder import ATTENTION_MASK, INPUT_IDS, OUTPUT

# The least versions that have all operators used here: Gelu is the newest.
_OPSET = 20
_IR_VERSION = 9
_INT8_MAX = 127
_UINT8_ZERO = 128
# Added to the scores of padding; exp of it is 0.
_MASKED = -1e9


# A channel between the two matrices of a layer is an outlier if it gets so many times as large as this share of the channels do.
_OUTLIER_FACTOR = 1.5
_USUAL_SHARE = 0.99
_MAX_OUTLIERS = 16


def float_graph(weights: Mapping[str, Array], shape: BertShape, pooling: Pooling, *, window_tokens: int) -> onnx.ModelProto:
    """The graph from int64 input_ids and attention_mask, [batch, tokens], to float32 embedding, [batch, hidden], rows of unit length.

    It has a further output for each layer, `peaks_name`: the largest value of each channel between its two matrices, [intermediate].

    Args:
        weights: As `BertShape.tensors` says. The token type is 0.
        window_tokens: The longest input; rows for later positions are left out.
    """
    return _BertGraph(weights, shape, None).build(pooling, window_tokens)


def int8_graph(
    weights: Mapping[str, Array], shape: BertShape, pooling: Pooling, *, window_tokens: int, peaks: Sequence[Array], unsigned: bool = False
) -> onnx.ModelProto:
    """As `float_graph`, without the further outputs, nearly the same numbers and a quarter of the bytes.

    Weights are rounded to 8 bits with a scale for each output (for each token in the table of tokens), and activations while the graph runs, with a
    scale for each tensor. Layer norms, softmax and sums stay float32.

    A few channels get values, for the token at the start, several times as large as all others: one scale would leave those others few of the 256
    steps. These channels are computed apart, in float32 (as LLM.int8() does).

    Args:
        peaks: Largest value of each channel of each layer, [intermediate], as the float graph gave them for some sentences.
        unsigned: Whether the matrices are uint8: the same numbers, but for processors with AVX2 and no VNNI, on which onnxruntime's sums of
            uint8 times int8 saturate and those of uint8 times uint8, which are slower, do not.
    """
    return _BertGraph(weights, shape, peaks, unsigned=unsigned).build(pooling, window_tokens)


def peaks_name(layer: int) -> str:
    """The name of the float graph's output for a layer."""
    return f"peaks_{layer}"


class _Graph:
    """Nodes and constants, in the order in which they are needed."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: npt.NDArray[Any] | np.float32) -> str:
        """Adds a constant; returns its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; returns the name of its one output."""
        return self.add_many(operator, inputs, 1, **attributes)[0]

    def add_many(self, operator: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """Adds a node; returns the names of its outputs."""
        index = len(self.nodes)
        outputs = [f"{operator}_{index}_{output}" for output in range(count)]
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=f"{operator}_{index}", **attributes))
        return outputs


class _BertGraph:
    """A graph while it is made; of float32 where no peaks are known."""

    def __init__(self, weights: Mapping[str, Array], shape: BertShape, peaks: Sequence[Array] | None, *, unsigned: bool = False) -> None:
        self._weights = weights
        self._shape = shape
        self._peaks = peaks
        self._is_int8 = peaks is not None
        self._is_unsigned = unsigned
        self._graph = _Graph()

    def build(self, pooling: Pooling, window_tokens: int) -> onnx.ModelProto:
        graph, shape = self._graph, self._shape
        mask = graph.add("Cast", ATTENTION_MASK, to=onnx.TensorProto.FLOAT)  # [B, T]
        score_bias = self._score_bias(mask)
        x = self._embeddings(window_tokens)  # [B, T, H]
        for layer in range(shape.layers):
            x = self._layer(layer, x, score_bias)
        pooled = self._pool(pooling, x, mask)  # [B, H]
        length = graph.add("ReduceL2", pooled, graph.constant(np.array([-1])), keepdims=1)
        graph.nodes.append(helper.make_node("Div", [pooled, length], [OUTPUT], name=OUTPUT))
        return self._model()

    def _model(self) -> onnx.ModelProto:
        tokens = ["batch", "tokens"]
        outputs = [helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["batch", self._shape.hidden])]
        for layer in range(0 if self._is_int8 else self._shape.layers):
            outputs.append(helper.make_tensor_value_info(peaks_name(layer), onnx.TensorProto.FLOAT, [self._shape.intermediate]))
        graph = helper.make_graph(
            self._graph.nodes,
            "sentence",
            [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, tokens) for name in (INPUT_IDS, ATTENTION_MASK)],
            outputs,
            self._graph.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="triserve")
        model.ir_version = _IR_VERSION
        return model

    def _score_bias(self, mask: str) -> str:
        """0 for tokens and a large negative number for padding, [B, 1, 1, T]."""
        graph = self._graph
        padding = graph.add("Sub", graph.constant(np.float32(1)), mask)
        return graph.add("Unsqueeze", graph.add("Mul", padding, graph.constant(np.float32(_MASKED))), graph.constant(np.array([1, 2])))

    def _embeddings(self, window_tokens: int) -> str:
        graph = self._graph
        table = self._weights["embeddings.word_embeddings.weight"]  # [V, H]
        if self._is_int8:
            rounded, scale = _rounded(table, axis=1)
            words = graph.add("Cast", graph.add("Gather", graph.constant(rounded), INPUT_IDS), to=onnx.TensorProto.FLOAT)
            words = graph.add("Mul", words, graph.add("Gather", graph.constant(scale[:, None]), INPUT_IDS))
        else:
            words = graph.add("Gather", graph.constant(table), INPUT_IDS)
        # All tokens are of type 0, whose row is the same for all.
        positions = self._weights["embeddings.position_embeddings.weight"] + self._weights["embeddings.token_type_embeddings.weight"][0]
        num_tokens = graph.add("Shape", INPUT_IDS, start=1)
        rows = graph.add(
            "Slice", graph.constant(positions[:window_tokens]), graph.constant(np.array([0])), num_tokens, graph.constant(np.array([0]))
        )
        return self._layer_norm("embeddings.LayerNorm", graph.add("Add", words, rows))

    def _layer(self, layer: int, x: str, score_bias: str) -> str:
        graph, name = self._graph, f"encoder.layer.{layer}"
        attended = self._attention(f"{name}.attention", x, score_bias)
        x = self._layer_norm(f"{name}.attention.output.LayerNorm", graph.add("Add", attended, x))
        (widen, widen_bias), (narrow, narrow_bias) = self._matrix(f"{name}.intermediate.dense"), self._matrix(f"{name}.output.dense")
        if self._peaks is None:
            wide = self._activate(self._linear(x, widen, widen_bias))
            self._watch_peaks(wide, layer)
            y = self._linear(wide, narrow, narrow_bias)
        else:
            large = _outliers(self._peaks[layer])
            is_usual = np.ones_like(widen_bias)
            is_usual[large] = 0
            wide = self._activate(self._linear(x, widen * is_usual, widen_bias * is_usual))
            y = self._linear(wide, narrow, narrow_bias)
            if len(large):
                few = self._activate(self._float_linear(x, widen[:, large], widen_bias[large]))
                y = graph.add("Add", y, graph.add("MatMul", few, graph.constant(narrow[large])))
        return self._layer_norm(f"{name}.output.LayerNorm", graph.add("Add", y, x))

    def _attention(self, name: str, x: str, score_bias: str) -> str:
        graph, shape = self._graph, self._shape
        head = shape.hidden // shape.heads
        query, key, value = (self._matrix(f"{name}.self.{part}") for part in ("query", "key", "value"))
        scale = np.float32(1 / math.sqrt(head))
        weight = np.concatenate([query[0] * scale, key[0], value[0]], axis=1)
        bias = np.concatenate([query[1] * scale, key[1], value[1]])
        parts = graph.add_many("Split", [self._linear(x, weight, bias)], 3, axis=-1, num_outputs=3)
        by_head = graph.constant(np.array([0, 0, shape.heads, head]))
        q, k, v = (graph.add("Reshape", part, by_head) for part in parts)  # [B, T, heads, head]
        q = graph.add("Transpose", q, perm=[0, 2, 1, 3])
        k = graph.add("Transpose", k, perm=[0, 2, 3, 1])
        v = graph.add("Transpose", v, perm=[0, 2, 1, 3])
        scores = graph.add("Add", graph.add("MatMul", q, k), score_bias)  # [B, heads, T, T]
        mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)  # [B, heads, T, head]
        mixed = graph.add("Reshape", graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), graph.constant(np.array([0, 0, shape.hidden])))
        return self._linear(mixed, *self._matrix(f"{name}.output.dense"))

    def _matrix(self, name: str) -> tuple[Array, Array]:
        """Weight, [in, out], and bias, [out]."""
        return self._weights[f"{name}.weight"].T, self._weights[f"{name}.bias"]

    def _linear(self, x: str, weight: Array, bias: Array) -> str:
        """x @ weight + bias; x is [B, T, in]."""
        if not self._is_int8:
            return self._float_linear(x, weight, bias)
        graph = self._graph
        rounded, scale = _rounded(weight, axis=0)
        # onnxruntime makes one operation of these: it knows them by their order.
        x_int8, x_scale, x_zero = graph.add_many("DynamicQuantizeLinear", [x], 3)
        matrix: npt.NDArray[Any] = rounded
        zeros: npt.NDArray[Any] = np.zeros(len(scale), np.int8)
        if self._is_unsigned:
            matrix, zeros = (rounded.astype(np.int16) + _UINT8_ZERO).astype(np.uint8), np.full(len(scale), _UINT8_ZERO, np.uint8)
        product = graph.add("MatMulInteger", x_int8, graph.constant(matrix), x_zero, graph.constant(zeros))
        product = graph.add("Cast", product, to=onnx.TensorProto.FLOAT)
        scaled = graph.add("Mul", product, graph.add("Mul", x_scale, graph.constant(scale)))
        return graph.add("Add", scaled, graph.constant(bias))

    def _float_linear(self, x: str, weight: Array, bias: Array) -> str:
        graph = self._graph
        return graph.add("Add", graph.add("MatMul", x, graph.constant(weight)), graph.constant(bias))

    def _watch_peaks(self, wide: str, layer: int) -> None:
        axes, name = self._graph.constant(np.array([0, 1])), peaks_name(layer)
        self._graph.nodes.append(helper.make_node("ReduceMax", [wide, axes], [name], name=name, keepdims=0))

    def _activate(self, x: str) -> str:
        if self._shape.activation == "relu":
            return self._graph.add("Relu", x)
        return self._graph.add("Gelu", x, approximate="tanh" if self._shape.activation == "gelu_new" else "none")

    def _layer_norm(self, name: str, x: str) -> str:
        weight, bias = (self._graph.constant(self._weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self._graph.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=self._shape.epsilon)

    def _pool(self, pooling: Pooling, x: str, mask: str) -> str:
        graph = self._graph
        if pooling == "cls":
            return graph.add("Gather", x, graph.constant(np.array(0)), axis=1)
        column = graph.add("Unsqueeze", mask, graph.constant(np.array([2])))  # [B, T, 1]
        tokens = graph.constant(np.array([1]))
        if pooling == "max":
            padding = graph.add("Sub", graph.constant(np.float32(1)), column)
            lowered = graph.add("Add", x, graph.add("Mul", padding, graph.constant(np.float32(_MASKED))))
            return graph.add("ReduceMax", lowered, tokens, keepdims=0)
        # Of unit length afterwards: the mean and the sum are one.
        return graph.add("ReduceSum", graph.add("Mul", x, column), tokens, keepdims=0)


def _outliers(peaks: Array) -> npt.NDArray[np.intp]:
    """The channels that are much larger than all but the largest hundredth."""
    usual = np.quantile(peaks, _USUAL_SHARE)
    return np.flatnonzero(peaks > _OUTLIER_FACTOR * usual)[:_MAX_OUTLIERS] if usual > 0 else np.array([], np.intp)


def _rounded(weight: Array, *, axis: int) -> tuple[npt.NDArray[np.int8], Array]:
    """8-bit integers and the scales, one for each index that is not of `axis`, that give back the weight, nearly."""
    scale = np.abs(weight).max(axis=axis) / np.float32(_INT8_MAX)
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    return np.rint(weight / np.expand_dims(scale, axis)).astype(np.int8), scale
