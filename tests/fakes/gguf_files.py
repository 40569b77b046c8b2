"""Writes checkpoints of the families as GGUF files, the way llama.cpp's conversion lays them out; knows nothing of how they are read.

Everything conversion does to a matrix is done to whole rows, so that rows of packed blocks go the same way as rows of numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

Array = npt.NDArray[Any]
Pack = Callable[[Array, str], tuple[Array, gguf.GGMLQuantizationType]]


class Entry(NamedTuple):
    """A tensor on its way: [rows, columns or bytes], or a vector; and its format."""

    rows: Array
    format: gguf.GGMLQuantizationType


class Sizes(NamedTuple):
    """What metadata say of every model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int


# Names in a layer of the families with Llama's names.
_LLAMA = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
_GEMMA23 = {
    **_LLAMA,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_GLM4 = {**_LLAMA, "post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm"}
_GPT2 = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_MPT = {
    "norm_1": "attn_norm",
    "attn.Wqkv": "attn_qkv",
    "attn.out_proj": "attn_output",
    "norm_2": "ffn_norm",
    "ffn.up_proj": "ffn_up",
    "ffn.down_proj": "ffn_down",
}
_FUSED = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "ln_mlp": "attn_norm",
    "ln_attn": "attn_norm_2",
    **{f"{name}.query_key_value": "attn_qkv" for name in ("attention", "self_attention")},
    **{f"{name}.dense": "attn_output" for name in ("attention", "self_attention")},
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
_INTERN = {
    "attention_norm": "attn_norm",
    "attention.wqkv": "attn_qkv",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
}
_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.tok_embeddings": "token_embd",
    "transformer.wte": "token_embd",
    "transformer.word_embeddings": "token_embd",
    "transformer.embedding.word_embeddings": "token_embd",
    "gpt_neox.embed_in": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.word_embeddings_layernorm": "token_embd_norm",
    "model.norm": "output_norm",
    "transformer.ln_f": "output_norm",
    "transformer.norm_f": "output_norm",
    "transformer.encoder.final_layernorm": "output_norm",
    "gpt_neox.final_layer_norm": "output_norm",
    "lm_head": "output",
    "output": "output",
    "embed_out": "output",
    "transformer.output_layer": "output",
}
_ARCHITECTURES: dict[str, tuple[str, dict[str, str]]] = {
    "LlamaForCausalLM": ("llama", _LLAMA),
    "YiForCausalLM": ("llama", _LLAMA),
    "MistralForCausalLM": ("llama", _LLAMA),
    "MixtralForCausalLM": ("llama", _LLAMA),
    "Qwen2ForCausalLM": ("qwen2", _LLAMA),
    "Qwen2MoeForCausalLM": ("qwen2moe", _LLAMA),
    "Qwen3ForCausalLM": ("qwen3", _LLAMA),
    "Qwen3MoeForCausalLM": ("qwen3moe", _LLAMA),
    "GemmaForCausalLM": ("gemma", _LLAMA),
    "Gemma2ForCausalLM": ("gemma2", _GEMMA23),
    "Gemma3ForCausalLM": ("gemma3", _GEMMA23),
    "GlmForCausalLM": ("chatglm", _LLAMA),
    "Glm4ForCausalLM": ("glm4", _GLM4),
    "Phi3ForCausalLM": ("phi3", _LLAMA),
    "GPT2LMHeadModel": ("gpt2", _GPT2),
    "GPTBigCodeForCausalLM": ("starcoder", _GPT2),
    "MptForCausalLM": ("mpt", _MPT),
    "MPTForCausalLM": ("mpt", _MPT),
    "FalconForCausalLM": ("falcon", _FUSED),
    "BloomForCausalLM": ("bloom", _FUSED),
    "GPTNeoXForCausalLM": ("gptneox", _FUSED),
    "InternLM2ForCausalLM": ("internlm2", _INTERN),
    "BaiChuanForCausalLM": ("baichuan", {**_LLAMA, "self_attn.W_pack": "attn_qkv"}),
    "BaichuanForCausalLM": ("baichuan", {**_LLAMA, "self_attn.W_pack": "attn_qkv"}),
    **dict.fromkeys(("ChatGLMModel", "ChatGLMForConditionalGeneration"), ("chatglm", {**_FUSED, "post_attention_layernorm": "ffn_norm"})),
}
_LAYER = re.compile(r"(?:model|transformer|gpt_neox)(?:\.encoder)?\.(?:layers|h|blocks)\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)")
_EXPERT_PARTS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}
_PERMUTED = ("llama", "internlm2", "baichuan")
_LAYERS_APART = ("internlm2", "baichuan")


def write_gguf(
    folder: Path,
    target: Path,
    *,
    pack: Pack | None = None,
    metadata: Mapping[str, Any] | None = None,
    extra: Mapping[str, Array] | None = None,
) -> str:
    """Writes a checkpoint folder as a GGUF file.

    Args:
        folder: With config.json and one model.safetensors; with `pack` its matrices become what the packed ones mean.
        target: The file.
        pack: Packs the rows of a matrix, given its GGUF name; None = float32 everywhere.
        metadata: Further entries.
        extra: Further tensors.

    Returns:
        What the file calls its architecture.
    """
    config = json.loads((folder / "config.json").read_text())
    architecture, names = _ARCHITECTURES[config["architectures"][0]]
    sizes = _sizes(config)
    tensors = {
        name: array for name, array in load_file(folder / "model.safetensors").items() if not name.endswith(("inv_freq", "masked_bias"))
    }
    transposed = architecture == "gpt2"
    entries = {}
    for name, array in tensors.items():
        short = _LAYER.fullmatch(name)
        is_turned = transposed and short is not None and array.ndim == 2
        rows = array.T if is_turned else array
        entries[name] = Entry(np.ascontiguousarray(rows), gguf.GGMLQuantizationType.F32)
        if pack is not None and array.ndim == 2:
            packed, block_format = pack(entries[name].rows, name)
            entries[name] = Entry(packed, block_format)
            meant = gguf.dequantize(packed, block_format).reshape(rows.shape).astype(np.float32)
            tensors[name] = np.ascontiguousarray(meant.T if is_turned else meant)
    if pack is not None:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    writer = gguf.GGUFWriter(target, architecture)
    _write_metadata(writer, architecture, config, sizes, metadata or {})
    for name, (array, block_format) in _converted(entries, architecture, names, config, sizes).items():
        writer.add_tensor(name, array, raw_dtype=block_format)
    for name, rows in (extra or {}).items():
        writer.add_tensor(name, rows)
    finish(writer)
    return architecture


def finish(writer: gguf.GGUFWriter) -> None:
    """Writes the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _sizes(config: Mapping[str, Any]) -> Sizes:
    def first(*names: str, default: Any = None) -> Any:
        return next((config[name] for name in names if config.get(name) is not None), default)

    hidden, heads = first("hidden_size", "n_embd", "d_model", "n_embed"), first("num_attention_heads", "n_head", "n_heads")
    kv_heads = first("num_key_value_heads", "num_kv_heads", "multi_query_group_num", default=heads)
    if "FalconForCausalLM" in config["architectures"] and not config["new_decoder_architecture"]:
        kv_heads = 1 if config["multi_query"] else heads
    if config.get("multi_query") and "GPTBigCodeForCausalLM" in config["architectures"]:
        kv_heads = 1
    if config.get("multi_query_attention") is False:
        kv_heads = heads
    return Sizes(
        hidden=hidden,
        layers=first("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=first("head_dim", "kv_channels", default=hidden // heads),
        ffn=first("intermediate_size", "ffn_hidden_size", "n_inner", default=int(config.get("expansion_ratio", 4) * hidden)),
        context=first("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", default=2048),
    )


def _permute(rows: Array, heads: int) -> Array:
    """Halves of a head become neighbours."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _ungroup(rows: Array, sizes: Sizes) -> tuple[Array, Array, Array]:
    """Queries, keys and values out of groups of queries, one key and one value."""
    per_group = sizes.heads // sizes.kv_heads
    groups = rows.reshape(sizes.kv_heads, per_group + 2, sizes.head_dim, *rows.shape[1:])
    queries, keys, values = groups[:, :-2], groups[:, -2], groups[:, -1]
    return tuple(part.reshape(-1, *rows.shape[1:]) for part in (queries, keys, values))  # type: ignore[return-value]


def _converted(
    entries: Mapping[str, Entry], architecture: str, names: Mapping[str, str], config: Mapping[str, Any], sizes: Sizes
) -> dict[str, Entry]:
    out: dict[str, Entry] = {}
    experts: dict[str, dict[int, Entry]] = {}
    for name, entry in entries.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            stem, kind = name.rsplit(".", 1)
            stem = stem if stem in _OUTSIDE else f"transformer.{stem}"
            out[f"{_OUTSIDE[stem]}.{kind}"] = _adjusted(entry, architecture, stem)
            continue
        layer, stem, kind = match[1], match[2], match[3]
        expert = _EXPERT.fullmatch(stem)
        if expert is not None:
            experts.setdefault(f"blk.{layer}.ffn_{_EXPERT_PARTS[expert[2]]}_exps.weight", {})[int(expert[1])] = entry
            continue
        ours = names[stem]
        target = f"blk.{layer}.{ours}.{kind}"
        if ours == "attn_qkv":
            out |= _attention(entry, architecture, layer, kind, config, sizes)
        elif architecture in _PERMUTED and ours in ("attn_q", "attn_k"):
            out[target] = Entry(_permute(entry.rows, sizes.heads if ours == "attn_q" else sizes.kv_heads), entry.format)
        else:
            out[target] = _adjusted(entry, architecture, stem)
    for target, found in experts.items():
        out[target] = Entry(np.stack([found[number].rows for number in sorted(found)]), found[0].format)
    return out


def _adjusted(entry: Entry, architecture: str, stem: str) -> Entry:
    if architecture.startswith("gemma") and stem.endswith("norm"):
        return Entry(entry.rows + np.float32(1), entry.format)
    return entry


def _attention(entry: Entry, architecture: str, layer: str, kind: str, config: Mapping[str, Any], sizes: Sizes) -> dict[str, Entry]:
    rows = entry.rows
    per_head = architecture == "chatglm" and not config.get("multi_query_attention")
    if architecture in ("falcon", "bloom", "gptneox", "internlm2") or per_head:
        queries, keys, values = _ungroup(rows, sizes)
    else:
        cut = sizes.heads * sizes.head_dim, (sizes.heads + sizes.kv_heads) * sizes.head_dim
        queries, keys, values = np.split(rows, cut)
    if architecture in _PERMUTED:
        queries, keys = _permute(queries, sizes.heads), _permute(keys, sizes.kv_heads)
    if architecture not in _LAYERS_APART:
        return {f"blk.{layer}.attn_qkv.{kind}": Entry(np.concatenate((queries, keys, values)), entry.format)}
    parts = zip("qkv", (queries, keys, values), strict=True)
    return {f"blk.{layer}.attn_{letter}.{kind}": Entry(part, entry.format) for letter, part in parts}


def _write_metadata(writer: gguf.GGUFWriter, architecture: str, config: Mapping[str, Any], sizes: Sizes, extra: Mapping[str, Any]) -> None:
    writer.add_context_length(sizes.context)
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.ffn)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    eps = next((config[name] for name in ("rms_norm_eps", "layernorm_epsilon") if name in config), None)
    if eps is not None:
        writer.add_layer_norm_rms_eps(eps)
    else:
        writer.add_layer_norm_eps(config.get("layer_norm_epsilon", config.get("layer_norm_eps", 1e-5)))
    for name, add in (
        ("num_experts", writer.add_expert_count),
        ("num_local_experts", writer.add_expert_count),
        ("num_experts_per_tok", writer.add_expert_used_count),
        ("moe_intermediate_size", writer.add_expert_feed_forward_length),
        ("shared_expert_intermediate_size", writer.add_expert_shared_feed_forward_length),
        ("norm_topk_prob", writer.add_expert_weights_norm),
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
        ("use_parallel_residual", writer.add_parallel_residual),
    ):
        if config.get(name) is not None:
            add(config[name])
    if architecture in ("gemma2", "gemma3", "phi3") and config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if architecture == "mpt":
        writer.add_max_alibi_bias(8.0)
        if config["attn_config"].get("clip_qkv"):
            writer.add_clamp_kqv(config["attn_config"]["clip_qkv"])
    _write_rope(writer, architecture, config, sizes)
    for name, value in extra.items():
        writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))


def _write_rope(writer: gguf.GGUFWriter, architecture: str, config: Mapping[str, Any], sizes: Sizes) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope.get("full_attention", rope)
    share = rope.get("partial_rotary_factor", 0.5 if architecture in ("chatglm", "glm4") else 1.0)
    dims = int(sizes.head_dim * share)
    writer.add_rope_dimension_count(dims)
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0 * (config.get("rope_ratio") or 1)))
    writer.add_rope_freq_base(theta)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if kind == "llama3":
        wavelengths = 2 * np.pi * theta ** (np.arange(0, dims, 2) / dims)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = np.clip((rope["original_max_position_embeddings"] / wavelengths - low) / (high - low), 0, 1)
        writer.add_tensor("rope_freqs.weight", (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32))
    if kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
        for length in ("long", "short"):
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(rope[f"{length}_factor"], np.float32))
