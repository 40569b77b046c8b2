"""Which layers each stage of a pipeline has: a run of them, about as many as every other. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from compute_svc.models.config import ModelConfig
from compute_svc.models.weight_names import WeightNames


def layers_of(stage: int, count: int, num_layers: int) -> range:
    """A stage's among all layers. Where the count does not divide them the first stage has the fewer: embedding and head are its, too."""
    return range(stage * num_layers // count, (stage + 1) * num_layers // count)


def stage_config(whole: ModelConfig, layers: range) -> ModelConfig:
    """What a model of some layers is. Kinds of layers stay all there are, so that the longest window is that of the whole model."""
    experts = whole.experts
    if experts is not None:
        experts = replace(experts, layers=frozenset(index - layers.start for index in experts.layers if index in layers))
    kinds = whole.kind_of_layer[layers.start : layers.stop]
    return replace(whole, first_layer=layers.start, num_layers=len(layers), kind_of_layer=kinds, experts=experts)


def tensors_of(layers: range, tensors: Iterable[str], names: WeightNames, num_layers: int) -> list[str]:
    """What a stage reads: tensors of its layers and, on the first stage, those of no layer.

    Args:
        layers: Of the stage.
        tensors: Names of all.
        names: What the checkpoint calls them.
        num_layers: Of all stages.
    """
    own = tuple(map(names.layer.format, layers))
    any_layer = tuple(map(names.layer.format, range(num_layers)))
    return [name for name in tensors if name.startswith(own) or (layers.start == 0 and not name.startswith(any_layer))]


def require_stages(config: ModelConfig, count: int) -> None:
    """Refuses more stages than layers.

    Raises:
        ValueError: naming the variable.
    """
    if count > config.num_layers:
        raise ValueError(
            f"COMPUTE_PIPELINE_PARALLEL is {count}, the limit is the number of layers of {config.architecture}, {config.num_layers}"
        )
