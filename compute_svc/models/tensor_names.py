"""Which tensors a checkpoint of the common decoder must hold, and in what shapes."""

from __future__ import annotations

from compute_svc.models.config import ModelConfig
from compute_svc.weights import READABLE_DTYPES, CheckpointError, TensorInfo, listed

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


def layer_prefix(index: int) -> str:
    """What the names of a layer's tensors begin with."""
    return f"model.layers.{index}."


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden), FINAL_NORM: (hidden,)}
    if not config.tie_word_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, hidden)
    layer = _layer_shapes(config)
    for index in range(config.num_layers):
        shapes.update({layer_prefix(index) + name: shape for name, shape in layer.items()})
    return shapes


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, mlp = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projections = {
        "self_attn.q_proj": (queries, hidden, config.qkv_bias),
        "self_attn.k_proj": (keys, hidden, config.qkv_bias),
        "self_attn.v_proj": (keys, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, queries, config.output_bias),
        "mlp.gate_proj": (mlp, hidden, config.mlp_bias),
        "mlp.up_proj": (mlp, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, mlp, config.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    for name, (outputs, inputs, has_bias) in projections.items():
        shapes[f"{name}.weight"] = (outputs, inputs)
        if has_bias:
            shapes[f"{name}.bias"] = (outputs,)
    if config.qk_norm:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (config.head_dim,)
    return shapes


def check_tensors(tensors: dict[str, TensorInfo], config: ModelConfig) -> None:
    """Checks that a checkpoint holds the model's tensors and no others.

    Two kinds of tensor may be there for nothing: rotary frequencies, which old checkpoints stored and which follow from the config,
    and a copy of a tied embedding.

    Raises:
        CheckpointError: Tensors are missing, unknown, or of another dtype or shape; the message lists them.
    """
    expected = expected_shapes(config)
    known = expected.keys() | ({LM_HEAD} if config.tie_word_embeddings else set())
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unknown": [name for name in tensors if name not in known and not name.endswith(".rotary_emb.inv_freq")],
        f"in a dtype that is not read ({', '.join(READABLE_DTYPES)} are)": [
            f"{name} {info.dtype}" for name, info in tensors.items() if name in expected and info.dtype not in READABLE_DTYPES
        ],
        "of another shape than the config says": [
            f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    found = [f"{problem}: {listed(names)}" for problem, names in problems.items() if names]
    if found:
        raise CheckpointError(f"the tensors do not fit {config.architecture} as config.json describes it; {'; '.join(found)}")
