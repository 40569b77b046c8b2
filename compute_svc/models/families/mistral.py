"""Mistral: the plain decoder, with a sliding window in every layer if the config has one."""

from __future__ import annotations

from compute_svc.models.config import ConfigFields, ModelConfig, decoder_config

ARCHITECTURE = "MistralForCausalLM"

# What the family takes if a config does not mention it; null is no window.
_DEFAULT_WINDOW = 4096


def read_config(fields: ConfigFields) -> ModelConfig:
    """A Mistral config. Raises as `decoder_config` does."""
    window = fields.optional_count("sliding_window") if "sliding_window" in fields else _DEFAULT_WINDOW
    return decoder_config(fields, architecture=ARCHITECTURE, sliding_window=window)
