"""GPT-2 and StarCoder (GPT-BigCode): learnt positions, layer norms with biases, one tensor for queries, keys and values."""

from __future__ import annotations

from compute_svc.models.gguf.architectures.llama import qkv_rows
from compute_svc.models.gguf.metadata import Config, key, read_sizes, token_ids
from compute_svc.models.gguf.recipes import TensorMap
from triserve.model_files.gguf_file import GgufFile

ARCHITECTURES = ("gpt2", "starcoder")

_PARTS = {"ln_1": "attn_norm", "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}


def read(file: GgufFile, tensors: TensorMap) -> Config:
    """A GPT-2 or a StarCoder. Raises GgufError if something is missing."""
    is_gpt2 = file.architecture == "gpt2"
    sizes = read_sizes(file, kv_heads=None if is_gpt2 else 1)
    for name, source in {"transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm"}.items():
        tensors.copy(name, source)
    if tensors.has("output.weight"):
        tensors.copy("lm_head", "output")
    for layer in range(sizes.layers):
        name, source = f"transformer.h.{layer}.", f"blk.{layer}."
        for theirs, ours in _PARTS.items():
            tensors.copy(name + theirs, source + ours, transposed=is_gpt2 and "norm" not in ours)
        # StarCoder's conversion leaves heads with keys of their own as that checkpoint has them, one by one.
        for part in (".weight", ".bias"):
            parts = qkv_rows(tensors, layer, sizes, part)
            tensors.add(f"{name}attn.c_attn{part}", *parts, transposed=is_gpt2 and part == ".weight")
    return {
        "architectures": ["GPT2LMHeadModel" if is_gpt2 else "GPTBigCodeForCausalLM"],
        "vocab_size": sizes.vocab,
        "n_embd": sizes.hidden,
        "n_layer": sizes.layers,
        "n_head": sizes.heads,
        "n_inner": sizes.intermediate,
        "n_positions": sizes.context,
        "layer_norm_epsilon": file.number(key(file, "attention.layer_norm_epsilon")),
        "tie_word_embeddings": not tensors.has("output.weight"),
        **({} if is_gpt2 else {"multi_query": sizes.kv_heads == 1}),
        **token_ids(file),
    }
