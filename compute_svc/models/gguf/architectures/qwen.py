"""Qwen 2 and 3, with and without experts."""

from __future__ import annotations

from compute_svc.models.gguf.architectures.llama import attention, embedding_and_head, gated_mlp, norms
from compute_svc.models.gguf.metadata import Config, Sizes, key, llama_form, read_sizes
from compute_svc.models.gguf.recipes import TensorMap
from triserve.model_files.gguf_file import GgufFile

ARCHITECTURES = ("qwen2", "qwen2moe", "qwen3", "qwen3moe")

_NAMES = {"qwen2": "Qwen2ForCausalLM", "qwen2moe": "Qwen2MoeForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3moe": "Qwen3MoeForCausalLM"}


def read(file: GgufFile, tensors: TensorMap) -> Config:
    """A Qwen. Raises GgufError if something is missing."""
    sizes = read_sizes(file)
    num_experts = file.count(key(file, "expert_count"), 0, at_least=0) if "moe" in file.architecture else 0
    sparse = [layer for layer in range(sizes.layers) if num_experts and tensors.has(f"blk.{layer}.ffn_gate_inp.weight")]
    embedding_and_head(tensors)
    for layer in range(sizes.layers):
        norms(tensors, layer)
        attention(tensors, layer, sizes)
        if file.architecture.startswith("qwen3"):
            for letter in "qk":
                tensors.copy(f"model.layers.{layer}.self_attn.{letter}_norm", f"blk.{layer}.attn_{letter}_norm")
        if layer in sparse:
            _experts(tensors, layer, num_experts)
        else:
            gated_mlp(tensors, layer)
    fields: Config = {"attention_bias": tensors.has("blk.0.attn_q.bias")} if file.architecture.startswith("qwen3") else {}
    if num_experts:
        fields |= _expert_fields(file, tensors, sizes, sparse)
    return llama_form(file, _NAMES[file.architecture], sizes, **fields)


def _experts(tensors: TensorMap, layer: int, num_experts: int) -> None:
    name, source = f"model.layers.{layer}.mlp.", f"blk.{layer}."
    tensors.copy(f"{name}gate", f"{source}ffn_gate_inp")
    for part in ("gate", "up", "down"):
        tensors.experts(f"{name}experts.{{}}.{part}_proj", f"{source}ffn_{part}_exps", num_experts)
        if tensors.has(f"{source}ffn_{part}_shexp.weight"):
            tensors.copy(f"{name}shared_expert.{part}_proj", f"{source}ffn_{part}_shexp")
    if tensors.has(f"{source}ffn_gate_inp_shexp.weight"):
        tensors.row(f"{name}shared_expert_gate.weight", f"{source}ffn_gate_inp_shexp.weight")


def _expert_fields(file: GgufFile, tensors: TensorMap, sizes: Sizes, sparse: list[int]) -> Config:
    fields: Config = {
        "num_experts": file.count(key(file, "expert_count")),
        "num_experts_per_tok": file.count(key(file, "expert_used_count")),
        "moe_intermediate_size": file.count(key(file, "expert_feed_forward_length"), _width(tensors, sparse, "exps")),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer in range(sizes.layers) if layer not in sparse],
        # What llama.cpp does with the scores of experts unless the file says otherwise.
        "norm_topk_prob": file.flag(key(file, "expert_weights_norm"), file.architecture == "qwen3moe"),
    }
    if file.architecture == "qwen2moe":
        shared = file.count(key(file, "expert_shared_feed_forward_length"), _width(tensors, sparse, "shexp"))
        fields["shared_expert_intermediate_size"] = shared
    return fields


def _width(tensors: TensorMap, sparse: list[int], kind: str) -> int | None:
    """Of the experts' hidden layer, from the first of their tensors; None if there is none."""
    name = f"blk.{sparse[0]}.ffn_gate_{kind}.weight" if sparse else ""
    return tensors.tensor(name).shape[-2] if tensors.has(name) else None
