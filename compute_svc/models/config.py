"""What a decoder-only model is, read from its config.json.

UnsupportedModel(CheckpointError): the checkpoint needs something this engine does not do
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compute_svc.layers.rotary_table import RopeScaling
from compute_svc.weights import CheckpointError, listed


class UnsupportedModel(CheckpointError):
    """A checkpoint asks for something this engine does not do; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One decoder: every difference between the families is a field here.

    Attributes:
        architecture: The name the checkpoint gives itself.
        vocab_size: Number of logits.
        hidden_size: Width of the residual stream.
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; divides num_heads.
        head_dim: Width of a head; even.
        intermediate_size: Width of the MLP.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: How they were stretched; None = not.
        rms_norm_eps: Added to mean squares.
        max_position_embeddings: Longest context it was made for, in tokens.
        tie_word_embeddings: Logits are products with the embedding; there is no other matrix.
        sliding_window: How many tokens a query sees, itself included; None = all.
        qkv_bias: Query, key and value projections have biases.
        output_bias: The projection after attention has one.
        mlp_bias: The MLP's projections have biases.
        qk_norm: Query and key heads are normalised.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    sliding_window: int | None
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool


class ConfigFields:
    """Typed access to the fields of a config.json.

    Args:
        fields: The JSON object.
        place: Where it is from, for messages.
    """

    def __init__(self, fields: dict[str, Any], place: str) -> None:
        self._fields = fields
        self.place = place

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str) -> Any:
        """The raw value; None if absent or null."""
        return self._fields.get(name)

    def count(self, name: str, default: int | None = None, *, at_least: int = 1) -> int:
        """An integer. Raises CheckpointError if it is not one, or too small, or absent without a default."""
        value = self._present(name, default)
        if type(value) is not int or value < at_least:
            raise CheckpointError(f"{self.place}: {name} is {value!r}, it must be an integer of at least {at_least}")
        return value

    def optional_count(self, name: str) -> int | None:
        """An integer of at least 1, or None if absent or null. Raises CheckpointError if it is something else."""
        return None if self.get(name) is None else self.count(name)

    def number(self, name: str, default: float | None = None) -> float:
        """A number above 0. Raises CheckpointError if it is not one, or is absent without a default."""
        value = self._present(name, default)
        if type(value) not in (int, float) or not value > 0:
            raise CheckpointError(f"{self.place}: {name} is {value!r}, it must be a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false. Raises CheckpointError if it is neither."""
        value = self._present(name, default)
        if type(value) is not bool:
            raise CheckpointError(f"{self.place}: {name} is {value!r}, it must be true or false")
        return value

    def section(self, name: str) -> ConfigFields | None:
        """A nested object; None if absent. Raises CheckpointError if it is something else."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.place}: {name} must be an object")
        return ConfigFields(value, f"{self.place}: {name}")

    def nested(self) -> list[str]:
        """Names of the fields that are objects themselves."""
        return [name for name, value in self._fields.items() if isinstance(value, dict)]

    def _present(self, name: str, default: Any) -> Any:
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.place} lacks {name}")
        return value


def decoder_config(
    fields: ConfigFields,
    *,
    architecture: str,
    head_dim: int | None = None,
    sliding_window: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> ModelConfig:
    """A config from the fields all families share and what a family says of itself.

    Args:
        fields: The whole config.json.
        architecture: Its name.
        head_dim: What the family takes if the field is absent; None = hidden size over heads.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: A field asks for what this engine does not do.
    """
    _refuse_unsupported(fields)
    num_heads = fields.count("num_attention_heads")
    hidden_size = fields.count("hidden_size")
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.count("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.count("num_key_value_heads", num_heads),
        head_dim=fields.count("head_dim", head_dim or hidden_size // num_heads),
        intermediate_size=fields.count("intermediate_size"),
        rope_theta=_rope_field(fields, "rope_theta", 10000.0),
        rope_scaling=_rope_scaling(fields),
        rms_norm_eps=fields.number("rms_norm_eps"),
        max_position_embeddings=fields.count("max_position_embeddings"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        sliding_window=sliding_window,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
    )
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(
            f"{fields.place}: num_attention_heads {num_heads} is no multiple of num_key_value_heads {config.num_kv_heads}"
        )
    if config.head_dim % 2:
        raise CheckpointError(f"{fields.place}: head_dim is {config.head_dim}, it must be even")
    return config


def uniform_window(fields: ConfigFields, window: int | None) -> int | None:
    """The window all layers share, for families whose layers may differ.

    Raises:
        UnsupportedModel: Some layers have a window and some have not, or there are other kinds of layers.
    """
    kinds = fields.get("layer_types")
    if kinds is None:
        full_layers = fields.count("max_window_layers", 28, at_least=0)
        if window is None or full_layers >= fields.count("num_hidden_layers"):
            return None
        if full_layers == 0:
            return window
        raise UnsupportedModel(
            f"{fields.place}: layers with and without a sliding window (max_window_layers {full_layers}) are not supported"
        )
    if not isinstance(kinds, list) or len(kinds) != fields.count("num_hidden_layers"):
        raise CheckpointError(f"{fields.place}: layer_types must list a kind for each layer")
    if all(kind == "full_attention" for kind in kinds):
        return None
    if all(kind == "sliding_attention" for kind in kinds) and window is not None:
        return window
    raise UnsupportedModel(
        f"{fields.place}: layer_types {sorted(set(map(str, kinds)))} are not supported together or without sliding_window"
    )


def _refuse_unsupported(fields: ConfigFields) -> None:
    if fields.get("quantization_config") is not None:
        method = (fields.section("quantization_config") or fields).get("quant_method")
        raise UnsupportedModel(f"{fields.place}: quantization_config ({method}) is not supported; use an unquantised checkpoint")
    activation = fields.get("hidden_act") or "silu"
    if activation not in ("silu", "swish"):
        raise UnsupportedModel(f"{fields.place}: hidden_act {activation!r} is not supported; supported: silu")
    partial = _rope_field(fields, "partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise UnsupportedModel(f"{fields.place}: partial_rotary_factor {partial} is not supported; supported: 1")


def _rope_sections(fields: ConfigFields) -> list[ConfigFields]:
    """`rope_parameters` of newer configs, `rope_scaling` of older ones."""
    sections = [section for name in ("rope_parameters", "rope_scaling") if (section := fields.section(name)) is not None]
    for section in sections:
        if section.nested():
            raise UnsupportedModel(
                f"{section.place}: rotary parameters that differ between layers ({listed(section.nested())}) are not supported"
            )
    return sections


def _rope_field(fields: ConfigFields, name: str, default: float) -> float:
    for place in (*_rope_sections(fields), fields):
        if place.get(name) is not None:
            return place.number(name)
    return default


def _rope_scaling(fields: ConfigFields) -> RopeScaling | None:
    for section in _rope_sections(fields):
        kind = section.get("rope_type") or section.get("type") or "default"
        if kind == "default":
            continue
        if kind == "linear":
            return RopeScaling("linear", section.number("factor"))
        if kind != "llama3":
            raise UnsupportedModel(f"{section.place}: rope type {kind!r} is not supported; supported: default, linear, llama3")
        low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
        if low >= high:
            raise CheckpointError(f"{section.place}: low_freq_factor {low} must be below high_freq_factor {high}")
        return RopeScaling("llama3", section.number("factor"), low, high, section.count("original_max_position_embeddings"))
    return None
