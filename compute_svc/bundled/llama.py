"""A Llama in plain torch, to train and to check the bundled model; parameter names are those of published checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama; the defaults are the bundled model's."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 32
    mlp_size: int = 768
    max_positions: int = 2048
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5


class LayerKV(NamedTuple):
    """Keys and values of one layer so far, [B, num_kv_heads, T, head_dim] each, keys rotated."""

    keys: Tensor
    values: Tensor


class RMSNorm(nn.Module):
    """Divides by the root mean square, in float32, and scales."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (i, i + head_dim / 2) of x: [B, heads, T, head_dim] by the angles cos, sin: [B, 1, T, head_dim / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal self-attention with fewer key-value heads than query heads."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden_size, shape.num_heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, shape.num_kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, shape.num_kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.num_heads * shape.head_dim, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, past: LayerKV | None) -> tuple[Tensor, LayerKV]:
        batch, num_tokens, _ = x.shape
        queries, keys, values = (
            projection(x).view(batch, num_tokens, -1, self.shape.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        queries, keys = rotate(queries, *angles), rotate(keys, *angles)
        if past is not None:
            keys, values = torch.cat((past.keys, keys), dim=2), torch.cat((past.values, values), dim=2)
        group = self.shape.num_heads // self.shape.num_kv_heads
        # In float32 even while training in bfloat16: on a CPU the fused kernel is twice as fast so on short rows.
        with torch.autocast("cpu", enabled=False):
            mixed = F.scaled_dot_product_attention(
                queries.float(),
                keys.float().repeat_interleave(group, dim=1),
                values.float().repeat_interleave(group, dim=1),
                attn_mask=mask,
                is_causal=mask is None and num_tokens > 1,
            )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, num_tokens, -1)), LayerKV(keys, values)


class GatedMLP(nn.Module):
    """silu(gate) * up, projected back."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.mlp_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.mlp_size, bias=False)
        self.down_proj = nn.Linear(shape.mlp_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return mixed


class Layer(nn.Module):
    """Attention and MLP, each added to the residual stream; `dropout` acts on what is added."""

    def __init__(self, shape: LlamaShape, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = GatedMLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, past: LayerKV | None) -> tuple[Tensor, LayerKV]:
        mixed, present = self.self_attn(self.input_layernorm(x), angles, mask, past)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x))), present


class Trunk(nn.Module):
    """Everything below the logits."""

    def __init__(self, shape: LlamaShape, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape, dropout) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_eps)


class Llama(nn.Module):
    """The model, with embeddings tied to the output.

    Args:
        dropout: share of activations dropped while training, after the embedding and on every residual addition.
    """

    def __init__(self, shape: LlamaShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape, dropout)
        self.dropout = nn.Dropout(dropout)

    def initialise(self, seed: int) -> None:
        """Draws all weights from normal distributions, the same ones for the same seed; projections into the residual stream are drawn smaller."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / (2 * self.shape.num_layers) ** 0.5 if into_residual else 0.02
                nn.init.normal_(weight, std=std, generator=generator)

    def hidden(
        self, token_ids: Tensor, positions: Tensor, mask: Tensor | None = None, past: Sequence[LayerKV] | None = None
    ) -> tuple[Tensor, list[LayerKV]]:
        """Runs all layers.

        Args:
            token_ids: [B, T] int64.
            positions: [B, T] int64, the position of each token in its text.
            mask: [B, 1, T, T] bool, true where a query (third axis) may see a key; None = causal.
            past: keys and values of earlier tokens; then T must be 1 and mask None.

        Returns:
            Normed hidden states [B, T, hidden_size], and every layer's keys and values.
        """
        half = torch.arange(0, self.shape.head_dim, 2, dtype=torch.float32) / self.shape.head_dim
        turns = positions[:, None, :, None].float() / self.shape.rope_theta**half
        angles = (turns.cos(), turns.sin())
        x = self.dropout(self.model.embed_tokens(token_ids))
        angles = (angles[0].to(x.dtype), angles[1].to(x.dtype))
        present: list[LayerKV] = []
        for index, layer in enumerate(self.model.layers):
            x, kv = layer(x, angles, mask, past[index] if past else None)
            present.append(kv)
        return self.model.norm(x), present

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab_size] of hidden states [..., hidden_size]."""
        return hidden @ self.model.embed_tokens.weight.t()

    @torch.inference_mode()
    def generate(self, prompts: Tensor, max_tokens: int, stop_ids: Sequence[int]) -> list[list[int]]:
        """Answers prompts of one length greedily.

        Args:
            prompts: [B, T] int64.
            stop_ids: ids that end an answer; not part of it.

        Returns:
            The new ids of each row, at most `max_tokens`.
        """
        batch, length = prompts.shape
        hidden, past = self.hidden(prompts, torch.arange(length).expand(batch, length))
        rows: list[list[int]] = [[] for _ in range(batch)]
        going = set(range(batch))
        for step in range(max_tokens):
            drawn = self.logits(hidden[:, -1]).argmax(-1)
            for row in tuple(going):
                token = int(drawn[row])
                if token in stop_ids:
                    going.remove(row)
                else:
                    rows[row].append(token)
            if not going or step + 1 == max_tokens:
                break
            hidden, past = self.hidden(drawn[:, None], torch.full((batch, 1), length + step), past=past)
        return rows
