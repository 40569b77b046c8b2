"""Qwen3: normalised query and key heads, 128 wide unless the config says otherwise; biases and window as the config asks."""

from __future__ import annotations

from compute_svc.models.config import ConfigFields, ModelConfig, decoder_config, uniform_window

ARCHITECTURE = "Qwen3ForCausalLM"


def read_config(fields: ConfigFields) -> ModelConfig:
    """A Qwen3 config. Raises as `decoder_config` and `uniform_window` do."""
    bias = fields.flag("attention_bias", False)
    window = fields.count("sliding_window") if fields.flag("use_sliding_window", False) else None
    return decoder_config(
        fields,
        architecture=ARCHITECTURE,
        head_dim=128,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        sliding_window=uniform_window(fields, window),
    )
