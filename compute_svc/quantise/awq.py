"""AWQ (arXiv 2306.00978): inputs that are large on average get finer weights, by a scale that moves into what comes before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from compute_svc.models.config import ModelConfig, NormPlacement, UnsupportedModel
from compute_svc.models.weight_names import WeightNames
from compute_svc.quantise.layer_inputs import InputMoments, mean_absolute
from compute_svc.quantise.rounding import round_weight
from compute_svc.quantise.scheme import WeightForm

# Powers of the mean input; 0 leaves the weights as they are.
_POWERS = tuple(step / 10 for step in range(10))


def require_awq(config: ModelConfig) -> None:
    """Raises UnsupportedModel if a family has no place where scales could go, naming what it has instead."""
    reasons = {
        "its layers have no norm before attention and MLP": config.norm_placement not in (NormPlacement.PRE, NormPlacement.SANDWICH),
        "it has experts": config.experts is not None,
        "its attention is over a latent": config.latent is not None,
    }
    reason = next((words for words, holds in reasons.items() if holds), None)
    if reason is not None:
        raise UnsupportedModel(f"--method awq is not there for {config.architecture}: {reason}")


class ScaledLayer:
    """A layer's tensors while scales move between them.

    Args:
        config: The model.
        names: Its family's.
        prefix: The layer's.
        tensors: Float32, all of the layer; changed in place.
    """

    def __init__(self, config: ModelConfig, names: WeightNames, prefix: str, tensors: dict[str, torch.Tensor]) -> None:
        self._config = config
        self._names = names
        self._prefix = prefix
        self.tensors = tensors

    def scale(self, forms: dict[str, WeightForm], moments: dict[str, InputMoments]) -> None:
        """Moves the best scales of each matrix's inputs into the projection or the norm before it."""
        names, config = self._names, self._config
        into = [self._prefix + name for name in names.mlp_in]
        qkv = [self._prefix + name for name in names.qkv]
        if config.gated:
            # What the gate multiplies: linear in it.
            down = self._prefix + names.mlp_down
            self._move([down], forms, moments, partial(self._divide_outputs, into[-1]))
        norms = (names.attention_norm, names.mlp_norm)
        groups = [(norms[0], qkv + into)] if config.shared_norm else [(norms[0], qkv), (norms[1], into)]
        for norm, readers in groups:
            self._move(readers, forms, moments, partial(self._divide_norm, self._prefix + norm))

    def _move(
        self, readers: Sequence[str], forms: dict[str, WeightForm], moments: dict[str, InputMoments], divide: Callable[[torch.Tensor], None]
    ) -> None:
        scales = self._best_scales(readers, forms, moments)
        if scales is None:
            return
        for module in readers:
            self.tensors[f"{module}.weight"] *= scales
        divide(scales)

    def _best_scales(self, readers: Sequence[str], forms: dict[str, WeightForm], moments: dict[str, InputMoments]) -> torch.Tensor | None:
        """[K], of the power with the least squared error of the outputs; None = it is best to leave them."""
        inputs = mean_absolute(moments, readers[0]).clamp(min=1e-4)
        gram = moments[readers[0]].gram.float()
        best, least = None, torch.inf
        for power in _POWERS:
            scales = inputs.pow(power)
            scales = scales / (scales.max() * scales.min()).sqrt()
            error = 0.0
            for module in readers:
                weight = self.tensors[f"{module}.weight"]
                difference = round_weight(weight * scales, forms[module], torch.float32).dense(torch.float32) / scales - weight
                error += float(((difference @ gram) * difference).sum(dtype=torch.float64))
            if error < least:
                best, least = (None if power == 0 else scales), error
        return best

    def _divide_outputs(self, module: str, scales: torch.Tensor) -> None:
        for name in (f"{module}.weight", f"{module}.bias"):
            if name in self.tensors:
                # Where one matrix holds gate and up, the second half is up.
                rows = self.tensors[name][-len(scales) :]
                rows /= scales[:, None] if rows.ndim == 2 else scales

    def _divide_norm(self, norm: str, scales: torch.Tensor) -> None:
        offset = self._config.norm_offset
        weight = self.tensors[f"{norm}.weight"]
        weight.copy_((weight + offset) / scales - offset)
        if f"{norm}.bias" in self.tensors:
            self.tensors[f"{norm}.bias"] /= scales
