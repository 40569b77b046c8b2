"""Packs matrices into every block format there is: by the published library where it can, else as random blocks of sensible size."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import gguf
import numpy as np

from tests.fakes.gguf_files import Array, Pack

# Of formats the library only unpacks: where a block has its float16 scales, and what bytes they may not be.
_SCALES_AT = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ1_S": (0,),
}
_SCALE = {"Q6_K": 0.0003, "Q3_K": 0.002, "Q2_K": 0.004, "IQ4_NL": 0.001, "IQ4_XS": 0.0001, "Q4_K": 0.0004, "Q5_K": 0.0002}

FORMATS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", *_SCALES_AT)
"""What `packing` can write."""


def random_blocks(name: str, count: int, generator: np.random.Generator) -> Array:
    """[count, bytes]: blocks whose every bit but those of the scales is random."""
    code = gguf.GGMLQuantizationType[name]
    blocks = generator.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[code][1]), dtype=np.uint8)
    for position in _SCALES_AT.get(name, ()):
        scales = (generator.uniform(0.2, 1, count) * _SCALE.get(name, 0.001)).astype(np.float16)
        blocks[:, position : position + 2] = scales[:, None].view(np.uint8)
    return blocks


def packing(formats: Iterable[str], *, seed: int = 0) -> Pack:
    """Packs matrices by turns in each of the formats; one whose rows are no whole blocks stays float32."""
    generator = np.random.default_rng(seed)
    turns = itertools.cycle(formats)

    def pack(rows: Array, name: str) -> tuple[Array, gguf.GGMLQuantizationType]:
        block_format = next(turns)
        code = gguf.GGMLQuantizationType[block_format]
        weights, num_bytes = gguf.GGML_QUANT_SIZES[code]
        if rows.shape[-1] % weights:
            return rows, gguf.GGMLQuantizationType.F32
        if block_format in _SCALES_AT:
            blocks = random_blocks(block_format, rows.size // weights, generator)
            return blocks.reshape(rows.shape[0], rows.shape[1] // weights * num_bytes), code
        return gguf.quantize(rows, code), code

    return pack
