"""Llama and Mixtral; and the parts that others share: embedding, head, norms, attention and gated MLP under Llama's names."""

from __future__ import annotations

from compute_svc.models.gguf.metadata import Config, Sizes, key, llama_form, read_sizes
from compute_svc.models.gguf.recipes import Order, Rows, TensorMap, unpermuted
from triserve.model_files.gguf_file import GgufFile

ARCHITECTURES = ("llama",)


def read(file: GgufFile, tensors: TensorMap) -> Config:
    """A Llama, or a Mixtral if it has experts. Raises GgufError if something is missing."""
    sizes = read_sizes(file)
    num_experts = file.count(key(file, "expert_count"), 0, at_least=0)
    embedding_and_head(tensors)
    for layer in range(sizes.layers):
        source, name = f"blk.{layer}.", f"model.layers.{layer}."
        norms(tensors, layer)
        attention(tensors, layer, sizes, permuted=True)
        if num_experts:
            tensors.copy(f"{name}block_sparse_moe.gate", f"{source}ffn_gate_inp")
            for theirs, ours in (("w1", "ffn_gate_exps"), ("w3", "ffn_up_exps"), ("w2", "ffn_down_exps")):
                tensors.experts(f"{name}block_sparse_moe.experts.{{}}.{theirs}", source + ours, num_experts)
        else:
            gated_mlp(tensors, layer)
    if num_experts:
        used = file.count(key(file, "expert_used_count"))
        return llama_form(file, "MixtralForCausalLM", sizes, num_local_experts=num_experts, num_experts_per_tok=used, sliding_window=None)
    biases = {"attention_bias": tensors.has("blk.0.attn_q.bias"), "mlp_bias": tensors.has("blk.0.ffn_gate.bias")}
    return llama_form(file, "LlamaForCausalLM", sizes, **biases)


def embedding_and_head(
    tensors: TensorMap,
    *,
    embedding: str = "model.embed_tokens",
    final_norm: str = "model.norm",
    lm_head: str = "lm_head",
    norm_added: float = 0.0,
) -> None:
    """The embedding, the last norm, and the head where the file has one of its own."""
    tensors.copy(embedding, "token_embd")
    tensors.copy(final_norm, "output_norm", added=norm_added)
    if tensors.has("output.weight"):
        tensors.copy(lm_head, "output")


def norms(tensors: TensorMap, layer: int, *, before_mlp: str = "post_attention_layernorm", added: float = 0.0) -> None:
    """The norms before attention and MLP."""
    tensors.copy(f"model.layers.{layer}.input_layernorm", f"blk.{layer}.attn_norm", added=added)
    tensors.copy(f"model.layers.{layer}.{before_mlp}", f"blk.{layer}.ffn_norm", added=added)


def attention(tensors: TensorMap, layer: int, sizes: Sizes, *, permuted: bool = False) -> None:
    """Query, key, value and output projections."""
    name, source = f"model.layers.{layer}.self_attn.", f"blk.{layer}."
    orders = head_orders(sizes, permuted=permuted)
    for part in (".weight", ".bias"):
        if part == ".weight" or tensors.has(f"{source}attn_q.bias") or tensors.has(f"{source}attn_qkv.bias"):
            for letter, rows in zip("qkv", qkv_rows(tensors, layer, sizes, part, orders), strict=True):
                tensors.add(f"{name}{letter}_proj{part}", rows)
    tensors.copy(f"{name}o_proj", f"{source}attn_output")


def head_orders(sizes: Sizes, *, permuted: bool) -> tuple[Order | None, Order | None, None]:
    """How the rows of queries, keys and values lie: llama.cpp permutes them for some families."""
    if not permuted:
        return None, None, None
    return unpermuted(sizes.heads, sizes.head_dim), unpermuted(sizes.kv_heads, sizes.head_dim), None


def qkv_rows(
    tensors: TensorMap, layer: int, sizes: Sizes, part: str, orders: tuple[Order | None, Order | None, Order | None] = (None, None, None)
) -> tuple[Rows, Rows, Rows]:
    """Queries, keys and values, whether the file has them in one tensor or in three.

    Args:
        tensors: Of the file.
        layer: Which.
        sizes: Of the model.
        part: ".weight" or ".bias".
        orders: How the rows of each lie.

    Raises:
        GgufError: They are missing or of other sizes.
    """
    counts = (sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim)
    source = f"blk.{layer}."
    if tensors.has(f"{source}attn_qkv{part}"):
        starts = (0, counts[0], counts[0] + counts[1])
        names = [f"{source}attn_qkv{part}"] * 3
    else:
        starts, names = (0, 0, 0), [f"{source}attn_{letter}{part}" for letter in "qkv"]
    queries, keys, values = (
        tensors.rows(name, start, count, order) for name, start, count, order in zip(names, starts, counts, orders, strict=True)
    )
    return queries, keys, values


def gated_mlp(tensors: TensorMap, layer: int) -> None:
    """Gate, up and down projections."""
    for part in ("gate", "up", "down"):
        tensors.copy(f"model.layers.{layer}.mlp.{part}_proj", f"blk.{layer}.ffn_{part}")
