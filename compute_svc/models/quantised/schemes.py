"""What the config of compressed-tensors says of projections: how their codes are, and which of them are coded so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from compute_svc.models.config_fields import ConfigFields, shown
from compute_svc.models.quantised.name_patterns import NamePattern
from compute_svc.models.weights import CheckpointError
from compute_svc.stored_weights.coded_weight import Activations

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
_STRATEGIES = ("tensor", "channel", "group", "block")
_MOST_TARGETS = 10_000
_MOST_PATTERNS = 100
# Characters of names times steps of patterns: a minute or two at the very worst, several times what the largest published model has.
_MOST_WORK = 1_000_000_000
# Names of a class, not of a projection: all that the files hold as codes are of it.
_ANY_PROJECTION = "Linear"


class Scheme(NamedTuple):
    """Of a group of projections.

    Attributes:
        kind: Of codes.
        bits: Of a code.
        strategy: What shares a scale.
        group: Columns that do; None unless that is a group of them.
        block: Rows and columns that do; None unless that is a block.
        activations: What they are multiplied by.
        has_static_scale: Whether the files hold the scale of activations.
    """

    kind: Literal["int", "float"]
    bits: int
    strategy: str
    group: int | None
    block: tuple[int, int] | None
    activations: Activations
    has_static_scale: bool


class Targets:
    """Projections by name.

    Args:
        names: Whole names, or patterns that begin with "re:".
        place: Where they are from, for messages.

    Raises:
        CheckpointError: They are no such names, or too many.
    """

    def __init__(self, names: Any, place: str) -> None:
        if not isinstance(names, list) or len(names) > _MOST_TARGETS or not all(isinstance(name, str) for name in names):
            raise CheckpointError(f"{place} must list at most {_MOST_TARGETS} names")
        patterns = [name.removeprefix("re:") for name in names if name.startswith("re:")]
        if len(patterns) > _MOST_PATTERNS:
            raise CheckpointError(f"{place} has {len(patterns)} patterns, the limit is {_MOST_PATTERNS}")
        self._names = frozenset(names)
        self._patterns = [NamePattern(pattern, place) for pattern in dict.fromkeys(patterns)]
        self.num_steps = sum(pattern.num_steps for pattern in self._patterns)

    @property
    def has_all(self) -> bool:
        """Whether the class of all projections is there."""
        return _ANY_PROJECTION in self._names

    def name(self, module: str) -> bool:
        """Whether a projection is among them by its name."""
        return module in self._names or any(pattern.matches(module) for pattern in self._patterns)


class Schemes:
    """The groups of a config.

    Args:
        fields: quantization_config.

    Raises:
        CheckpointError: A field is malformed, or says something that is not read.
    """

    def __init__(self, fields: ConfigFields) -> None:
        self._place = fields.place
        _require_format(fields)
        if fields.get("transform_config"):
            raise CheckpointError(f"{fields.place}: transform_config (rotations of activations) is not supported")
        sparsity = fields.section("sparsity_config")
        layout = "dense" if sparsity is None else sparsity.word("format") or "dense"
        if layout not in ("dense", "sparse-24-bitmask"):
            raise CheckpointError(f"{fields.place}: sparsity_config {shown(layout)} is not supported; supported: dense, sparse-24-bitmask")
        self._ignored = Targets(fields.get("ignore") or [], f"{fields.place}: ignore")
        groups = fields.section("config_groups")
        self._groups = [] if groups is None else [_read_group(groups, name) for name in groups.nested()]
        self._num_steps = len(self._groups) + sum(
            targets.num_steps for targets in (self._ignored, *(targets for targets, _ in self._groups))
        )
        self._work = 0

    def of(self, module: str) -> Scheme:
        """How a projection that the files hold as codes is coded.

        Raises:
            CheckpointError: The config does not say.
        """
        self._work += self._num_steps * len(module)
        if self._work > _MOST_WORK:
            raise CheckpointError(f"{self._place}: patterns of {self._num_steps} steps are too many for the names that there are")
        by_name = (scheme for targets, scheme in self._groups if targets.name(module))
        scheme = next(by_name, next((scheme for targets, scheme in self._groups if targets.has_all), None))
        if scheme is None or self._ignored.name(module):
            raise CheckpointError(
                f"{self._place}: {module} is stored as codes, but config_groups have no scheme for it, or ignore names it"
            )
        return scheme


def _require_format(fields: ConfigFields) -> None:
    layout = fields.word("format")
    if layout is not None and layout not in _FORMATS:
        raise CheckpointError(f"{fields.place}: format {shown(layout)} is not supported; supported: {', '.join(_FORMATS)}")


def _read_group(groups: ConfigFields, name: str) -> tuple[Targets, Scheme]:
    fields = groups.section(name)
    assert fields is not None, "it is one of the objects"
    _require_format(fields)
    targets = Targets(fields.get("targets"), f"{fields.place}: targets")
    weights = fields.section("weights")
    if weights is None:
        raise CheckpointError(f"{fields.place}: weights must be an object: schemes of activations alone are not supported")
    kind, bits, strategy = weights.word("type") or "int", weights.count("num_bits", 8), weights.word("strategy")
    if (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)):
        raise CheckpointError(f"{weights.place}: {shown(kind)} of {bits} bits is not supported; supported: int of 4 and 8, float of 8")
    strategy = strategy or ("tensor" if weights.get("group_size") is None else "group")
    if strategy not in _STRATEGIES:
        raise CheckpointError(f"{weights.place}: strategy {shown(strategy)} is not supported; supported: {', '.join(_STRATEGIES)}")
    if strategy == "group" and weights.get("group_size") == -1:
        strategy = "channel"
    block = _block(weights.get("block_structure"), weights.place) if strategy == "block" else None
    group = weights.count("group_size") if strategy == "group" else None
    activations, has_static_scale = _activations(fields.section("input_activations"))
    return targets, Scheme("float" if kind == "float" else "int", bits, strategy, group, block, activations, has_static_scale)


def _block(sizes: Any, place: str) -> tuple[int, int]:
    if isinstance(sizes, str):
        sizes = [int(size) if size.isascii() and size.isdecimal() and len(size) < 10 else size for size in sizes.split("x", 2)]
    return block_sizes(sizes, place, "block_structure")


def block_sizes(sizes: Sequence[Any], place: str, name: str) -> tuple[int, int]:
    """Rows and columns of a block, as a config lists them. Raises CheckpointError if it does not."""
    if not isinstance(sizes, list) or len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise CheckpointError(f"{place}: {name} is {shown(sizes)}, it must list two sizes of at least 1")
    return sizes[0], sizes[1]


def _activations(fields: ConfigFields | None) -> tuple[Activations, bool]:
    """What activations are rounded to, and whether to a scale that the files hold.

    In forms that nothing here computes they stay as they are: what comes out is nearer to the model before it was quantised.
    """
    if fields is None:
        return "float", False
    kind, bits, dynamic = fields.word("type") or "int", fields.count("num_bits", 8), fields.get("dynamic") is True
    strategy = fields.word("strategy") or ("token" if dynamic else "tensor")
    if bits != 8 or not fields.flag("symmetric", True) or (strategy not in ("token", "tensor") if dynamic else strategy != "tensor"):
        return "float", False
    return "fp8" if kind == "float" else "int8", not dynamic
