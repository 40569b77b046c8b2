"""Gemma 1, 2 and 3 (text). Conversion adds the one to the weights of norms that the families' checkpoints leave out."""

from __future__ import annotations

from compute_svc.models.gguf.architectures.llama import attention, embedding_and_head, gated_mlp, norms
from compute_svc.models.gguf.metadata import Config, Sizes, key, llama_form, read_sizes, rope_parameters
from compute_svc.models.gguf.recipes import TensorMap
from triserve.model_files.gguf_file import GgufFile

ARCHITECTURES = ("gemma", "gemma2", "gemma3")

_NAMES = {"gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM"}
# Files do not say what scores are divided by. The largest of either generation, known by its layers, takes hidden size over heads.
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
_LOCAL_THETA = 10000.0
_WINDOWS_PER_FULL = 6


def read(file: GgufFile, tensors: TensorMap) -> Config:
    """A Gemma. Raises GgufError if something is missing."""
    sizes = read_sizes(file)
    is_first = file.architecture == "gemma"
    embedding_and_head(tensors, norm_added=-1.0)
    for layer in range(sizes.layers):
        name, source = f"model.layers.{layer}.", f"blk.{layer}."
        norms(tensors, layer, before_mlp="post_attention_layernorm" if is_first else "pre_feedforward_layernorm", added=-1.0)
        attention(tensors, layer, sizes)
        gated_mlp(tensors, layer)
        if not is_first:
            tensors.copy(f"{name}post_attention_layernorm", f"{source}post_attention_norm", added=-1.0)
            tensors.copy(f"{name}post_feedforward_layernorm", f"{source}post_ffw_norm", added=-1.0)
        if file.architecture == "gemma3":
            for letter in "qk":
                tensors.copy(f"{name}self_attn.{letter}_norm", f"{source}attn_{letter}_norm", added=-1.0)
    fields: Config = {"attention_bias": tensors.has("blk.0.attn_q.bias")}
    if is_first:
        return llama_form(file, _NAMES[file.architecture], sizes, hidden_act="gelu_pytorch_tanh", **fields)
    is_largest = sizes.layers == _LAYERS_OF_27B[file.architecture]
    fields |= {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": sizes.hidden // sizes.heads if is_largest else sizes.head_dim,
        "sliding_window": file.count(key(file, "attention.sliding_window"), 4096),
        **_caps(file),
    }
    if file.architecture == "gemma3":
        fields |= _kinds_of_third(file, sizes)
    return llama_form(file, _NAMES[file.architecture], sizes, **fields)


def _caps(file: GgufFile) -> Config:
    names = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
    return {theirs: file.number(key(file, ours)) if key(file, ours) in file else None for theirs, ours in names.items()}


def _kinds_of_third(file: GgufFile, sizes: Sizes) -> Config:
    """Layers with a window turn by a base of their own and are not stretched."""
    pattern = file.count(key(file, "attention.sliding_window_pattern"), _WINDOWS_PER_FULL)
    whole = rope_parameters(file, sizes, theta=1e6)
    local = {"rope_type": "default", "rope_theta": file.number(key(file, "rope.freq_base_swa"), _LOCAL_THETA)}
    kinds = ["full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(sizes.layers)]
    return {"layer_types": kinds, "rope_parameters": {"full_attention": whole, "sliding_attention": local}}
