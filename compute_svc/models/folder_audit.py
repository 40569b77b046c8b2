"""What a checkpoint folder says of its model, what becomes of it, and what the model takes of memory; reads no tensor."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from compute_svc.kv.kv_format import KV_FORMATS
from compute_svc.models.config import ModelConfig
from compute_svc.models.config_fields import ConfigFields
from compute_svc.models.registry import ConfigReading, read_config
from compute_svc.models.tensor_shapes import check_tensors
from compute_svc.models.weights import TensorInfo, count_numbers, open_checkpoint
from triserve.rpc.folder_audit import Fact, FolderAudit

_FILE = "config.json"
# They describe the file, or say how another library computes, pads or trains.
_SAYS_NOTHING = frozenset(
    {
        *("model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "auto_map", "use_cache", "pretraining_tp"),
        *(
            "initializer_range",
            "attention_dropout",
            "hidden_dropout",
            "resid_pdrop",
            "embd_pdrop",
            "attn_pdrop",
            "dropout",
            "attention_probs_dropout_prob",
        ),
        *(
            "hidden_dropout_prob",
            "embedding_dropout",
            "layerdrop",
            "init_std",
            "classifier_dropout",
            "output_attentions",
            "output_hidden_states",
        ),
        *(
            "return_dict",
            "output_router_logits",
            "router_aux_loss_coef",
            "router_jitter_noise",
            "is_encoder_decoder",
            "is_decoder",
            "chunk_size_feed_forward",
        ),
        *("id2label", "label2id", "problem_type", "num_labels", "gradient_checkpointing", "attn_implementation", "_attn_implementation"),
    }
)
# Read by the tokenizer stage.
_READ_ELSEWHERE = frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "tokenizer_class"})


def audit_checkpoint(folder: Path) -> FolderAudit:
    """The compute stage's part of the table.

    Raises:
        CheckpointError: The folder holds no model this engine can serve.
    """
    reading = read_config(folder)
    with open_checkpoint(folder) as checkpoint:
        tensors = checkpoint.tensors
    names = reading.names.fitting(tensors)
    check_tensors(tensors, reading.config, names)
    used, unused = reading.fields.by_use()
    unused = [name for name in unused if name not in _READ_ELSEWHERE]
    has_spare_head = reading.config.tie_word_embeddings and f"{names.lm_head}.weight" in tensors
    problems = [
        f"{_FILE}: {name} bears on nothing here; whether the model needs it is for you to judge"
        for name in unused
        if name not in _SAYS_NOTHING
    ]
    if has_spare_head:
        problems.append(f"the files hold {names.lm_head}.weight although embeddings are tied: it is used where it differs from them")
    return FolderAudit(
        facts=(*_sizes(reading), *_memory(reading.config, tensors)),
        used={_FILE: tuple(used)},
        without_effect={_FILE: tuple(unused)},
        problems=tuple(problems),
    )


def _sizes(reading: ConfigReading) -> list[Fact]:
    config, fields = reading.config, reading.fields
    heads = f"{config.num_heads} of {config.head_dim}, {config.num_kv_heads} for keys and values"
    windows = sorted({kind.window for kind in config.kinds if kind.window is not None})
    ropes = {f"base {kind.rope.theta:g}, {_scaling(kind.rope.scaling)}" for kind in config.kinds if kind.rope is not None}
    positions = "; ".join(sorted(ropes)) or ("learnt" if config.position_offset is not None else "ALiBi" if config.slopes else "none")
    facts = [
        Fact("family", config.architecture, f"{_FILE}: architectures"),
        Fact("layers", str(config.num_layers), _source(fields, "num_hidden_layers", "n_layer", "n_layers", "num_layers")),
        Fact("hidden size", str(config.hidden_size), _source(fields, "hidden_size", "n_embd", "d_model", "n_embed")),
        Fact("heads", heads, _source(fields, "num_attention_heads", "n_head", "n_heads")),
        Fact("token ids", str(config.vocab_size), _source(fields, "padded_vocab_size", "vocab_size")),
        Fact("context limit", f"{config.max_position_embeddings} tokens", _limit_source(config, fields)),
        Fact("positions", positions, _source(fields, "rope_parameters", "rope_scaling", "rope_theta", "alibi", "attn_config")),
        Fact("windows", ", ".join(map(str, windows)) or "none", _source(fields, "sliding_window")),
        Fact("embeddings", "tied" if config.tie_word_embeddings else "not tied", _source(fields, "tie_word_embeddings")),
    ]
    if config.experts is not None:
        experts = f"{config.experts.count}, {config.experts.per_token} for a token, in {len(config.experts.layers)} layers"
        facts.append(Fact("experts", experts, _source(fields, "num_experts", "num_local_experts", "n_routed_experts")))
    return facts


def _scaling(scaling: object) -> str:
    return "not scaled" if scaling is None else f"{getattr(scaling, 'kind', '')} scaling by {getattr(scaling, 'factor', 1.0):g}"


def _limit_source(config: ModelConfig, fields: ConfigFields) -> str:
    names = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "model_max_length")
    given = next((name for name in names if fields.get(name) is not None), None)
    if given is not None and fields.get(given) == config.max_position_embeddings:
        return f"{_FILE}: {given}"
    section = next((name for name in ("rope_parameters", "rope_scaling") if fields.get(name) is not None), None)
    return (
        "the family's" if section is None else f"{_FILE}: {section}.factor times the original length, {given} is {fields.get(given or '')}"
    )


def _source(fields: ConfigFields, *names: str) -> str:
    found = next((name for name in names if fields.get(name) is not None), None)
    return "the family's" if found is None else f"{_FILE}: {found}"


def _memory(config: ModelConfig, tensors: dict[str, TensorInfo]) -> list[Fact]:
    stored = count_numbers(tensors)
    coded = sum(info.coded_bytes for info in tensors.values() if info.use.startswith("integers"))
    numbers = sum(math.prod(info.shape) for info in tensors.values() if not info.use.startswith("integers"))
    numbers += config.tie_word_embeddings * config.vocab_size * config.hidden_size
    weights = ", ".join(
        f"{coded + numbers * dtype.itemsize:,} bytes in {str(dtype).removeprefix('torch.')}" for dtype in (torch.float32, torch.bfloat16)
    )
    sizes = (config.num_layers, config.num_kv_heads, config.kv_head_dim)
    kv = ", ".join(f"{format_.bytes_per_token(*sizes):,} bytes in {name}" for name, format_ in KV_FORMATS.items())
    kinds = ", ".join(f"{count:,} numbers in {name}" for name, count in sorted(stored.items()))
    return [
        Fact("weights stored", kinds, "the tensors' headers"),
        Fact("weights in memory", weights, f"the same, a tied embedding twice{', integers as such' if coded else ''}"),
        Fact("KV of a token", kv, "layers, heads and their width; a page is COMPUTE_PAGE_SIZE_TOKENS of it"),
    ]
