"""A layer with scales moved from the inputs of its matrices into what comes before: the same products of other numbers, which round better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from compute_svc.models.config import ModelConfig, NormPlacement, UnsupportedModel
from compute_svc.models.weight_names import WeightNames

Choose = Callable[[Sequence[str], Sequence[torch.Tensor]], torch.Tensor | None]
"""From the modules that read the same inputs, and their matrices [N, K]: the scales [K] to multiply these by, and divide the inputs by; None = leave them."""


def require_places(config: ModelConfig, method: str) -> None:
    """Raises UnsupportedModel if a family has no place where scales could go, naming method and reason."""
    reasons = {
        "its layers have no norm before attention and MLP": config.norm_placement not in (NormPlacement.PRE, NormPlacement.SANDWICH),
        "it has experts": config.experts is not None,
        "its attention is over a latent": config.latent is not None,
    }
    reason = next((words for words, holds in reasons.items() if holds), None)
    if reason is not None:
        raise UnsupportedModel(f"--method {method} is not there for {config.architecture}: {reason}")


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

    def scale(self, choose: Choose) -> None:
        """Moves the chosen scales of each matrix's inputs into the projection or the norm before it."""
        names, config = self._names, self._config
        into = [self._prefix + name for name in names.mlp_in]
        qkv = [self._prefix + name for name in names.qkv]
        if config.gated:
            # What the gate multiplies: linear in it.
            self._move([self._prefix + names.mlp_down], choose, partial(self._divide_outputs, into[-1]))
        norms = (names.attention_norm, names.mlp_norm)
        groups = [(norms[0], qkv + into)] if config.shared_norm else [(norms[0], qkv), (norms[1], into)]
        for norm, readers in groups:
            self._move(readers, choose, partial(self._divide_norm, self._prefix + norm))

    def _move(self, readers: Sequence[str], choose: Choose, divide: Callable[[torch.Tensor], None]) -> None:
        weights = [self.tensors[f"{module}.weight"] for module in readers]
        scales = choose(readers, weights)
        if scales is None:
            return
        for weight in weights:
            weight *= scales
        divide(scales)

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
