"""Architectures that people ask for and no family reads, and what each would need."""

from __future__ import annotations

_STATE_SPACE = "state space layers, whose recurrent state is no page of keys and values"
_DELTA_RULE = "gated delta rule layers, whose recurrent state is no page of keys and values"
_PARTS = {
    "BambaForCausalLM": _STATE_SPACE,
    "DbrxForCausalLM": "experts stored as one matrix each for all of them",
    "DeepseekV32ForCausalLM": "sparse attention, in which an indexer chooses the keys of each query",
    "Exaone4ForCausalLM": "norms of heads beside norms behind layers, and layers without positions among them",
    "FalconH1ForCausalLM": _STATE_SPACE,
    "FalconMambaForCausalLM": _STATE_SPACE,
    "Gemma3nForCausalLM": "embeddings of each layer, alternating updates (AltUp), learnt residuals (LAuReL) and KV shared between layers",
    "GraniteMoeForCausalLM": "experts stored as one tensor for all of them, with gates and ups one behind the other",
    "GraniteMoeHybridForCausalLM": _STATE_SPACE,
    "JambaForCausalLM": _STATE_SPACE,
    "Lfm2ForCausalLM": "short convolutions over tokens, whose state is no page of keys and values",
    "Llama4ForCausalLM": "attention in chunks, scores scaled by position, and experts weighted before they compute",
    "Mamba2ForCausalLM": _STATE_SPACE,
    "MambaForCausalLM": _STATE_SPACE,
    "MiniCPM3ForCausalLM": "latent attention together with scaled embeddings, residuals and logits",
    "NemotronForCausalLM": "the activation relu squared",
    "NemotronHForCausalLM": _STATE_SPACE,
    "OlmoForCausalLM": "layer norms without weights",
    "PhiMoEForCausalLM": "sparse mixer routing, which chooses experts one after the other, each with weights of its own",
    "PhimoeForCausalLM": "sparse mixer routing, which chooses experts one after the other, each with weights of its own",
    "Qwen3NextForCausalLM": _DELTA_RULE,
    "Qwen3_5ForCausalLM": _DELTA_RULE,
    "RecurrentGemmaForCausalLM": "recurrent layers, whose state is no page of keys and values",
    "RwkvForCausalLM": "recurrent layers, whose state is no page of keys and values",
}
_SUFFIXES = {
    "ForConditionalGeneration": "an encoder, of text, images or sound, beside the decoder",
    "ForMaskedLM": "attention in both directions: it does not continue a text",
    "ForSequenceClassification": "a head that classifies: it does not continue a text",
}


def what_is_missing(architecture: str) -> str | None:
    """What an architecture needs that this engine does not have; None if nobody has written it down."""
    if architecture in _PARTS:
        return _PARTS[architecture]
    return next((missing for suffix, missing in _SUFFIXES.items() if architecture.endswith(suffix)), None)
