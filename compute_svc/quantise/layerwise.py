"""Methods that look at what a model computes of a calibration text: one layer in memory at a time, on the CPU, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from compute_svc.models.config import UnsupportedModel
from compute_svc.models.loading import ModelBuilder
from compute_svc.models.registry import ConfigReading
from compute_svc.quantise.gptq import gptq
from compute_svc.quantise.layer_inputs import CalibrationPass, InputMoments
from compute_svc.quantise.overlay import OverlaidCheckpoint
from compute_svc.quantise.parts import Part, Source, rounded_parts
from compute_svc.quantise.rounding import round_weight
from compute_svc.quantise.scaled_layer import ScaledLayer, require_places
from compute_svc.quantise.scaling import awq_scales, smooth_scales
from compute_svc.stored_weights.coded_weight import CodedWeight

CalibratedMethod = Literal["gptq", "awq", "smoothquant"]

WINDOW_TOKENS = 512
_CPU = torch.device("cpu")
_WEIGHT = ".weight"


class Calibrated:
    """A method with its calibration text.

    Args:
        method: Which.
        token_ids: [n] int64, at least a window of them; those behind the last whole window are not used.

    Raises:
        ValueError: They are too few.
    """

    def __init__(self, method: CalibratedMethod, token_ids: torch.Tensor) -> None:
        if len(token_ids) < WINDOW_TOKENS:
            raise ValueError(f"the calibration text has {len(token_ids)} tokens, it must have at least {WINDOW_TOKENS}")
        self._method = method
        self._windows = token_ids[: len(token_ids) // WINDOW_TOKENS * WINDOW_TOKENS].view(-1, WINDOW_TOKENS)

    def __call__(self, source: Source, reading: ConfigReading) -> Iterator[Part]:
        """Every tensor of the new checkpoint: those outside layers first, then each layer.

        Raises:
            UnsupportedModel: The method is not there for the family.
            ValueError: A token of the calibration text is none of the model's.
        """
        config, names = reading.config, reading.names
        if config.latent is not None:
            raise UnsupportedModel(f"--method {self._method} is not there for {config.architecture}: its attention is over a latent")
        if self._method != "gptq":
            require_places(config, self._method)
        if int(self._windows.max()) >= config.vocab_size or int(self._windows.min()) < 0:
            raise ValueError(f"the calibration text has token {int(self._windows.max())}, the model has {config.vocab_size}")
        if config.max_position_embeddings < WINDOW_TOKENS:
            raise ValueError(f"the model's limit is {config.max_position_embeddings} tokens, calibration reads {WINDOW_TOKENS} at a time")
        yield from rounded_parts(source, without=names.layer.partition("{}")[0])
        reads = CalibrationPass(self._builder(source, reading, {}).build(num_layers=0), self._windows, names)
        for index in range(config.num_layers):
            prefix = names.layer.format(index)
            layer = self._builder(source, reading, {}).layer(index)
            moments = reads.inputs(layer, prefix)
            part = self._gptq(source, prefix, moments) if self._method == "gptq" else self._scaled(source, reading, prefix, moments)
            if self._method == "gptq":
                # The next layer's inputs are those that it will have.
                layer = self._builder(source, reading, dict(part.coded)).layer(index)
            reads.advance(layer)
            yield part

    def _builder(self, source: Source, reading: ConfigReading, coded: dict[str, CodedWeight]) -> ModelBuilder:
        checkpoint = OverlaidCheckpoint(source.checkpoint, coded, {})
        return ModelBuilder(
            reading.config, reading.names, checkpoint, dtype=torch.float32, device=_CPU, activations="float", on_progress=None
        )

    def _gptq(self, source: Source, prefix: str, moments: dict[str, InputMoments]) -> Part:
        forms = source.selection.forms
        coded: dict[str, CodedWeight] = {}
        plain: dict[str, torch.Tensor] = {}
        num_bytes = 0
        for name in source.names_of(prefix):
            module = name.removesuffix(_WEIGHT)
            if name.endswith(_WEIGHT) and module in forms and module in moments:
                coded[module] = gptq(source.weight(module), forms[module], moments[module], source.dtype_of(name))
                part = Part({}, {}, source.checkpoint.tensors[name].num_bytes)
            else:
                # An expert that no token of the text came to is rounded to nearest.
                part = source.rounded(module) if module in forms and name.endswith(_WEIGHT) else source.plain(name)
            coded |= part.coded
            plain |= part.plain
            num_bytes += part.source_bytes
        return Part(coded, plain, num_bytes)

    def _scaled(self, source: Source, reading: ConfigReading, prefix: str, moments: dict[str, InputMoments]) -> Part:
        forms = source.selection.forms
        names = source.names_of(prefix)
        tensors = {name: source.checkpoint.read(name, torch.float32, _CPU) for name in names}
        scaled = ScaledLayer(reading.config, reading.names, prefix, tensors)
        choose = awq_scales if self._method == "awq" else smooth_scales
        scaled.scale(lambda readers, weights: choose(weights, [forms[module] for module in readers], moments[readers[0]]))
        coded, plain = {}, {}
        for name, tensor in scaled.tensors.items():
            module = name.removesuffix(_WEIGHT)
            if name.endswith(_WEIGHT) and module in forms:
                coded[module] = round_weight(tensor, forms[module], source.dtype_of(name))
            else:
                plain[name] = tensor.to(source.dtype_of(name))
        return Part(coded, plain, sum(source.checkpoint.tensors[name].num_bytes for name in names))
