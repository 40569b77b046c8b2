"""Phi 3: fused projections, two sets of divisors where its context was stretched."""

from __future__ import annotations

import math

from compute_svc.models.gguf.architectures.llama import embedding_and_head, norms, qkv_rows
from compute_svc.models.gguf.metadata import Config, Sizes, key, llama_form, read_sizes, rope_parameters, vector
from compute_svc.models.gguf.recipes import TensorMap
from triserve.model_files.gguf_file import GgufFile

ARCHITECTURES = ("phi3",)


def read(file: GgufFile, tensors: TensorMap) -> Config:
    """A Phi 3. Raises GgufError if something is missing."""
    sizes = read_sizes(file)
    embedding_and_head(tensors)
    for layer in range(sizes.layers):
        name, source = f"model.layers.{layer}.", f"blk.{layer}."
        norms(tensors, layer)
        tensors.add(f"{name}self_attn.qkv_proj.weight", *qkv_rows(tensors, layer, sizes, ".weight"))
        tensors.copy(f"{name}self_attn.o_proj", f"{source}attn_output")
        tensors.copy(f"{name}mlp.gate_up_proj", f"{source}ffn_up")
        tensors.copy(f"{name}mlp.down_proj", f"{source}ffn_down")
    window = file.count(key(file, "attention.sliding_window"), 0, at_least=0)
    fields: Config = {"sliding_window": window or None, "head_dim": None}
    if "rope_factors_long.weight" in file.tensors:
        fields |= _longrope(file, sizes)
    return llama_form(file, "Phi3ForCausalLM", sizes, **fields)


def _longrope(file: GgufFile, sizes: Sizes) -> Config:
    original = file.count(key(file, "rope.scaling.original_context_length"), sizes.context)
    stretch = sizes.context / original
    derived = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    height = file.number(key(file, "rope.scaling.attn_factor"), derived)
    parameters: Config = {
        **rope_parameters(file, sizes),
        "rope_type": "longrope",
        "original_max_position_embeddings": original,
        **{f"{length}_factor": [float(value) for value in vector(file, f"rope_factors_{length}.weight")] for length in ("short", "long")},
    }
    # Left out where it says no more than a float32 of what follows from the lengths.
    if not math.isclose(height, derived, rel_tol=1e-6):
        parameters["attention_factor"] = height
    return {"rope_parameters": parameters, "original_max_position_embeddings": original}
