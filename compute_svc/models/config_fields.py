"""Reads the fields of a config.json, each checked for its type and range."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from compute_svc.kernels.linear import Activation
from compute_svc.layers.rotary_table import RopeScaling
from compute_svc.models.config import LayerKind, Rope, UnsupportedModel
from compute_svc.models.weights import CheckpointError, listed

# Names that checkpoints use, and what they mean. gelu_fast and gelu_new are written-out forms of the same approximation.
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100

# No published model comes near these. What is computed from fields within them is finite, and what is counted up to them is quickly done.
LARGEST_COUNT = 1 << 40
_SMALLEST_NUMBER, _LARGEST_NUMBER = 1e-20, 1e20
_MOST_LISTED = 1 << 14
# Fields of which there is something for each: a layer, a head, an expert.
_LISTED_COUNTS = frozenset(
    {
        *("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
        *("num_attention_heads", "num_key_value_heads", "num_kv_heads", "n_head", "n_heads", "kv_n_heads", "multi_query_group_num"),
        *("num_experts", "num_local_experts", "num_experts_per_tok"),
    }
)


class _Range(NamedTuple):
    """Where a number may lie; its lower end is left out."""

    above: float
    at_most: float


_SHARE = _Range(0, 1)
_RANGES = {
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_epsilon"), _SHARE),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), _SHARE),
    # A base of one makes all pairs turn alike, and its logarithm is a divisor.
    **dict.fromkeys(("rope_theta", "rope_local_base_freq", "rotary_emb_base"), _Range(1, _LARGEST_NUMBER)),
}


class ConfigFields:
    """Typed access to the fields of a config.json.

    Args:
        fields: The JSON object.
        place: Where it is from, for messages.
        max_tokens: The longest request that will be served; None = as long as the checkpoint allows.
    """

    def __init__(self, fields: dict[str, Any], place: str, *, max_tokens: int | None = None) -> None:
        self._fields = fields
        self.place = place
        self.max_tokens = max_tokens
        self._asked: set[str] = set()
        self._sections: dict[str, ConfigFields] = {}

    def __contains__(self, name: str) -> bool:
        self._asked.add(name)
        return name in self._fields

    def get(self, name: str) -> Any:
        """The raw value; None if absent or null."""
        self._asked.add(name)
        return self._fields.get(name)

    def by_use(self) -> tuple[list[str], list[str]]:
        """Names of the fields that are there: those that somebody has asked for, and the others; of sections as "section.field"."""
        used: list[str] = []
        unused: list[str] = []
        for name in self._fields:
            if name in self._sections:
                for names, inner in zip((used, unused), self._sections[name].by_use(), strict=True):
                    names += [f"{name}.{field}" for field in inner]
            else:
                (used if name in self._asked else unused).append(name)
        return used, unused

    def count(self, name: str, default: int | None = None, *, at_least: int = 1) -> int:
        """An integer. Raises CheckpointError if it is not one, or out of range, or absent without a default."""
        value = self._present(name, default)
        if type(value) is not int or value < at_least:
            raise CheckpointError(f"{self.place}: {name} is {shown(value)}, it must be an integer of at least {at_least}")
        limit = _MOST_LISTED if name in _LISTED_COUNTS else LARGEST_COUNT
        if value > limit:
            raise CheckpointError(f"{self.place}: {name} is {shown(value)}, it must be an integer of at most {limit}")
        return value

    def optional_count(self, name: str) -> int | None:
        """An integer of at least 1, or None if absent or null. Raises CheckpointError if it is something else."""
        return None if self.get(name) is None else self.count(name)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0. Raises CheckpointError if it is not one, or out of the field's range, or absent without a default."""
        value = self._present(name, default)
        if type(value) not in (int, float) or not value > 0:
            raise CheckpointError(f"{self.place}: {name} is {shown(value)}, it must be a number above 0")
        above, at_most = _RANGES.get(name, _Range(0, _LARGEST_NUMBER))
        if not max(above, _SMALLEST_NUMBER) < value <= at_most:
            raise CheckpointError(f"{self.place}: {name} is {shown(value)}, it must be above {above:g} and at most {at_most:g}")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A number above 0, or None if absent or null. Raises CheckpointError if it is something else."""
        return None if self.get(name) is None else self.number(name)

    def flag(self, name: str, default: bool) -> bool:
        """true or false. Raises CheckpointError if it is neither."""
        value = self._present(name, default)
        if type(value) is not bool:
            raise CheckpointError(f"{self.place}: {name} is {shown(value)}, it must be true or false")
        return value

    def section(self, name: str) -> ConfigFields | None:
        """A nested object; None if absent. Raises CheckpointError if it is something else."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.place}: {name} must be an object")
        # The same one each time, which knows what was asked of it.
        return self._sections.setdefault(name, ConfigFields(value, f"{self.place}: {name}"))

    def word(self, name: str) -> str | None:
        """A string; None if absent or null. Raises CheckpointError if it is something else."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise CheckpointError(f"{self.place}: {name} is {shown(value)}, it must be a string")
        return value

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """That many numbers above 0. Raises CheckpointError if it is something else, or absent."""
        values = self.get(name)
        if not isinstance(values, list) or len(values) != count or not all(type(value) in (int, float) for value in values):
            raise CheckpointError(f"{self.place}: {name} must list {count} numbers")
        return tuple(ConfigFields({name: value}, self.place).number(name) for value in values)

    def indices(self, name: str) -> frozenset[int]:
        """Integers of at least 0, none if absent. Raises CheckpointError if it is something else."""
        values = self.get(name)
        if values is None:
            return frozenset()
        if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
            raise CheckpointError(f"{self.place}: {name} must list integers of at least 0")
        return frozenset(values)

    def nested(self) -> list[str]:
        """Names of the fields that are objects themselves."""
        return [name for name, value in self._fields.items() if isinstance(value, dict)]

    def require(self, name: str, supported: Any) -> None:
        """Checks a field that may have one value only; absent or null stands for that value.

        Raises:
            UnsupportedModel: It has another.
        """
        value = self.get(name)
        if value is not None and value != supported:
            raise UnsupportedModel(f"{self.place}: {name} {shown(value)} is not supported; supported: {supported!r}")

    def activation(self, name: str = "hidden_act", default: str = "silu") -> Activation:
        """The MLP's activation.

        Raises:
            UnsupportedModel: The engine does not have it.
        """
        value = self.word(name) or default
        if value not in _ACTIVATIONS:
            raise UnsupportedModel(f"{self.place}: {name} {shown(value)} is not supported; supported: {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def _present(self, name: str, default: Any) -> Any:
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.place} lacks {name}")
        return value


def shown(value: Any) -> str:
    """A value of a config for a message, shortened: it may be as long and as deeply nested as its file."""
    return _SHORT.repr(value)


def read_rope(fields: ConfigFields, head_dim: int, *, theta: float = 10000.0, share: float = 1.0, interleaved: bool = False) -> Rope:
    """Rotary positions from `rope_parameters` of newer configs, or from `rope_theta` and `rope_scaling` of older ones.

    Args:
        fields: The whole config.json.
        head_dim: Width of a head.
        theta: What the family takes if the config says nothing.
        share: Share of a head's dimensions that turn, likewise.
        interleaved: How the family pairs dimensions.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: The scaling is of a kind this engine does not do.
    """
    sections = [section for name in ("rope_parameters", "rope_scaling") if (section := fields.section(name)) is not None]
    for section in sections:
        if section.nested():
            raise UnsupportedModel(
                f"{section.place}: rotary parameters that differ between layers ({listed(section.nested())}) are not supported"
            )
    places = (*sections, fields)
    dims = int(head_dim * _first_number(places, "partial_rotary_factor", share))
    scaling = next((found for section in sections if (found := read_rope_scaling(section, fields)) is not None), None)
    return Rope(dims=dims, theta=_first_number(places, "rope_theta", theta), scaling=scaling, interleaved=interleaved)


def read_ropes_by_kind(fields: ConfigFields, head_dim: int) -> tuple[Rope, Rope] | None:
    """Of layers that see everything and of those with a window, from `rope_parameters` that say them apart; None if they do not.

    Raises as `read_rope_scaling` does.
    """
    section = fields.section("rope_parameters")
    both = [] if section is None else [section.section(name) for name in ("full_attention", "sliding_attention")]
    parts = [part for part in both if part is not None]
    if len(parts) < 2:
        return None
    full, sliding = (Rope(dims=head_dim, theta=part.number("rope_theta"), scaling=read_rope_scaling(part, fields)) for part in parts)
    return full, sliding


def _first_number(places: tuple[ConfigFields, ...], name: str, default: float) -> float:
    return next((place.number(name) for place in places if place.get(name) is not None), default)


def read_rope_scaling(section: ConfigFields, fields: ConfigFields) -> RopeScaling | None:
    """The scaling that a section of rotary parameters describes; None if it has none.

    Args:
        section: With `rope_type` or, of old, `type`.
        fields: The whole config.json.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: The kind is not supported.
    """
    kind = section.word("rope_type") or section.word("type") or "default"
    if kind in ("default", "dynamic"):
        # Dynamic frequencies are the plain ones up to the trained length, and no request is longer.
        return None
    if kind == "linear":
        return RopeScaling("linear", section.number("factor"))
    if kind == "llama3":
        low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
        if low >= high:
            raise CheckpointError(f"{section.place}: low_freq_factor {low} must be below high_freq_factor {high}")
        original = section.count("original_max_position_embeddings")
        return RopeScaling("llama3", section.number("factor"), low_freq_factor=low, high_freq_factor=high, original_max_positions=original)
    if kind == "yarn":
        return _read_yarn(section, fields)
    raise UnsupportedModel(f"{section.place}: rope type {shown(kind)} is not supported; supported: default, dynamic, linear, llama3, yarn")


def _read_yarn(section: ConfigFields, fields: ConfigFields) -> RopeScaling:
    original = section.optional_count("original_max_position_embeddings") or fields.count("max_position_embeddings")
    factor = section.number("factor")
    return RopeScaling(
        "yarn",
        factor,
        low_freq_factor=section.number("beta_slow", 1.0),
        high_freq_factor=section.number("beta_fast", 32.0),
        original_max_positions=original,
        amplitude=_yarn_amplitude(section, factor),
        truncate=section.flag("truncate", True),
    )


def _yarn_amplitude(section: ConfigFields, factor: float) -> float | None:
    """What sines and cosines are multiplied by; None = what follows from the factor alone.

    With mscale and mscale_all_dim the part of the second is left to whoever scales the scores (`yarn_scale`), and only DeepSeek does.
    """
    given = section.optional_number("attention_factor")
    if given is not None or not (section.get("mscale") and section.get("mscale_all_dim")):
        return given
    return yarn_scale(factor, section.number("mscale")) / yarn_scale(factor, section.number("mscale_all_dim"))


def yarn_scale(factor: float, weight: float = 1.0) -> float:
    """What yarn (arXiv 2309.00071) makes queries and keys larger by, for a context that is `factor` times as long."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def context_limit(fields: ConfigFields, default: int | None = None) -> int:
    """The longest context a model with rotary positions was made for, in tokens.

    `max_position_embeddings`, or what linear or yarn scaling stretches the original context to where that is more: published
    configs give the length before stretching or the one after it. Without an original length the given one counts as such.

    Args:
        fields: The whole config.json.
        default: What the family takes if the field is absent.

    Raises:
        CheckpointError: A field is missing or senseless.
    """
    given = fields.count("max_position_embeddings", default)
    sections = [section for name in ("rope_parameters", "rope_scaling") if (section := fields.section(name)) is not None]
    scaled = next((section for section in sections if (section.word("rope_type") or section.word("type")) in ("linear", "yarn")), None)
    if scaled is None:
        return given
    places = (place for place in (scaled, fields) if place.get("original_max_position_embeddings") is not None)
    original = next((place.count("original_max_position_embeddings") for place in places), given)
    stretched = int(original * scaled.number("factor"))
    if stretched > LARGEST_COUNT:
        raise CheckpointError(f"{scaled.place}: factor stretches the context to {stretched} tokens, the limit is {LARGEST_COUNT}")
    return max(given, stretched)


def uniform(kind: LayerKind, num_layers: int) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
    """`kinds` and `kind_of_layer` of a model whose layers are all of one kind."""
    return (kind,), (0,) * num_layers


def distinct(kinds: Sequence[LayerKind]) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
    """`kinds` and `kind_of_layer` of a model whose layers are of these kinds, one for each."""
    different = tuple(dict.fromkeys(kinds))
    return different, tuple(different.index(kind) for kind in kinds)


def windowed(
    fields: ConfigFields, full: LayerKind, sliding: LayerKind | None, *, default: list[str] | None = None
) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
    """`kinds` and `kind_of_layer` of a model some of whose layers have a sliding window.

    Args:
        fields: The whole config.json, with `layer_types`.
        full: Of layers called full_attention.
        sliding: Of layers called sliding_attention; None = there may be none.
        default: What stands for absent `layer_types`; None = all are full.

    Raises:
        CheckpointError: `layer_types` does not list a kind for each layer.
        UnsupportedModel: There are other kinds of layers.
    """
    num_layers = fields.count("num_hidden_layers")
    names = fields.get("layer_types")
    if names is None:
        names = default or ["full_attention"] * num_layers
    if not isinstance(names, list) or len(names) != num_layers:
        raise CheckpointError(f"{fields.place}: layer_types must list a kind for each layer")
    known = {"full_attention": full} | ({} if sliding is None else {"sliding_attention": sliding})
    unknown = sorted({str(name) for name in names} - known.keys())
    if unknown:
        raise UnsupportedModel(f"{fields.place}: layer_types {unknown} are not supported here; supported: {', '.join(known)}")
    used = [name for name in known if name in names]
    return tuple(known[name] for name in used), tuple(used.index(name) for name in names)
