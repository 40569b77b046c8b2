"""Llamas of well-known sizes with random weights, made where they are used: no file is written and no second copy is ever in memory."""

from __future__ import annotations

import zlib
from typing import Any

import torch

from compute_svc.kernels.exact_products import use_exact_products
from compute_svc.kernels.linear import ActivationFormat
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.config_fields import ConfigFields
from compute_svc.models.loading import ModelBuilder
from compute_svc.models.registry import FAMILIES
from compute_svc.models.tensor_shapes import expected_shapes
from compute_svc.models.weights import Checkpoint, Take, TensorInfo
from compute_svc.quantise.rounding import coded, encode, round_weight
from compute_svc.quantise.scheme import WeightForm
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.dense_weight import DenseWeight
from compute_svc.stored_weights.stored_weight import StoredWeight

_ARCHITECTURE = "LlamaForCausalLM"
_ONE_SCALE = 1 << 30

FORMS = {
    "int8": WeightForm("int8", _ONE_SCALE, "int8"),
    "int4": WeightForm("int4", 128, "float"),
    "fp8": WeightForm("fp8", _ONE_SCALE, "fp8"),
}
"""What the matrices of layers may be stored as instead of numbers: W8A8, int4 in groups of 128, and fp8; the head stays as it is."""

_COMMON = {
    "architectures": [_ARCHITECTURE],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        **_COMMON,
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
    },
    "75m": {
        **_COMMON,
        "vocab_size": 32000,
        "hidden_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 2048,
        "tie_word_embeddings": True,
    },
    # Those of Llama 3.2 1B and Llama 3.1 8B.
    "1b": {
        **_COMMON,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "tie_word_embeddings": True,
    },
    "8b": {
        **_COMMON,
        "vocab_size": 128256,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
    },
}
"""As fields of a config.json."""


class RandomWeights(Checkpoint):
    """A checkpoint whose tensors are drawn when they are read: the same ones every time, from the tensor's name and where it is drawn.

    Args:
        shape: Of SHAPES.
        drawn_on: The device whose generator draws; another one draws other numbers.
        form: What the matrices of layers are stored as, rounded where they are drawn; None = numbers.

    Attributes:
        fields: Those of the config.json that such a checkpoint would have.
        config: The same, as the engine reads them.
        names: What the tensors are called.
    """

    def __init__(self, shape: str, drawn_on: torch.device, form: WeightForm | None = None) -> None:
        super().__init__({})
        self.fields = SHAPES[shape]
        self.config, self.names = FAMILIES[_ARCHITECTURE](ConfigFields(self.fields, shape), _ARCHITECTURE)
        self.tensors = {name: TensorInfo(size, "F32") for name, size in expected_shapes(self.config, self.names).items()}
        self._drawn_on = drawn_on
        self._form = form

    def weight(self, name: str, dtype: torch.dtype, device: torch.device) -> StoredWeight:
        """A matrix as it is stored."""
        is_of_layer = name not in (f"{self.names.embedding}.weight", f"{self.names.lm_head}.weight")
        if self._form is None or not is_of_layer:
            return DenseWeight(self.read(name, dtype, device))
        # Drawn as float32, so that codes do not depend on what is computed in.
        return _rounded(self.read(name, torch.float32, device), self._form)

    def read(self, name: str, dtype: torch.dtype, device: torch.device, *, take: Take | None = None) -> torch.Tensor:
        """A tensor. Matrices keep the size of what they multiply, norms are about one."""
        assert take is None, "what is drawn is drawn whole"
        size = self.tensors[name].shape
        generator = torch.Generator(self._drawn_on).manual_seed(zlib.crc32(name.encode()))
        drawn = torch.empty(size, dtype=dtype, device=self._drawn_on)
        if len(size) == 1:
            drawn.normal_(1.0, 0.1, generator=generator)
        elif name == f"{self.names.embedding}.weight":
            drawn.normal_(0.0, 1.0 if not self.config.tie_word_embeddings else size[-1] ** -0.5, generator=generator)
        else:
            drawn.normal_(0.0, size[-1] ** -0.5, generator=generator)
        return drawn.to(device)


def _rounded(numbers: torch.Tensor, form: WeightForm) -> CodedWeight:
    """As `round_weight`, but that int4 takes the scale that clips nothing: a search over billions of numbers takes minutes."""
    if form.code != "int4":
        return round_weight(numbers, form, torch.float32)
    grouped = numbers.view(len(numbers), -1, min(form.group, numbers.shape[1]))
    scales = grouped.abs().amax(dim=2) / 7
    return coded(encode(grouped, scales, form).flatten(1), scales, form, numbers.shape[1])


def build_random(weights: RandomWeights, dtype: torch.dtype, device: torch.device, activations: ActivationFormat = "auto") -> CausalLM:
    """The engine's model of some random weights, as `load_model` would build it; for activations see there."""
    if device.type == "cuda":
        use_exact_products()
    with torch.inference_mode():
        return ModelBuilder(
            weights.config, weights.names, weights, dtype=dtype, device=device, activations=activations, on_progress=None
        ).build()
