"""ChatGLM 2 and 3, GLM-4 and the newer GLM-4 with more norms: all read as the GLM that transformers ships, which has the same form."""

from __future__ import annotations

from compute_svc.models.gguf.architectures.llama import attention, embedding_and_head, norms
from compute_svc.models.gguf.metadata import Config, llama_form, read_sizes, rope_parameters
from compute_svc.models.gguf.recipes import TensorMap
from triserve.model_files.gguf_file import GgufFile
from triserve.model_files.gguf_header import GgufError

ARCHITECTURES = ("chatglm", "glm4")


def read(file: GgufFile, tensors: TensorMap) -> Config:
    """A GLM. Raises GgufError if something is missing."""
    sizes = read_sizes(file)
    is_newer = file.architecture == "glm4"
    name = file.text("general.name", "")
    if not is_newer and "chatglm2" in name.lower().replace("-", "").replace("_", "") and "32k" in name.lower():
        raise GgufError(f"{name} divides its positions, and GGUF has no field that says so: serve the published folder instead")
    embedding_and_head(tensors)
    for layer in range(sizes.layers):
        name, source = f"model.layers.{layer}.", f"blk.{layer}."
        norms(tensors, layer)
        # Neighbours turn together in these families themselves: nothing was permuted.
        attention(tensors, layer, sizes)
        tensors.copy(f"{name}mlp.gate_up_proj", f"{source}ffn_up")
        tensors.copy(f"{name}mlp.down_proj", f"{source}ffn_down")
        if is_newer:
            tensors.copy(f"{name}post_self_attn_layernorm", f"{source}post_attention_norm")
            tensors.copy(f"{name}post_mlp_layernorm", f"{source}post_ffw_norm")
    rope = rope_parameters(file, sizes, share_default=0.5)
    # Absent, half would turn.
    rope.setdefault("partial_rotary_factor", 1.0)
    has_biases = any(tensors.has(f"blk.0.{name}.bias") for name in ("attn_q", "attn_qkv"))
    architecture = "Glm4ForCausalLM" if is_newer else "GlmForCausalLM"
    return llama_form(file, architecture, sizes, rope_parameters=rope, attention_bias=has_biases)
