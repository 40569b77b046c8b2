"""Compares spelling where there is no model: hashes of words and of runs of characters, counted into buckets."""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prompt_cache.embedding.embedder import Vector
from prompt_cache.embedding.worker_thread import WorkerThread

DIMENSIONS = 1024
MAX_CHARS = 8192

_RUN_LENGTHS = (3, 4, 5)
# A word counts as much as this many runs of its characters.
_WORD_WEIGHT = 3
_SIGN_BIT = 63
# From the splitmix64 generator: its step and the factors of its finishing mix.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_LAST_SHIFT = np.uint64(31)


class NgramEmbedder:
    """Embeds a text as signed counts of its words and of its runs of 3 to 5 characters, hashed into 1,024 buckets, at unit length.

    Case, and how characters are composed, make no difference. The same text gives the same bits on every machine: hashes are fixed, sums are of
    integers. It finds other orders and other forms of the same words; of meaning it knows nothing.
    """

    def __init__(self) -> None:
        self._thread = WorkerThread("ngram-embedder")

    @property
    def id(self) -> str:
        """Goes up when vectors change."""
        return f"ngram-{DIMENSIONS}/1"

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return DIMENSIONS

    @property
    def is_weak(self) -> bool:
        """True: it compares spelling."""
        return True

    async def embed(self, texts: Sequence[str]) -> list[Vector | None]:
        """As the protocol says; None also for a text of more than `MAX_CHARS` characters."""
        return await self._thread.run(lambda: [ngram_vector(text) for text in texts])

    async def close(self) -> None:
        """Ends the thread."""
        await self._thread.close()


def ngram_vector(text: str) -> Vector | None:
    """The vector of a text, [DIMENSIONS]; None if it is empty, too long or no Unicode."""
    if len(text) > MAX_CHARS:
        return None
    words = unicodedata.normalize("NFKC", text).casefold().split()
    try:
        points = np.frombuffer(f" {' '.join(words)} ".encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    except UnicodeEncodeError:
        return None
    if not words:
        return None
    counts = np.zeros(DIMENSIONS, np.int64)
    for length in _RUN_LENGTHS:
        _count(counts, _run_hashes(points, length), 1)
    _count(counts, _mixed(np.array([zlib.crc32(word.encode()) for word in words], np.uint64)), _WORD_WEIGHT)
    length = np.sqrt(np.float64((counts * counts).sum()))
    if not length:
        # Every count was cancelled by one of the other sign.
        return None
    vector: Vector = (counts / length).astype(np.float32)
    vector.setflags(write=False)
    return vector


def _count(counts: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint64], weight: int) -> None:
    signs = np.where(hashes >> np.uint64(_SIGN_BIT), -weight, weight)
    np.add.at(counts, (hashes % np.uint64(DIMENSIONS)).astype(np.int64), signs)


def _run_hashes(points: npt.NDArray[np.uint64], length: int) -> npt.NDArray[np.uint64]:
    """One hash for each run of so many characters; none if the text is shorter."""
    num_runs = max(0, len(points) - length + 1)
    hashes = np.full(num_runs, length, np.uint64)
    for offset in range(length):
        hashes = _mixed(hashes + points[offset : offset + num_runs])
    return hashes


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Values of which every bit depends on every bit of what is given."""
    mixed = values + _STEP
    for shift, factor in _MIX:
        mixed = (mixed ^ (mixed >> shift)) * factor
    return mixed ^ (mixed >> _LAST_SHIFT)
