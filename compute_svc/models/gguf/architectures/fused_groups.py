"""Falcon and GPT-NeoX and BLOOM: fused queries, keys and values, which conversion takes out of their groups."""

from __future__ import annotations

from compute_svc.models.gguf.architectures.llama import qkv_rows
from compute_svc.models.gguf.metadata import Config, Sizes, key, read_sizes, rope_parameters, token_ids
from compute_svc.models.gguf.recipes import TensorMap, grouped
from triserve.model_files.gguf_file import GgufFile

ARCHITECTURES = ("falcon", "gptneox", "bloom")


def read(file: GgufFile, tensors: TensorMap) -> Config:
    """One of the three. Raises GgufError if something is missing."""
    return {"falcon": _read_falcon, "gptneox": _read_neox, "bloom": _read_bloom}[file.architecture](file, tensors)


def _copy_all(tensors: TensorMap, names: dict[str, str]) -> None:
    for name, source in names.items():
        tensors.copy(name, source)


def _fused(tensors: TensorMap, name: str, layer: int, sizes: Sizes) -> None:
    """Queries, keys and values group by group again."""
    order = grouped(sizes.kv_heads, sizes.heads // sizes.kv_heads, sizes.head_dim)
    for part in (".weight", ".bias"):
        if part == ".weight" or tensors.has(f"blk.{layer}.attn_qkv.bias") or tensors.has(f"blk.{layer}.attn_q.bias"):
            tensors.add(name + part, *qkv_rows(tensors, layer, sizes, part), order=order)


def _common(file: GgufFile, architecture: str, sizes: Sizes) -> Config:
    return {
        "architectures": [architecture],
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **token_ids(file),
    }


def _read_falcon(file: GgufFile, tensors: TensorMap) -> Config:
    sizes = read_sizes(file, kv_heads=1)
    has_two_norms = tensors.has("blk.0.attn_norm_2.weight")
    is_new = has_two_norms or sizes.kv_heads > 1
    _copy_all(tensors, {"transformer.word_embeddings": "token_embd", "transformer.ln_f": "output_norm"})
    if tensors.has("output.weight"):
        tensors.copy("lm_head", "output")
    for layer in range(sizes.layers):
        name, source = f"transformer.h.{layer}.", f"blk.{layer}."
        # The norm before the MLP bears the common name where there are two.
        first = {f"{name}ln_attn": f"{source}attn_norm_2", f"{name}ln_mlp": f"{source}attn_norm"}
        _copy_all(tensors, first if has_two_norms else {f"{name}input_layernorm": f"{source}attn_norm"})
        _fused(tensors, f"{name}self_attention.query_key_value", layer, sizes)
        _copy_all(tensors, _mlp_and_output(name, source, "self_attention.dense"))
    groups = {"new_decoder_architecture": True, "num_kv_heads": sizes.kv_heads, "num_ln_in_parallel_attn": 2 if has_two_norms else 1}
    return {
        **_common(file, "FalconForCausalLM", sizes),
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "ffn_hidden_size": sizes.intermediate,
        "max_position_embeddings": sizes.context,
        "layer_norm_epsilon": file.number(key(file, "attention.layer_norm_epsilon")),
        "rope_parameters": rope_parameters(file, sizes),
        "bias": tensors.has("blk.0.attn_qkv.bias"),
        "alibi": False,
        "parallel_attn": True,
        "multi_query": True,
        **(groups if is_new else {"new_decoder_architecture": False}),
    }


def _mlp_and_output(name: str, source: str, output: str) -> dict[str, str]:
    return {
        name + output: f"{source}attn_output",
        f"{name}mlp.dense_h_to_4h": f"{source}ffn_up",
        f"{name}mlp.dense_4h_to_h": f"{source}ffn_down",
    }


def _read_neox(file: GgufFile, tensors: TensorMap) -> Config:
    sizes = read_sizes(file)
    _copy_all(tensors, {"gpt_neox.embed_in": "token_embd", "gpt_neox.final_layer_norm": "output_norm"})
    if tensors.has("output.weight"):
        tensors.copy("embed_out", "output")
    for layer in range(sizes.layers):
        name, source = f"gpt_neox.layers.{layer}.", f"blk.{layer}."
        _copy_all(tensors, {f"{name}input_layernorm": f"{source}attn_norm", f"{name}post_attention_layernorm": f"{source}ffn_norm"})
        _fused(tensors, f"{name}attention.query_key_value", layer, sizes)
        _copy_all(tensors, _mlp_and_output(name, source, "attention.dense"))
    rope = rope_parameters(file, sizes)
    # Absent, a quarter would turn.
    rope.setdefault("partial_rotary_factor", 1.0)
    return {
        **_common(file, "GPTNeoXForCausalLM", sizes),
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate,
        "max_position_embeddings": sizes.context,
        "layer_norm_eps": file.number(key(file, "attention.layer_norm_epsilon")),
        "use_parallel_residual": file.flag(key(file, "use_parallel_residual"), True),
        "attention_bias": tensors.has("blk.0.attn_qkv.bias"),
        "rope_parameters": rope,
    }


def _read_bloom(file: GgufFile, tensors: TensorMap) -> Config:
    sizes = read_sizes(file)
    embedding = "transformer.word_embeddings"
    _copy_all(tensors, {embedding: "token_embd", f"{embedding}_layernorm": "token_embd_norm", "transformer.ln_f": "output_norm"})
    if tensors.has("output.weight"):
        tensors.copy("lm_head", "output")
    for layer in range(sizes.layers):
        name, source = f"transformer.h.{layer}.", f"blk.{layer}."
        _copy_all(tensors, {f"{name}input_layernorm": f"{source}attn_norm", f"{name}post_attention_layernorm": f"{source}ffn_norm"})
        _fused(tensors, f"{name}self_attention.query_key_value", layer, sizes)
        _copy_all(tensors, _mlp_and_output(name, source, "self_attention.dense"))
    return {
        **_common(file, "BloomForCausalLM", sizes),
        "n_layer": sizes.layers,
        "n_head": sizes.heads,
        "seq_length": sizes.context,
        "layer_norm_epsilon": file.number(key(file, "attention.layer_norm_epsilon")),
    }
