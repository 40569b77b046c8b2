"""Reads a folder of sentence-transformers that holds a BERT: what it is, and its weights. Nothing in it is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from prompt_cache.embedding.embedder import EmbedderRefused
from prompt_cache.embedding.files import file_bytes, read_object, read_objects, sha256_of
from prompt_cache.embedding.folder import MAX_TOKENIZER_BYTES

WEIGHTS_FILE = "model.safetensors"
PICKLE_FILE = "pytorch_model.bin"
# More than 2 GB no protobuf message can hold, and the float32 graph is one.
MAX_WEIGHTS_BYTES = 1_800_000_000
_MAX_JSON_BYTES = 1024 * 1024

Pooling = Literal["mean", "cls", "max"]
Activation = Literal["gelu", "gelu_new", "relu"]
Array = npt.NDArray[np.float32]

_POOLINGS: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "relu": "relu"}
_TRANSFORMER, _POOLING, _NORMALIZE = "Transformer", "Pooling", "Normalize"
# Heads of training, and indices that count from 0.
_IGNORED_TENSORS = ("pooler.", "cls.", "embeddings.position_ids")
_PREFIX = "bert."
_DTYPES = ("F32", "F16")


@dataclass(frozen=True, kw_only=True)
class BertShape:
    """Sizes of a BERT.

    Attributes:
        positions: The longest input its position embeddings have rows for.
        epsilon: Of its layer norms.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    token_types: int
    epsilon: float
    activation: Activation

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by name, as transformers calls them."""
        hidden, wide = (self.hidden,), (self.intermediate,)
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocabulary, self.hidden),
            "embeddings.position_embeddings.weight": (self.positions, self.hidden),
            "embeddings.token_type_embeddings.weight": (self.token_types, self.hidden),
            "embeddings.LayerNorm.weight": hidden,
            "embeddings.LayerNorm.bias": hidden,
        }
        for layer in range(self.layers):
            parts = {
                "attention.self.query": (hidden, hidden),
                "attention.self.key": (hidden, hidden),
                "attention.self.value": (hidden, hidden),
                "attention.output.dense": (hidden, hidden),
                "intermediate.dense": (wide, hidden),
                "output.dense": (hidden, wide),
            }
            for name, (rows, columns) in parts.items():
                shapes[f"encoder.layer.{layer}.{name}.weight"] = rows + columns
                shapes[f"encoder.layer.{layer}.{name}.bias"] = rows
            for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
                shapes[f"encoder.layer.{layer}.{norm}.weight"] = hidden
                shapes[f"encoder.layer.{layer}.{norm}.bias"] = hidden
        return shapes


@dataclass(frozen=True, kw_only=True)
class BertSource:
    """A sentence model that can be converted.

    Attributes:
        window_tokens: The longest text it was made for, the tokens at its ends included.
    """

    folder: Path
    shape: BertShape
    pooling: Pooling
    window_tokens: int

    @property
    def weights_path(self) -> Path:
        """Where its weights are."""
        return self.folder / WEIGHTS_FILE

    def sha256(self) -> str:
        """Of its weights."""
        return sha256_of(self.weights_path)


def read_source(folder: Path) -> BertSource:
    """Reads all of a sentence-transformers folder but its weights.

    Raises:
        EmbedderRefused: it is no such folder, or a model of another kind; names the file and the field.
    """
    if not folder.is_dir():
        raise EmbedderRefused(f"{folder} is no folder")
    weights = folder / WEIGHTS_FILE
    if not weights.exists() and (folder / PICKLE_FILE).exists():
        raise EmbedderRefused(f"{folder} has {PICKLE_FILE} alone, a pickle, which can run code: only {WEIGHTS_FILE} is read")
    file_bytes(weights, MAX_WEIGHTS_BYTES)
    file_bytes(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)
    pooling_folder = _read_modules(folder)
    shape = _read_config(folder / "config.json")
    pooling = _read_pooling(pooling_folder / "config.json", shape.hidden)
    return BertSource(folder=folder, shape=shape, pooling=pooling, window_tokens=_read_window(folder, shape.positions))


def read_weights(source: BertSource) -> dict[str, Array]:
    """The weights as float32, by transformers' names.

    Raises:
        EmbedderRefused: the file is no safetensors, or a tensor is missing, unknown, of another shape or type, or not finite; names it.
    """
    expected = source.shape.tensors()
    try:
        with safe_open(source.weights_path, framework="numpy") as file:
            names = {str(name).removeprefix(_PREFIX): str(name) for name in file.keys()}  # noqa: SIM118
            _check_names(source.weights_path, names, expected)
            return {name: _tensor(source.weights_path, file, names[name], shape) for name, shape in expected.items()}
    except (SafetensorError, OSError) as error:
        raise EmbedderRefused(f"{source.weights_path} cannot be read as safetensors: {error}") from error


def _check_names(path: Path, names: Mapping[str, str], expected: Mapping[str, object]) -> None:
    for name in expected:
        if name not in names:
            raise EmbedderRefused(f"{path} lacks the tensor {name}")
    for name in names:
        if name not in expected and not name.startswith(_IGNORED_TENSORS):
            raise EmbedderRefused(f"{path} has the tensor {name[:200]}, which a plain BERT has not")


def _tensor(path: Path, file: Any, name: str, shape: tuple[int, ...]) -> Array:
    view = file.get_slice(name)
    if tuple(view.get_shape()) != shape:
        raise EmbedderRefused(f"{path}: {name} has the shape {list(view.get_shape())}, config.json says {list(shape)}")
    if view.get_dtype() not in _DTYPES:
        raise EmbedderRefused(f"{path}: {name} is {view.get_dtype()}, only {' and '.join(_DTYPES)} are read")
    tensor: Array = file.get_tensor(name).astype(np.float32)
    if not np.isfinite(tensor).all():
        raise EmbedderRefused(f"{path}: {name} has elements that are not finite")
    return tensor


def _read_modules(folder: Path) -> Path:
    """The folder of the pooling's config, from modules.json."""
    path = folder / "modules.json"
    modules = read_objects(path, _MAX_JSON_BYTES)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds not in ([_TRANSFORMER, _POOLING], [_TRANSFORMER, _POOLING, _NORMALIZE]):
        raise EmbedderRefused(f"{path} has the modules {', '.join(kinds)[:200]}; only Transformer, Pooling and Normalize are converted")
    if modules[0].get("path") != "":
        raise EmbedderRefused(f"{path}: the path of the Transformer must be the folder itself")
    name = modules[1].get("path")
    if not isinstance(name, str) or not name.replace("_", "").isalnum():
        raise EmbedderRefused(f"{path}: the path of the Pooling must be the name of a folder in {folder}")
    return folder / name


def _read_config(path: Path) -> BertShape:
    found = read_object(path, _MAX_JSON_BYTES)
    kind = found.get("model_type")
    if kind != "bert":
        raise EmbedderRefused(f"{path}: model_type is {kind!r}; only bert is converted")
    for name, plain in (("position_embedding_type", "absolute"), ("is_decoder", False), ("add_cross_attention", False)):
        if found.get(name, plain) != plain:
            raise EmbedderRefused(f"{path}: {name} is {found[name]!r}; only {plain!r} is converted")
    activation = _ACTIVATIONS.get(str(found.get("hidden_act")))
    if activation is None:
        raise EmbedderRefused(f"{path}: hidden_act is {found.get('hidden_act')!r}; {', '.join(_ACTIVATIONS)} are converted")
    epsilon = found.get("layer_norm_eps", 1e-12)
    if type(epsilon) is not float or not 0 <= epsilon <= 0.01:
        raise EmbedderRefused(f"{path}: layer_norm_eps is {epsilon!r}, it must be from 0 to 0.01")
    shape = BertShape(
        vocabulary=_integer(path, found, "vocab_size", 2_000_000),
        hidden=_integer(path, found, "hidden_size", 4096),
        layers=_integer(path, found, "num_hidden_layers", 64),
        heads=_integer(path, found, "num_attention_heads", 64),
        intermediate=_integer(path, found, "intermediate_size", 32_768),
        positions=_integer(path, found, "max_position_embeddings", 32_768),
        token_types=_integer(path, found, "type_vocab_size", 16),
        epsilon=epsilon,
        activation=activation,
    )
    size = 4 * sum(math.prod(tensor) for tensor in shape.tensors().values())
    if size > MAX_WEIGHTS_BYTES:
        raise EmbedderRefused(f"{path} describes a model of {size} bytes in float32, the most is {MAX_WEIGHTS_BYTES}")
    if shape.hidden % shape.heads:
        raise EmbedderRefused(f"{path}: hidden_size is {shape.hidden}, no multiple of num_attention_heads, {shape.heads}")
    return shape


def _read_pooling(path: Path, hidden: int) -> Pooling:
    found = read_object(path, _MAX_JSON_BYTES)
    modes = [name for name, value in found.items() if name.startswith("pooling_mode_") and value]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise EmbedderRefused(f"{path} pools by {', '.join(modes)[:200] or 'nothing'}; one of {', '.join(_POOLINGS)} is converted")
    if found.get("word_embedding_dimension", hidden) != hidden:
        raise EmbedderRefused(
            f"{path}: word_embedding_dimension is {found['word_embedding_dimension']!r}, the model's hidden_size is {hidden}"
        )
    return _POOLINGS[modes[0]]


def _read_window(folder: Path, positions: int) -> int:
    path = folder / "sentence_bert_config.json"
    if not path.exists():
        return positions
    found = read_object(path, _MAX_JSON_BYTES)
    if found.get("do_lower_case"):
        raise EmbedderRefused(
            f"{path}: do_lower_case is set; only models whose tokenizer.json does all that is done to a text are converted"
        )
    if found.get("max_seq_length") is None:
        return positions
    return min(positions, _integer(path, found, "max_seq_length", 1_000_000))


def _integer(path: Path, found: Mapping[str, Any], name: str, most: int) -> int:
    value = found.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise EmbedderRefused(f"{path}: {name} is {str(value)[:100]}, it must be an integer from 1 to {most}")
    return value
