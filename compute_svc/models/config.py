"""What a decoder-only model is: one description that every family fills in.

UnsupportedModel(CheckpointError): the checkpoint needs something this engine does not do
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, TypeAlias

from compute_svc.kernels.attention.attention_spec import MAX_SINKS
from compute_svc.kernels.linear import Activation
from compute_svc.layers.rotary_table import RopeScaling
from compute_svc.layers.router import GroupLimit, Scoring
from compute_svc.models.weights import CheckpointError


class UnsupportedModel(CheckpointError):
    """A checkpoint asks for something this engine does not do; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary positions.

    Attributes:
        dims: How many of a head's first dimensions are rotated; even.
        theta: Base of the frequencies.
        scaling: How they were stretched; None = not.
        interleaved: Neighbours are pairs, (0, 1), (2, 3); otherwise (i, i + dims / 2).
    """

    dims: int
    theta: float = 10000.0
    scaling: RopeScaling | None = None
    interleaved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """What attention may do differently from layer to layer.

    Attributes:
        rope: None = no rotary positions.
        window: How many tokens a query sees, itself included; None = all.
    """

    rope: Rope | None = None
    window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingWindow:
    """A window laid over a model that was made without one, with attention sinks (StreamingLLM, arXiv 2309.17453).

    A query sees the last `tokens` tokens, itself included, and the first `sinks` ones. Rotary distances to these are as if they stood right
    before the window: for them a query at position p is turned to min(p, sinks + tokens - 1).

    Attributes:
        tokens: At least 1.
        sinks: From 1 to MAX_SINKS.

    Raises:
        ValueError: One of the two is out of its range.
    """

    tokens: int
    sinks: int = 4

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"a streaming window of {self.tokens} tokens is too short, it must be at least 1")
        if not 1 <= self.sinks <= MAX_SINKS:
            raise ValueError(f"a streaming window has {self.sinks} sinks, it must be from 1 to {MAX_SINKS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """Numbers of a `ClampedMlp`."""

    alpha: float
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts in place of the MLP; each expert is a gated MLP.

    Attributes:
        count: How many there are.
        per_token: How many of them compute a token.
        intermediate_size: Width of one.
        normalise: The weights of a token's experts are scaled to sum to one.
        scoring: See `Router`.
        scale: What weights are multiplied by.
        correction: There is a learnt correction of scores, which counts where experts are chosen and not in their weights.
        limit: See `GroupLimit`; None = a token's experts may be any.
        float32_router: Scores are computed in float32 whatever the model's dtype.
        clamp: The experts' gates are clamped, in place of plain ones, and router and experts have biases; None = plain ones without.
        shared_size: Width of the expert that computes every token; 0 = none.
        shared_gate: That expert's output is scaled by a learnt gate.
        layers: Which layers have experts; the others have the plain MLP.
    """

    count: int
    per_token: int
    intermediate_size: int
    normalise: bool
    scoring: Scoring = "softmax"
    scale: float = 1.0
    correction: bool = False
    limit: GroupLimit | None = None
    float32_router: bool = False
    clamp: Clamp | None = None
    shared_size: int = 0
    shared_gate: bool = False
    layers: frozenset[int]

    def check(self, place: str) -> None:
        """Raises CheckpointError if the numbers do not fit each other; the message begins with `place`."""
        allowed, limit = self.count, self.limit
        if limit is not None:
            if self.count % limit.count or limit.chosen > limit.count or limit.best > self.count // limit.count:
                raise CheckpointError(
                    f"{place}: {self.count} experts in {limit.count} groups, of which {limit.chosen} are chosen by their {limit.best} best, "
                    "do not fit each other"
                )
            allowed = self.count // limit.count * limit.chosen
        if self.per_token > allowed:
            raise CheckpointError(f"{place}: {self.per_token} experts compute a token, there are {allowed}")


class NormPlacement(Enum):
    """Where the norms of a layer's sublayers, attention and MLP, are; x is the residual stream.

    Attributes:
        PRE: x + sublayer(norm(x)); Llama.
        POST: x + norm(sublayer(x)), after the sublayer and before the sum; OLMo 2.
        SANDWICH: x + norm(sublayer(norm(x))); Gemma 2 and 3, GLM-4.
        POST_LN: norm(x + sublayer(x)), as of 2017; OPT-350M.
    """

    PRE = "pre"
    POST = "post"
    SANDWICH = "sandwich"
    POST_LN = "post_ln"


NormRole: TypeAlias = Literal["attention_norm", "attention_output_norm", "mlp_norm", "mlp_output_norm"]
"""What a norm of a layer is for, as `WeightNames` and the layers name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Keys and values made from one small latent vector of a token (MLA, DeepSeek-V2, arXiv 2405.04434).

    A head of a query or key has dimensions that turn, whose keys are one for all heads, and others that do not.

    Attributes:
        query_rank: Width of the latent that queries are made from; None = they are made from the hidden state.
        rank: Width of the latent of keys and values.
        plain_dims: How many dimensions of a query or key head do not turn; the others are those of the rotary positions.
        norm_eps: Added to the mean squares of latents.
    """

    query_rank: int | None
    rank: int
    plain_dims: int
    norm_eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One decoder: every difference between the families is a field here.

    Attributes:
        architecture: The name the checkpoint gives itself.
        vocab_size: Number of logits.
        hidden_size: Width of the residual stream.
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; divides num_heads.
        head_dim: Width of a query or key head.
        value_dim: Width of a value head; None = head_dim.
        intermediate_size: Width of the MLP.
        max_position_embeddings: Longest context it was made for, in tokens.
        tie_word_embeddings: Logits are products with the embedding; there is no other matrix.
        kinds: The different kinds of layers.
        kind_of_layer: For each layer the index of its kind.
        norm: Root mean square or mean and variance.
        norm_eps: Added to mean squares and variances.
        norm_bias: Norms have biases.
        norm_offset: Added to the weights of norms; some checkpoints store the difference from one.
        norm_placement: Where the norms of a layer are; PRE in parallel layers.
        residual: "serial": attention is added, then the MLP of the sum. "parallel": both of the same input are added.
        residual_scale: What attention and MLP are multiplied by before they are added; None = one. Serial layers alone.
        shared_norm: The MLP of a parallel layer reads what attention reads, behind the same norm.
        activation: Of the MLP.
        gated: The MLP is down(activation(gate(x)) * up(x)); otherwise down(activation(up(x))).
        experts: None = every layer has the MLP.
        qkv_bias: Query, key and value projections have biases.
        output_bias: The projection after attention has one.
        mlp_bias: The MLP's projections have biases.
        lm_head_bias: The logits' projection has one.
        normalised_head: The rows of the logits' projection are scaled to length one.
        qk_norm: "head": each query and key head is normalised. "all": all query heads of a token together, and all key heads. None = none.
        latent: Keys and values come from a latent vector; None = from the hidden state.
        qkv_limit: Queries, keys and values are clamped to plus or minus this.
        attention_scale: What scores are multiplied by; None = head_dim ** -0.5.
        attention_softcap: See `AttentionSpec`.
        sink_logits: Every query head of a layer has a learnt score of nothing.
        slopes: See `AttentionSpec`; one for each query head.
        rounded_slopes: See `AttentionSpec`.
        position_offset: A learnt embedding of position + this is added to the token's; None = there is none.
        embedding_scale: What embeddings are multiplied by.
        embedding_norm: Embeddings are normalised.
        embedding_size: Width of the embeddings if that is not hidden_size: maps go in between; None = it is.
        final_norm: The last hidden states are normalised.
        logit_softcap: Logits l become softcap * tanh(l / softcap).
        logit_scale: What logits are multiplied by.
        sinks: How many first tokens every query sees besides its window; 0 = none. See `StreamingWindow`.
        first_layer: Which of the checkpoint's layers is the first; above 0 in a stage of a pipeline behind the first.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int | None = None
    intermediate_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    kinds: tuple[LayerKind, ...]
    kind_of_layer: tuple[int, ...]
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float
    norm_bias: bool = False
    norm_offset: float = 0.0
    norm_placement: NormPlacement = NormPlacement.PRE
    residual: Literal["serial", "parallel"] = "serial"
    residual_scale: float | None = None
    shared_norm: bool = False
    activation: Activation = "silu"
    gated: bool = True
    experts: Experts | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    normalised_head: bool = False
    qk_norm: Literal["head", "all"] | None = None
    latent: LatentAttention | None = None
    qkv_limit: float | None = None
    attention_scale: float | None = None
    attention_softcap: float | None = None
    sink_logits: bool = False
    slopes: tuple[float, ...] | None = None
    rounded_slopes: bool = False
    position_offset: int | None = None
    embedding_scale: float | None = None
    embedding_norm: bool = False
    embedding_size: int | None = None
    final_norm: bool = True
    logit_softcap: float | None = None
    logit_scale: float | None = None
    sinks: int = 0
    first_layer: int = 0

    @property
    def has_ends(self) -> bool:
        """Whether there are embedding and head; both are the first stage's of a pipeline."""
        return self.first_layer == 0

    @property
    def kv_head_dim(self) -> int:
        """Width of a head where attention computes and in the KV: that of the wider of keys and values; the others end in zeros."""
        return max(self.head_dim, self.value_dim or 0)

    @property
    def layer_norms(self) -> tuple[NormRole, ...]:
        """The norms that each layer has."""
        before: tuple[NormRole, ...] = ("attention_norm",) if self.shared_norm else ("attention_norm", "mlp_norm")
        behind: tuple[NormRole, ...] = ("attention_output_norm", "mlp_output_norm")
        return {
            NormPlacement.PRE: before,
            NormPlacement.POST: behind,
            NormPlacement.SANDWICH: before + behind,
            NormPlacement.POST_LN: behind,
        }[self.norm_placement]

    @property
    def kv_window(self) -> int | None:
        """The largest window over kinds of layers; None if any kind sees everything."""
        windows = [kind.window for kind in self.kinds if kind.window is not None]
        return max(windows) if len(windows) == len(self.kinds) else None

    def streaming(self, window: StreamingWindow, place: str) -> ModelConfig:
        """This model under a streaming window: every kind of layer has the sinks, and the shorter of its own window and this one.

        Raises:
            UnsupportedModel: Distances to sinks are not rotary everywhere; the message begins with `place` and names what they are.
        """
        reasons = {
            "it has ALiBi slopes": self.slopes is not None,
            "it has learnt sinks": self.sink_logits,
            "its positions are learnt": self.position_offset is not None,
            "it has layers without positions": any(kind.rope is None for kind in self.kinds),
        }
        reason = next((words for words, holds in reasons.items() if holds), None)
        if reason is not None:
            wanted = "a streaming window needs rotary positions in every layer and no learnt sinks"
            raise UnsupportedModel(f"{place}: {wanted}; {self.architecture} cannot have one: {reason}")
        kinds = tuple(replace(kind, window=min(window.tokens, kind.window or window.tokens)) for kind in self.kinds)
        return replace(self, kinds=kinds, sinks=window.sinks)

    def check(self, place: str) -> ModelConfig:
        """Itself.

        Raises:
            CheckpointError: Sizes do not fit each other; the message begins with `place`.
        """
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"{place}: num_attention_heads {self.num_heads} is no multiple of num_key_value_heads {self.num_kv_heads}"
            )
        for rope in (kind.rope for kind in self.kinds if kind.rope is not None):
            if rope.dims == self.head_dim and rope.dims % 2:
                raise CheckpointError(f"{place}: head_dim is {self.head_dim}, it must be even")
            if rope.dims % 2 or not 0 < rope.dims <= self.head_dim:
                raise CheckpointError(
                    f"{place}: {rope.dims} dimensions of a head turn, it must be an even number up to head_dim, {self.head_dim}"
                )
        if self.experts is not None:
            self.experts.check(place)
        assert len(self.kind_of_layer) == self.num_layers, "every layer has a kind"
        is_plain = self.norm_placement is NormPlacement.PRE and self.residual_scale is None
        assert self.residual == "serial" or is_plain, "a parallel layer has its norms before and adds what comes out"
        assert not self.shared_norm or self.residual == "parallel", "a serial layer has a norm for each sublayer"
        assert self.residual_scale is None or self.norm_placement is not NormPlacement.POST_LN, "normalised sums are not scaled"
        return self


def alibi_slopes(num_heads: int, *, max_bias: float = 8.0) -> tuple[float, ...]:
    """The slopes of ALiBi (arXiv 2108.12409) for any number of heads.

    For a power of two, n: 2 ** (-max_bias * i / n). For other numbers those of the power below, then every second of the power above.
    """
    below = 1 << (num_heads.bit_length() - 1)

    def powers(count: int) -> list[float]:
        return [2.0 ** (-max_bias * (index + 1) / count) for index in range(count)]

    return tuple((powers(below) + powers(2 * below)[0::2])[:num_heads])
