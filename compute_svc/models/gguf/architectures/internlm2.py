"""InternLM 2: converted, it has Llama's form, permuted like it; and Baichuan, whose projections conversion takes apart and permutes."""

from __future__ import annotations

from compute_svc.models.gguf.architectures.llama import attention, embedding_and_head, gated_mlp, head_orders, norms, qkv_rows
from compute_svc.models.gguf.metadata import Config, llama_form, read_sizes
from compute_svc.models.gguf.recipes import TensorMap
from triserve.model_files.gguf_file import GgufFile

ARCHITECTURES = ("internlm2", "baichuan")

# Scores of the 13B fall with distance; its layers are what tells it from the 7B, which turns.
_LAYERS_OF_13B = 40
# The second generation's vocabulary; its head is normalised.
_SECOND_VOCAB = 125696


def read(file: GgufFile, tensors: TensorMap) -> Config:
    """One of the two. Raises GgufError if something is missing."""
    return _read_baichuan(file, tensors) if file.architecture == "baichuan" else _read_internlm2(file, tensors)


def _read_internlm2(file: GgufFile, tensors: TensorMap) -> Config:
    sizes = read_sizes(file)
    embedding_and_head(tensors)
    for layer in range(sizes.layers):
        norms(tensors, layer)
        attention(tensors, layer, sizes, permuted=True)
        gated_mlp(tensors, layer)
    return llama_form(file, "LlamaForCausalLM", sizes, attention_bias=tensors.has("blk.0.attn_q.bias"))


def _read_baichuan(file: GgufFile, tensors: TensorMap) -> Config:
    sizes = read_sizes(file)
    embedding_and_head(tensors)
    for layer in range(sizes.layers):
        norms(tensors, layer)
        parts = qkv_rows(tensors, layer, sizes, ".weight", head_orders(sizes, permuted=True))
        tensors.add(f"model.layers.{layer}.self_attn.W_pack.weight", *parts)
        tensors.copy(f"model.layers.{layer}.self_attn.o_proj", f"blk.{layer}.attn_output")
        gated_mlp(tensors, layer)
    has_slopes = sizes.layers == _LAYERS_OF_13B
    is_second = sizes.vocab == _SECOND_VOCAB
    context: Config = {}
    if has_slopes:
        context = {"max_position_embeddings": None, "model_max_length": sizes.context, "rope_parameters": None}
    name = "BaichuanForCausalLM" if has_slopes or is_second else "BaiChuanForCausalLM"
    return llama_form(file, name, sizes, head_dim=None, **context)
