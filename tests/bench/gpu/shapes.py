"""Sizes of what is measured: those of an 8B Llama, and small ones to try the benches where there is no GPU."""

from __future__ import annotations

from typing import NamedTuple

PAGE_SIZE_TOKENS = 16


class Prefill(NamedTuple):
    """Requests with so many new tokens each, behind so many that are there already."""

    requests: int
    tokens: int
    before: int = 0

    def __str__(self) -> str:
        return f"{self.requests}x{self.tokens}" + (f"+{self.before}" if self.before else "")


class Sizes(NamedTuple):
    """Sizes of a model and of loads.

    Attributes:
        heads: Query heads.
        kv_heads: Key heads.
        head_dim: D.
        hidden: Width between layers.
        inner: Width inside the MLP.
        products: Outputs and inputs of each weight, by name.
        decodes: Requests and tokens of each.
        prefills: See there.
        rows: Of row kernels.
        product_rows: Of products.
        cold_bytes: Inputs are rotated until they are so large in all: several times what the largest L2 of today holds.
    """

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    products: dict[str, tuple[int, int]]
    decodes: tuple[tuple[int, int], ...]
    prefills: tuple[Prefill, ...]
    rows: tuple[int, ...]
    product_rows: tuple[int, ...]
    cold_bytes: int


LLAMA_8B = Sizes(
    heads=32,
    kv_heads=8,
    head_dim=128,
    hidden=4096,
    inner=14336,
    products={
        "qkv": (6144, 4096),
        "o": (4096, 4096),
        "gate_up": (28672, 4096),
        "down": (4096, 14336),
        "head": (128256, 4096),
    },
    decodes=((1, 1024), (1, 32768), (16, 8192), (64, 1024), (256, 1024)),
    prefills=(Prefill(1, 2048), Prefill(8, 512), Prefill(1, 8192), Prefill(1, 512, 8192), Prefill(1, 128, 32768), Prefill(8, 64, 8192)),
    rows=(1, 64, 2048),
    product_rows=(1, 16, 64, 256, 2048),
    cold_bytes=256 << 20,
)

TRIAL = Sizes(
    heads=4,
    kv_heads=2,
    head_dim=64,
    hidden=128,
    inner=256,
    products={"qkv": (256, 128), "down": (128, 256)},
    decodes=((1, 40), (3, 17)),
    prefills=(Prefill(1, 24), Prefill(2, 5, 20)),
    rows=(1, 5),
    product_rows=(1, 20),
    cold_bytes=0,
)
"""Small: to see that everything runs."""
