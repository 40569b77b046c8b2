"""Mixtures of experts with weights of every format, beside torch's own products in groups."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from typing import NamedTuple

import torch

from compute_svc.kernels.grouped_mlp import GroupedMlps, aten, group_weights, grouped_mlp, reference
from compute_svc.kernels.linear import LinearWeight
from tests.bench.gpu.cases import Case, Prepared
from tests.bench.gpu.product_cases import Format, Weights
from tests.bench.gpu.shapes import TRIAL, Sizes
from tests.bench.gpu.timing import num_sets


class Mixture(NamedTuple):
    """Sizes of one."""

    name: str
    experts: int
    per_token: int
    hidden: int
    width: int


# Mixtral-8x7B and Qwen3-30B-A3B.
MIXTURES = (Mixture("8 of 14336", 8, 2, 4096, 14336), Mixture("128 of 768", 128, 8, 2048, 768))
_TRIAL = (Mixture("8 of 128", 8, 2, 128, 128),)
_TOKENS = (1, 16, 64, 2048)
_FORMATS: tuple[Format, ...] = ("bf16", "w8a8", "fp8", "int4-g128")
# Rows are rounded twice on their way.
_TOLERANCES: dict[Format, float] = {"bf16": 1e-2, "w8a8": 5e-2, "fp8": 1e-1, "int4-g128": 2e-2}


class Experts:
    """The weights of a mixture in one format; made when they are first asked for.

    Args:
        mixture: Sizes.
        weight_format: What weights are stored as.
        device: Where.
    """

    def __init__(self, mixture: Mixture, weight_format: Format, device: torch.device) -> None:
        self.mixture = mixture
        self.format = weight_format
        self.device = device

    def _weights(self) -> list[list[Weights]]:
        _, count, _, hidden, width = self.mixture
        shapes = ((width, hidden), (width, hidden), (hidden, width))
        return [[Weights(self.format, shape, self.device, 0) for shape in shapes] for _ in range(count)]

    @cached_property
    def drawn(self) -> list[list[Weights]]:
        """Gate, up and down of each."""
        return self._weights()

    @cached_property
    def mlps(self) -> GroupedMlps:
        """As the engine has them."""
        # A CPU would lay numbers out for products one after the other.
        is_plain = self.format == "bf16"
        packed = [[LinearWeight.plain(weight.codes, None) if is_plain else weight.packed[0] for weight in expert] for expert in self.drawn]
        into, down = group_weights([three[:2] for three in packed]), group_weights([three[2:] for three in packed])
        if into is None or down is None:
            raise NotImplementedError(f"no kernel takes {packed[0][0].layout} of experts")
        if not is_plain:
            for weight in (one for expert in self.drawn for one in expert):
                weight.packed.clear()
        return GroupedMlps(into, down, "silu")

    def num_bytes(self, chosen: torch.Tensor) -> float:
        """Of the weights of chosen experts, and of tokens."""
        of_expert = sum(weight.num_bytes for weight in self._weights()[0])
        return of_expert * len(set(chosen.flatten().tolist())) + len(chosen) * self.mixture.hidden * (2 + 4)


def expert_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Every mixture in every format at every number of tokens."""
    is_trial = sizes.hidden == TRIAL.hidden
    for mixture in _TRIAL if is_trial else MIXTURES:
        for weight_format in _FORMATS if device.type == "cuda" else _FORMATS[:1]:
            experts = Experts(mixture, weight_format, device)
            for tokens in (1, 20) if is_trial else _TOKENS:
                chosen = _chosen(mixture, tokens, 0)
                num_bytes = experts.num_bytes(chosen)
                copies = num_sets(num_bytes, sizes.cold_bytes)
                operations = 6.0 * chosen.numel() * mixture.hidden * mixture.width
                kind = {"w8a8": "int8", "fp8": "fp8"}.get(weight_format, "bf16")
                for who in ("ours", "torch") if weight_format == "bf16" else ("ours",):
                    prepare = partial(_prepare, experts, tokens, copies, is_ours=who == "ours")
                    name = f"{weight_format} {mixture.name}"
                    yield Case("experts", name, f"{tokens}", who, num_bytes, prepare, operations, kind, _TOLERANCES[weight_format])


def _chosen(mixture: Mixture, tokens: int, seed: int) -> torch.Tensor:
    """Any experts, each as likely as others; other ones with another seed, so that no cache has their weights."""
    scores = torch.rand((tokens, mixture.experts), generator=torch.Generator().manual_seed(seed))
    return scores.topk(mixture.per_token).indices


def _prepare(experts: Experts, tokens: int, copies: int, *, is_ours: bool) -> Prepared:
    mixture, device = experts.mixture, experts.device
    x = torch.randn(tokens, mixture.hidden, dtype=torch.bfloat16, device=device)
    weights = torch.full((tokens, mixture.per_token), 1.0 / mixture.per_token, device=device)
    choices = [_chosen(mixture, tokens, seed).to(device) for seed in range(copies)]
    compute = grouped_mlp if is_ours else aten.grouped_mlp
    mlps = experts.mlps
    results: list[torch.Tensor] = []

    def call(chosen: torch.Tensor) -> None:
        results[:] = [compute(x, weights, chosen, mlps)]

    def exact() -> torch.Tensor:
        numbers = ([(weight.dense(slice(None)), None) for weight in expert] for expert in experts.drawn)
        return reference.grouped_mlp(x, weights, choices[0], numbers, "silu", None)

    return Prepared([partial(call, chosen) for chosen in choices], lambda: results[0], exact, "")
