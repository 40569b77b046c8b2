"""What the written references share: random tensors under published names, and the few operations decoders are made of, in plain float32."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file


class Streaming(NamedTuple):
    """The cache of StreamingLLM: the first `sinks` tokens and the last `window` ones, a token itself included."""

    window: int
    sinks: int


class WrittenModel(ABC):
    """A small random model of a family, written from its published description.

    Args:
        config: Fields of config.json, as published.
        shapes: The shape of every parameter, by its published name.
        seed: Of the parameters.
        buffers: Tensors that published checkpoints carry besides parameters.
    """

    def __init__(
        self, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], *, seed: int, buffers: dict[str, torch.Tensor] | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.config = config
        self.tensors = {name: _random(name, shape, generator) for name, shape in shapes.items()}
        self._buffers = buffers or {}

    @abstractmethod
    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """[tokens, vocabulary]: all of a sequence at once, without a cache."""

    def save(self, folder: Path) -> None:
        """Writes config.json and model.safetensors into an existing folder."""
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file({**self.tensors, **self._buffers}, folder / "model.safetensors")

    def embed(self, name: str, tokens: Sequence[int]) -> torch.Tensor:
        """[tokens, hidden]."""
        return self.tensors[f"{name}.weight"][torch.tensor(tokens)]

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """[tokens, outputs] of a projection stored as [outputs, inputs], with its bias if it has one."""
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def rms_norm(self, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        """[tokens, hidden]: over the root of the mean square, times the weight."""
        mean_square: torch.Tensor = x.square().mean(-1, keepdim=True)
        return x * (mean_square + eps).rsqrt() * self.tensors[f"{name}.weight"]


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    # Norms and biases are random too, and all is large enough for a wrong reading to show in the logits.
    if len(shape) > 1:
        return torch.randn(shape, generator=generator) * (1.5 / math.sqrt(shape[-1]))
    if name.endswith(".bias"):
        return torch.randn(shape, generator=generator) * 0.3
    return torch.rand(shape, generator=generator) + 0.5


def linear_shapes(name: str, outputs: int, inputs: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    """The shapes of a projection's tensors."""
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (outputs, inputs)}
    return {**shapes, f"{name}.bias": (outputs,)} if bias else shapes


def heads_of(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[tokens, heads, D] of [tokens, heads * D]."""
    return x.reshape(len(x), -1, head_dim)


def inverse_frequencies(dims: int, base: float) -> torch.Tensor:
    """[dims / 2]: radians per position of each pair of turning dimensions (RoFormer, arXiv 2104.09864)."""
    return 1.0 / base ** (torch.arange(0, dims, 2).float() / dims)


def rotate(x: torch.Tensor, dims: int, base: float, *, neighbours: bool = False, stretch: float = 1.0) -> torch.Tensor:
    """[tokens, heads, D]: the first `dims` dimensions of each head turned by its token's position, the rest as they are.

    Args:
        x: [tokens, heads, D]; token i is at position i.
        dims: How many turn.
        base: Of the frequencies.
        neighbours: Pairs are (0, 1), (2, 3), ... as in the paper; else (0, dims / 2), (1, dims / 2 + 1), ... as in GPT-NeoX.
        stretch: What positions are divided by (arXiv 2306.15595).
    """
    positions = torch.arange(len(x)).float() / stretch
    angles = torch.outer(positions, inverse_frequencies(dims, base))[:, None]
    cos, sin = angles.cos(), angles.sin()
    turning, still = x[..., :dims], x[..., dims:]
    if neighbours:
        first, second = turning[..., 0::2], turning[..., 1::2]
    else:
        first, second = turning[..., : dims // 2], turning[..., dims // 2 :]
    turned = (first * cos - second * sin, first * sin + second * cos)
    together = torch.stack(turned, dim=-1).flatten(-2) if neighbours else torch.cat(turned, dim=-1)
    return torch.cat((together, still), dim=-1)


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor | None = None) -> torch.Tensor:
    """[tokens, heads * D]: each token attends to itself and all before it.

    Args:
        q: [tokens, heads, D].
        k: [tokens, groups, D]; group g serves heads g * heads / groups and following.
        v: [tokens, groups, D].
        slopes: [heads]: what a score loses per token of distance; None = nothing.
    """
    num_tokens, num_heads, head_dim = q.shape
    k, v = (part.repeat_interleave(num_heads // part.shape[1], dim=1) for part in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(head_dim)
    positions = torch.arange(num_tokens)
    distances = positions[:, None] - positions[None, :]  # [queries, keys]
    if slopes is not None:
        scores = scores - slopes[:, None, None] * distances
    scores = scores.masked_fill(distances < 0, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)


def turning_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, turn: Callable[[torch.Tensor], torch.Tensor], streaming: Streaming | None
) -> torch.Tensor:
    """[tokens, heads * D]: causal attention whose queries and keys turn with their positions.

    With a cache as StreamingLLM's (arXiv 2309.17453, section 3.2) each token attends to what the cache holds when it has come in, and all
    positions are those inside the cache, so that every key turns anew for every token.

    Args:
        q: [tokens, heads, D], not turned.
        k: [tokens, groups, D], likewise.
        v: [tokens, groups, D].
        turn: Turns consecutive tokens' heads, the first token at position 0.
        streaming: None = each token attends to itself and all before it.
    """
    if streaming is None:
        return causal_attention(turn(q), turn(k), v)
    rows = []
    for newest in range(len(q)):
        cached = [token for token in range(newest + 1) if token < streaming.sinks or token > newest - streaming.window]
        rows.append(causal_attention(turn(q[cached]), turn(k[cached]), v[cached])[-1])
    return torch.stack(rows)


@dataclass(frozen=True)
class ReferenceCase:
    """One small model that a loader is held against.

    Attributes:
        name: Of the case, its family first.
        architecture: As config.json names it.
        family: Its reference.
        options: What differs from the reference's defaults.
        streaming: How it is served; None = as published.
    """

    name: str
    architecture: str
    family: type[WrittenModel]
    options: dict[str, Any] = field(default_factory=dict)
    streaming: Streaming | None = None

    def build(self, seed: int = 0) -> WrittenModel:
        """The model, with random parameters of that seed."""
        # A reference's own constructor takes the architecture first; the base class's, which it calls, does not.
        family: Any = self.family
        options = self.options if self.streaming is None else {**self.options, "streaming": self.streaming}
        model: WrittenModel = family(self.architecture, seed=seed, **options)
        return model
