"""What GGUF metadata say of a model's sizes and positions, in the words of config.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from compute_svc.models.gguf.dequantise import Floats, read_rows
from triserve.model_files.gguf_file import GgufFile
from triserve.model_files.gguf_header import GgufError

Config = dict[str, Any]

# Every Llama 3 was stretched so. Other values are found by fitting them.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_ORIGINAL = 1.0, 4.0, 8192


class Sizes(NamedTuple):
    """Of a model; see `ModelConfig`."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    context: int
    vocab: int


def key(file: GgufFile, name: str) -> str:
    """The metadata key of a name of the architecture's own."""
    return f"{file.architecture}.{name}"


def read_sizes(file: GgufFile, *, kv_heads: int | None = None) -> Sizes:
    """The sizes of a model whose layers are all alike.

    Args:
        file: The model.
        kv_heads: How many key heads there are if the file does not say; None = as many as heads.

    Raises:
        GgufError: One is missing or senseless, or differs from layer to layer.
    """
    hidden, heads = file.count(key(file, "embedding_length")), _same_everywhere(file, "attention.head_count")
    head_dim = file.count(key(file, "attention.key_length"), max(1, hidden // heads))
    if file.count(key(file, "attention.value_length"), head_dim) != head_dim:
        raise GgufError(f"{file.place}: keys and values of different widths are not supported")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise GgufError(f"{file.place} holds no matrix token_embd.weight")
    return Sizes(
        hidden=hidden,
        layers=file.count(key(file, "block_count")),
        heads=heads,
        kv_heads=_same_everywhere(file, "attention.head_count_kv", kv_heads or heads),
        head_dim=head_dim,
        intermediate=_same_everywhere(file, "feed_forward_length"),
        context=file.count(key(file, "context_length")),
        vocab=embedding.shape[0],
    )


def _same_everywhere(file: GgufFile, name: str, default: int | None = None) -> int:
    value = file.get(key(file, name))
    if isinstance(value, Sequence) and not isinstance(value, str):
        numbers = set(file.counts(key(file, name)))
        if len(numbers) != 1:
            raise GgufError(f"{file.place}: {key(file, name)} differs between layers, which is not supported")
        value = numbers.pop()
        if type(value) is not int or value < 1:
            raise GgufError(f"{file.place}: {key(file, name)} has {value!r}, each must be a whole number of at least 1")
        return value
    return file.count(key(file, name), default)


def token_ids(file: GgufFile) -> Config:
    """The ids of special tokens that belong into config.json."""
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    return {
        name: file.count(f"tokenizer.ggml.{ours}", at_least=0)
        for name, ours in names.items()
        if file.get(f"tokenizer.ggml.{ours}") is not None
    }


def llama_form(file: GgufFile, architecture: str, sizes: Sizes, **fields: Any) -> Config:
    """A config.json with Llama's names.

    Args:
        file: The model.
        architecture: The name its config.json gives itself.
        sizes: Its sizes.
        fields: What else it says, or says differently; None leaves a field out.

    Raises:
        GgufError: A value is missing or senseless.
    """
    config: Config = {
        "architectures": [architecture],
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.intermediate,
        "max_position_embeddings": sizes.context,
        "vocab_size": sizes.vocab,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **token_ids(file),
    }
    if "rms_norm_eps" not in fields:
        config["rms_norm_eps"] = file.number(key(file, "attention.layer_norm_rms_epsilon"))
    if "rope_parameters" not in fields:
        config["rope_parameters"] = rope_parameters(file, sizes)
    return {name: value for name, value in {**config, **fields}.items() if value is not None}


def rope_parameters(file: GgufFile, sizes: Sizes, *, theta: float = 10000.0, share_default: float = 1.0) -> Config:
    """Rotary positions.

    Args:
        file: The model.
        sizes: Its sizes.
        theta: The base if the file does not say.
        share_default: The share of a head that turns if the file does not say.

    Raises:
        GgufError: A value is missing or senseless, or the scaling is of a kind that is not known.
    """
    dims = file.count(key(file, "rope.dimension_count"), int(sizes.head_dim * share_default))
    parameters: Config = {"rope_theta": file.number(key(file, "rope.freq_base"), theta), "rope_type": "default"}
    if dims != sizes.head_dim:
        parameters["partial_rotary_factor"] = share(dims, sizes.head_dim)
    if "rope_freqs.weight" in file.tensors:
        return parameters | _llama3(file, parameters["rope_theta"], dims)
    kind = file.text(key(file, "rope.scaling.type"), "none")
    factor = file.get(key(file, "rope.scaling.factor"))
    if kind == "none" and file.get(key(file, "rope.scale_linear")) is not None:
        kind, factor = "linear", file.number(key(file, "rope.scale_linear"))
    if kind == "none" or (kind == "linear" and factor in (None, 0, 1)):
        return parameters
    if kind not in ("linear", "yarn"):
        raise GgufError(f"{file.place}: rope.scaling.type {kind!r} is not supported here; supported: none, linear, yarn")
    parameters |= {
        "rope_type": kind,
        "factor": file.number(key(file, "rope.scaling.factor"), factor if isinstance(factor, float) else None),
    }
    return parameters if kind == "linear" else parameters | _yarn(file, parameters["factor"])


def share(dims: int, head_dim: int) -> float:
    """The share of a head's dimensions that turn, such that rounding down gives `dims` again."""
    exact = dims / head_dim
    return exact if int(head_dim * exact) == dims else (dims + 0.5) / head_dim


def _yarn(file: GgufFile, factor: float) -> Config:
    if file.get(key(file, "rope.scaling.yarn_log_multiplier")) is not None:
        raise GgufError(f"{file.place}: rope.scaling.yarn_log_multiplier is not supported")
    original = file.get(key(file, "rope.scaling.original_context_length"))
    fields: Config = (
        {} if original is None else {"original_max_position_embeddings": file.count(key(file, "rope.scaling.original_context_length"))}
    )
    height = file.number(key(file, "rope.scaling.attn_factor"), 1.0)
    if height != 1.0:
        # Here it comes on top of what yarn derives from the factor.
        fields["attention_factor"] = height * (1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0)
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if file.get(key(file, f"rope.scaling.{theirs}")) is not None:
            fields[ours] = file.number(key(file, f"rope.scaling.{theirs}"))
    return fields


def vector(file: GgufFile, name: str) -> Floats:
    """[numbers] of a vector. Raises GgufError if there is none of that name or it is no vector."""
    tensor = file.tensors.get(name)
    if tensor is None or len(tensor.shape) != 1:
        raise GgufError(f"{file.place} holds no vector {name}")
    numbers: Floats = read_rows(tensor, 0, 1)[0]
    return numbers


def _llama3(file: GgufFile, theta: float, dims: int) -> Config:
    """What the divisors of frequencies in rope_freqs.weight were computed from."""
    divisors = vector(file, "rope_freqs.weight").astype(np.float64)
    if len(divisors) != dims // 2 or not np.all(np.isfinite(divisors) & (divisors >= 1)):
        raise GgufError(f"{file.place}: rope_freqs.weight must hold {dims // 2} numbers of at least 1")
    factor = float(f"{divisors.max():.6g}")
    if factor == 1:
        return {}
    wavelengths = 2 * math.pi * theta ** (np.arange(0, dims, 2) / dims)
    low, high = _LLAMA3_LOW, _LLAMA3_HIGH
    if not _explains(divisors, wavelengths, factor, low, high):
        low, high = _fitted(divisors, wavelengths, factor)
        if not _explains(divisors, wavelengths, factor, low, high):
            raise GgufError(f"{file.place}: rope_freqs.weight stretches positions in a way that is not known; Llama 3's is")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": _LLAMA3_ORIGINAL,
    }


def _explains(divisors: Any, wavelengths: Any, factor: float, low: float, high: float) -> bool:
    if not 0 < low < high:
        return False
    mixture = np.clip((_LLAMA3_ORIGINAL / wavelengths - low) / (high - low), 0, 1)
    return bool(np.allclose(divisors, 1 / ((1 - mixture) / factor + mixture), rtol=1e-5))


def _fitted(divisors: Any, wavelengths: Any, factor: float) -> tuple[float, float]:
    """Low and high frequency factor for a fixed original length; only their products with it matter. (0, 0) if nothing tells them."""
    mixture = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    between = (mixture > 1e-4) & (mixture < 1 - 1e-4)
    if between.sum() < 2:
        return 0.0, 0.0
    slope, start = np.polyfit(_LLAMA3_ORIGINAL / wavelengths[between], mixture[between], 1)
    if slope <= 0:
        return 0.0, 0.0
    return float(-start / slope), float((1 - start) / slope)
