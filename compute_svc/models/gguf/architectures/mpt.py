"""MPT: scores fall with distance, no biases."""

from __future__ import annotations

from compute_svc.models.gguf.architectures.llama import qkv_rows
from compute_svc.models.gguf.metadata import Config, key, read_sizes, token_ids
from compute_svc.models.gguf.recipes import TensorMap
from triserve.model_files.gguf_file import GgufFile

ARCHITECTURES = ("mpt",)

_PARTS = {"norm_1": "attn_norm", "attn.out_proj": "attn_output", "norm_2": "ffn_norm", "ffn.up_proj": "ffn_up", "ffn.down_proj": "ffn_down"}


def read(file: GgufFile, tensors: TensorMap) -> Config:
    """An MPT. Raises GgufError if something is missing."""
    sizes = read_sizes(file)
    tensors.copy("transformer.wte", "token_embd")
    tensors.copy("transformer.norm_f", "output_norm")
    if tensors.has("output.weight"):
        tensors.copy("lm_head", "output")
    for layer in range(sizes.layers):
        for theirs, ours in _PARTS.items():
            tensors.copy(f"transformer.blocks.{layer}.{theirs}", f"blk.{layer}.{ours}")
        tensors.add(f"transformer.blocks.{layer}.attn.Wqkv.weight", *qkv_rows(tensors, layer, sizes, ".weight"))
    clip = file.get(key(file, "attention.clamp_kqv"))
    # Without a bias the engine refuses it by name: positions are learnt then.
    slopes = file.get(key(file, "attention.max_alibi_bias"))
    attention: Config = {
        "alibi": bool(slopes),
        "alibi_bias_max": file.number(key(file, "attention.max_alibi_bias")) if slopes else 8,
        "clip_qkv": file.number(key(file, "attention.clamp_kqv")) if clip else None,
    }
    if sizes.kv_heads != sizes.heads:
        attention |= {"attn_type": "grouped_query_attention", "kv_n_heads": sizes.kv_heads}
    return {
        "architectures": ["MPTForCausalLM"],
        "vocab_size": sizes.vocab,
        "d_model": sizes.hidden,
        "n_layers": sizes.layers,
        "n_heads": sizes.heads,
        "expansion_ratio": sizes.intermediate / sizes.hidden,
        "max_seq_len": sizes.context,
        "layer_norm_epsilon": file.number(key(file, "attention.layer_norm_epsilon")),
        "tie_word_embeddings": not tensors.has("output.weight"),
        "no_bias": True,
        "attn_config": attention,
        **token_ids(file),
    }
