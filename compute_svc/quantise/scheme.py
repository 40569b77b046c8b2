"""What the weights of a model are to be stored as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from compute_svc.stored_weights.coded_weight import Activations

WeightCode = Literal["int8", "int4", "fp8", "nf4"]

GROUPS = (128, 64, 32)
"""Sizes of groups that may be asked for."""
NF4_GROUP = 64
# Groups of a width that none of those asked for divides.
_SMALLEST_GROUP = 16

OWN_ACTIVATIONS: dict[WeightCode, Activations] = {"int8": "int8", "int4": "float", "fp8": "fp8", "nf4": "float"}
"""What each is multiplied by unless it is said otherwise."""
POSSIBLE_ACTIVATIONS: dict[WeightCode, tuple[Activations, ...]] = {
    "int8": ("int8", "float"),
    "int4": ("float", "int8"),
    "fp8": ("fp8", "float"),
    "nf4": ("float",),
}


class WeightForm(NamedTuple):
    """How one matrix is stored.

    Attributes:
        code: Of its numbers.
        group: Inputs that share a scale; as many as there are, or more = each output has one scale.
        activations: What it is made to be multiplied by.
    """

    code: WeightCode
    group: int
    activations: Activations


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How a model is stored.

    Attributes:
        weights: Code of the matrices in layers.
        group: Inputs of int4 or int8 that share a scale; 0 = each output of int8 has one, and for codes that have no choice.
        activations: What they are made to be multiplied by.
        head: The logits' projection becomes int8, one scale for each output; otherwise it stays.
        nested: The scales of nf4 are quantised in turn.
        kv_format: What keys and values are to be kept as; None = it is not said.

    Raises:
        ValueError: They do not go with each other.
    """

    weights: WeightCode
    group: int = 0
    activations: Activations
    head: bool = False
    nested: bool = False
    kv_format: str | None = None

    def __post_init__(self) -> None:
        if self.activations not in POSSIBLE_ACTIVATIONS[self.weights]:
            allowed = " or ".join(POSSIBLE_ACTIVATIONS[self.weights])
            raise ValueError(f"--activations {self.activations} does not go with --weights {self.weights}: {allowed} does")
        allowed_groups = {"int4": GROUPS, "int8": (0, *GROUPS)}.get(self.weights, (0,))
        if self.group not in allowed_groups:
            raise ValueError(f"--group is for int4 and int8 alone and one of {', '.join(map(str, GROUPS))}")
        if self.nested and self.weights != "nf4":
            raise ValueError("--nested is for nf4 alone")
        if self.head and self.weights == "nf4":
            raise ValueError("--head does not go with --weights nf4: bitsandbytes' layout has one format for all matrices")

    def form_of(self, num_inputs: int) -> WeightForm | None:
        """How a layer's matrix of so many inputs is stored; None = it stays as it is, as nf4's blocks would go over the ends of its rows."""
        if self.weights == "nf4":
            return None if num_inputs % NF4_GROUP else WeightForm("nf4", NF4_GROUP, "float")
        if not self.group:
            return WeightForm(self.weights, num_inputs, self.activations)
        group = self.group
        while num_inputs % group and group > _SMALLEST_GROUP:
            group //= 2
        return WeightForm(self.weights, num_inputs if num_inputs % group else group, self.activations)

    def head_form(self, num_inputs: int) -> WeightForm | None:
        """How the logits' projection is stored; None = it stays as it is."""
        if not self.head:
            return None
        return WeightForm("int8", num_inputs, "int8" if self.activations == "int8" else "float")
