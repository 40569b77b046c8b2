"""Qwen2 and 2.5: biases on query, key and value; a sliding window only if the config switches it on."""

from __future__ import annotations

from compute_svc.models.config import ConfigFields, ModelConfig, decoder_config, uniform_window

ARCHITECTURE = "Qwen2ForCausalLM"


def read_config(fields: ConfigFields) -> ModelConfig:
    """A Qwen2 config. Raises as `decoder_config` and `uniform_window` do."""
    window = fields.count("sliding_window") if fields.flag("use_sliding_window", False) else None
    return decoder_config(fields, architecture=ARCHITECTURE, qkv_bias=True, sliding_window=uniform_window(fields, window))
