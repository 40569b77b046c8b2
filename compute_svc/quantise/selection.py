"""Which matrices of a model are quantised: those of the products in its layers, and its head if that is wanted."""

from __future__ import annotations

from dataclasses import dataclass

from compute_svc.models.config import ModelConfig, UnsupportedModel
from compute_svc.models.tensor_shapes import Shapes, expected_shapes
from compute_svc.models.weight_names import WeightNames
from compute_svc.quantise.scheme import Scheme, WeightForm

_WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Selection:
    """What becomes of each matrix; modules by name, without ".weight".

    Attributes:
        forms: Of those that are quantised.
        inputs: Their numbers of inputs.
        left: Those that stay: the head, routers, gates of experts.
        head: The head's name if it is to be made of the tied embedding; "" = it is not.
        quantised_head: The head's name if it is quantised; "" = it is not.
    """

    forms: dict[str, WeightForm]
    inputs: dict[str, int]
    left: tuple[str, ...]
    head: str
    quantised_head: str

    def regrouped(self, group: int) -> dict[int, int]:
        """Groups that differ from the one asked for, by the width that it does not divide."""
        layers = {name: form for name, form in self.forms.items() if name != self.quantised_head}
        return {width: form.group for name, form in layers.items() if (width := self.inputs[name]) % group}


def select(config: ModelConfig, names: WeightNames, scheme: Scheme) -> Selection:
    """What a scheme does with a model.

    Args:
        config: The model.
        names: Its family's, fitting the checkpoint.
        scheme: What is wanted.

    Raises:
        UnsupportedModel: The layout has no form for how the family stores its matrices, or the head cannot be quantised.
    """
    if names.transposed:
        raise UnsupportedModel(f"{config.architecture} stores its matrices transposed, which compressed-tensors has no form for")
    if names.expert_stacks:
        raise UnsupportedModel(f"{config.architecture} stores its experts in stacks, which compressed-tensors has no form for")
    shapes = {name.removesuffix(_WEIGHT): shape for name, shape in expected_shapes(config, names).items() if name.endswith(_WEIGHT)}
    matrices: dict[str, tuple[int, ...]] = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    forms = {name: form for name in _in_layers(config, names, matrices) if (form := scheme.form_of(matrices[name][1])) is not None}
    head = ""
    if scheme.head:
        if config.normalised_head:
            raise UnsupportedModel(f"{config.architecture} scales the rows of its head to length one: --head does not go with that")
        if config.tie_word_embeddings:
            head = names.lm_head
            matrices[head] = matrices[names.embedding]
        form = scheme.head_form(matrices[names.lm_head][1])
        assert form is not None, "the scheme has a form for the head"
        forms[names.lm_head] = form
    else:
        matrices.setdefault(names.lm_head, (0, 0))
    embeddings = {names.embedding, names.position_embedding}
    left = tuple(name for name in matrices if name not in forms and name not in embeddings)
    return Selection(forms, {name: matrices[name][1] for name in forms}, left, head, names.lm_head if scheme.head else "")


def _in_layers(config: ModelConfig, names: WeightNames, matrices: Shapes) -> list[str]:
    kept = (names.router, names.shared_gate)
    found = []
    for index in range(config.num_layers):
        prefix = names.layer.format(index)
        found += [name for name in matrices if name.startswith(prefix) and name.removeprefix(prefix) not in kept]
    return found
