"""Llama 1 to 3: the plain decoder; biases only where the config asks for them."""

from __future__ import annotations

from compute_svc.models.config import ConfigFields, ModelConfig, decoder_config

ARCHITECTURE = "LlamaForCausalLM"


def read_config(fields: ConfigFields) -> ModelConfig:
    """A Llama config. Raises as `decoder_config` does."""
    bias = fields.flag("attention_bias", False)
    return decoder_config(fields, architecture=ARCHITECTURE, qkv_bias=bias, output_bias=bias, mlp_bias=fields.flag("mlp_bias", False))
