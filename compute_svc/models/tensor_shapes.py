"""Which tensors a checkpoint must hold, and in what shapes: from the model's description and its family's names."""

from __future__ import annotations

from collections.abc import Iterator

from compute_svc.models.config import Experts, LatentAttention, ModelConfig
from compute_svc.models.weight_names import WeightNames
from compute_svc.models.weights import READABLE_DTYPES, CheckpointError, TensorInfo, listed

Shapes = dict[str, tuple[int, ...]]

# After so many missing tensors no more are looked for: a config can ask for any number.
_ENOUGH_MISSING = 1000


def expected_shapes(config: ModelConfig, names: WeightNames) -> Shapes:
    """Name and shape of every tensor of the model, under the family's names."""
    return dict(_each_shape(config, names))


def _each_shape(config: ModelConfig, names: WeightNames) -> Iterator[tuple[str, tuple[int, ...]]]:
    if config.has_ends:
        yield from _end_shapes(config, names).items()
    for index in range(config.num_layers):
        prefix = names.layer.format(config.first_layer + index)
        for name, shape in _layer_shapes(config, names, index).items():
            yield prefix + name, shape


def _end_shapes(config: ModelConfig, names: WeightNames) -> Shapes:
    """Of embedding and head."""
    hidden, vocab = config.hidden_size, config.vocab_size
    width = config.embedding_size or hidden
    shapes: Shapes = {f"{names.embedding}.weight": (vocab, width)}
    if config.position_offset is not None:
        shapes[f"{names.position_embedding}.weight"] = (config.max_position_embeddings + config.position_offset, hidden)
    if config.embedding_norm:
        shapes |= _norm(names.embedding_norm, hidden, config)
    if config.embedding_size is not None:
        shapes[f"{names.embedding_in}.weight"], shapes[f"{names.embedding_out}.weight"] = (hidden, width), (width, hidden)
    if config.final_norm:
        shapes |= _norm(names.final_norm, hidden, config)
    if not config.tie_word_embeddings:
        shapes |= _linear(names.lm_head, vocab, width, bias=config.lm_head_bias)
    return shapes


def _layer_shapes(config: ModelConfig, names: WeightNames, index: int) -> Shapes:
    hidden = config.hidden_size
    shapes: Shapes = {}
    for role in config.layer_norms:
        shapes |= _norm(getattr(names, role), hidden, config)
    shapes |= _head_shapes(config, names) if config.latent is None else _latent_shapes(config, config.latent, names)
    if config.sink_logits:
        shapes[names.sink_logits] = (config.num_heads,)
    values = config.num_heads * (config.value_dim or config.head_dim)
    shapes |= _linear(names.output, hidden, values, bias=config.output_bias, transposed=names.transposed)
    experts = config.experts
    if experts is None or index not in experts.layers:
        return shapes | _mlp_shapes(config, names.mlp_in, names.mlp_down, config.intermediate_size, transposed=names.transposed)
    shapes |= _linear(names.router, experts.count, hidden, bias=experts.clamp is not None)
    if experts.correction:
        shapes[names.router_correction] = (experts.count,)
    if names.expert_stacks:
        return shapes | _stack_shapes(experts, names, hidden)
    for expert in range(experts.count):
        prefix = names.expert.format(expert)
        inner = _mlp_shapes(config, names.expert_in, names.expert_down, experts.intermediate_size)
        shapes |= {prefix + name: shape for name, shape in inner.items()}
    if experts.shared_size:
        inner = _mlp_shapes(config, names.expert_in, names.expert_down, experts.shared_size)
        shapes |= {names.shared_expert + name: shape for name, shape in inner.items()}
    if experts.shared_gate:
        shapes |= _linear(names.shared_gate, 1, hidden, bias=False)
    return shapes


def _head_shapes(config: ModelConfig, names: WeightNames) -> Shapes:
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sizes = (queries, keys, keys) if len(names.qkv) == 3 else (queries + 2 * keys,)
    shapes: Shapes = {}
    for name, size in zip(names.qkv, sizes, strict=True):
        shapes |= _linear(name, size, config.hidden_size, bias=config.qkv_bias, transposed=names.transposed)
    if config.qk_norm is not None:
        widths = (queries, keys) if config.qk_norm == "all" else (config.head_dim,) * 2
        shapes |= {f"{name}.weight": (width,) for name, width in zip((names.q_norm, names.k_norm), widths, strict=True)}
    return shapes


def _latent_shapes(config: ModelConfig, latent: LatentAttention, names: WeightNames) -> Shapes:
    shapes = _norm(names.latent_norm, latent.rank, config)
    inputs = config.hidden_size
    if latent.query_rank is not None:
        shapes |= _linear(names.latent_query_down, latent.query_rank, inputs, bias=False) | _norm(
            names.latent_query_norm, latent.query_rank, config
        )
        inputs = latent.query_rank
    shapes |= _linear(names.latent_query, config.num_heads * config.head_dim, inputs, bias=False)
    shapes |= _linear(names.latent_down, latent.rank + config.head_dim - latent.plain_dims, config.hidden_size, bias=False)
    up = config.num_heads * (latent.plain_dims + (config.value_dim or config.head_dim))
    return shapes | _linear(names.latent_up, up, latent.rank, bias=False)


def _stack_shapes(experts: Experts, names: WeightNames, hidden: int) -> Shapes:
    into, out = names.expert_stacks
    count, width = experts.count, experts.intermediate_size
    return {
        into: (count, hidden, 2 * width),
        f"{into}_bias": (count, 2 * width),
        out: (count, width, hidden),
        f"{out}_bias": (count, hidden),
    }


def _mlp_shapes(config: ModelConfig, into: tuple[str, ...], down: str, size: int, *, transposed: bool = False) -> Shapes:
    shapes: Shapes = {}
    outputs = 2 * size if config.gated and len(into) == 1 else size
    for name in into:
        shapes |= _linear(name, outputs, config.hidden_size, bias=config.mlp_bias, transposed=transposed)
    return shapes | _linear(down, config.hidden_size, size, bias=config.mlp_bias, transposed=transposed)


def _linear(name: str, outputs: int, inputs: int, *, bias: bool, transposed: bool = False) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (inputs, outputs) if transposed else (outputs, inputs)}
    return shapes | {f"{name}.bias": (outputs,)} if bias else shapes


def _norm(name: str, size: int, config: ModelConfig) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (size,)}
    return shapes | {f"{name}.bias": (size,)} if config.norm_bias else shapes


def zero_biases(tensors: dict[str, TensorInfo], expected: Shapes) -> set[str]:
    """Biases beside coded weights that the model has none of: some writers leave zeros there. Whoever reads the weights sees whether they are zeros."""
    return {
        name
        for name in tensors.keys() - expected.keys()
        if name.endswith(".bias") and (weight := tensors.get(f"{name.removesuffix('bias')}weight")) is not None and weight.coded_bytes
    }


def check_tensors(tensors: dict[str, TensorInfo], config: ModelConfig, names: WeightNames) -> None:
    """Checks that a checkpoint holds the model's tensors and no others.

    Three kinds of tensor may be there besides: those the family ignores, which follow from the config, those it has no use for, and a head
    where embeddings are tied.

    Raises:
        CheckpointError: Tensors are missing, unknown, or of another dtype or shape; the message lists them.
    """
    expected: Shapes = {}
    missing: list[str] = []
    for name, shape in _each_shape(config, names):
        expected[name] = shape
        if name not in tensors:
            missing.append(name)
        if len(missing) == _ENOUGH_MISSING:
            raise CheckpointError(
                f"the files hold {len(tensors)} tensors, {config.architecture} as config.json describes it has far more; missing: {listed(missing)}"
            )
    if config.tie_word_embeddings and f"{names.lm_head}.weight" in tensors:
        expected |= _linear(names.lm_head, config.vocab_size, config.embedding_size or config.hidden_size, bias=False)
    spare_biases = zero_biases(tensors, expected)
    problems = {
        "missing": missing,
        "unknown": [
            name
            for name in tensors
            if name not in expected and not name.endswith(names.ignored) and not name.startswith(names.unused) and name not in spare_biases
        ],
        f"in a dtype that is not read ({', '.join(READABLE_DTYPES)} are)": [
            f"{name} {info.dtype}" for name, info in tensors.items() if name in expected and not info.is_readable
        ],
        "of another shape than the config says": [
            f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    found = [f"{problem}: {listed(wrong)}" for problem, wrong in problems.items() if wrong]
    if found:
        raise CheckpointError(f"the tensors do not fit {config.architecture} as config.json describes it; {'; '.join(found)}")
