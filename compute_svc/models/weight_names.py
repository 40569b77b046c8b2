"""What a family calls its tensors and how it lays them out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightNames:
    """Names in a checkpoint, without ".weight" and ".bias". Those of a layer come after `layer`, `{}` standing for its index.

    Attributes:
        layer: What the names of a layer's tensors begin with.
        embedding: Of tokens.
        position_embedding: Of positions, for models that learn them.
        embedding_norm: For models that have it.
        embedding_in: The map from embeddings to hidden states, for models that have it.
        embedding_out: The map back before the logits, likewise.
        final_norm: Of the last hidden states.
        lm_head: Logits of a hidden state.
        qkv: Query, key and value projections, or the one that holds all three.
        qkv_layout: Of that one: "blocks" is all queries, all keys, all values; "groups" is, for each key head, its queries, its key, its value.
        output: The projection after attention.
        sink_logits: The whole name, for models that have them.
        attention_norm: Before attention.
        attention_output_norm: Behind it, before the sum or (2017) of the sum.
        mlp_norm: Before the MLP.
        mlp_output_norm: Behind it, likewise.
        latent_query: To query heads, of the hidden state or of the latent of queries; these six for latent attention alone.
        latent_query_down: To the latent of queries.
        latent_query_norm: Of that.
        latent_down: To the latent of keys and values and what turns of keys.
        latent_norm: Of that latent.
        latent_up: From it to keys and values.
        q_norm: Of query heads.
        k_norm: Of key heads.
        mlp_in: Gate and up projections, the one that holds both in this order, or the up projection alone where there is no gate.
        mlp_down: Back to the hidden state.
        router: Scores of experts.
        router_correction: Of these, the whole name, for models that have it.
        expert: What the names of an expert's tensors begin with, `{}` standing for its index.
        expert_in: As mlp_in.
        expert_down: As mlp_down.
        expert_stacks: In place of the three before: projections in and out of all experts, [experts, inputs, outputs], of which the first has
            gates and ups in turn, each with a tensor of biases, its name and "_bias"; empty = each expert has tensors of its own.
        shared_expert: What the names of the shared expert's tensors begin with; they end as those of mlp_in and mlp_down without "mlp.".
        shared_gate: Of the shared expert.
        transposed: Projections in layers are stored as [inputs, outputs].
        root: What the names of all tensors but lm_head begin with in some checkpoints of the family and not in others; "" = no such thing.
        unused: What the names of tensors begin with that are for another purpose than to continue a text.
        ignored: Ends of names of tensors that say nothing: they follow from the config.
    """

    layer: str = "model.layers.{}."
    embedding: str = "model.embed_tokens"
    position_embedding: str = ""
    embedding_norm: str = ""
    embedding_in: str = ""
    embedding_out: str = ""
    final_norm: str = "model.norm"
    lm_head: str = "lm_head"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    qkv_layout: Literal["blocks", "groups"] = "blocks"
    output: str = "self_attn.o_proj"
    sink_logits: str = ""
    attention_norm: str = "input_layernorm"
    attention_output_norm: str = ""
    mlp_norm: str = "post_attention_layernorm"
    mlp_output_norm: str = ""
    latent_query: str = ""
    latent_query_down: str = ""
    latent_query_norm: str = ""
    latent_down: str = ""
    latent_norm: str = ""
    latent_up: str = ""
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    mlp_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_down: str = "mlp.down_proj"
    router: str = "mlp.gate"
    router_correction: str = ""
    expert: str = "mlp.experts.{}."
    expert_in: tuple[str, ...] = ("gate_proj", "up_proj")
    expert_down: str = "down_proj"
    expert_stacks: tuple[str, ...] = ()
    shared_expert: str = "mlp.shared_expert."
    shared_gate: str = "mlp.shared_expert_gate"
    transposed: bool = False
    root: str = ""
    unused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = (".rotary_emb.inv_freq",)

    def fitting(self, tensors: Collection[str]) -> WeightNames:
        """These names, or the same without `root` if no tensor of the checkpoint begins with that."""
        if not self.root or any(name.startswith(self.root) for name in tensors):
            return self
        rooted = ("layer", "embedding", "position_embedding", "embedding_norm", "embedding_in", "embedding_out", "final_norm")
        return replace(self, root="", **{name: getattr(self, name).removeprefix(self.root) for name in rooted})
