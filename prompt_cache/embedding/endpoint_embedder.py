"""Embeds by asking an endpoint that speaks OpenAI's `POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prompt_cache.embedding.embedder import EmbeddingFailed, TextRefused, Vector
from prompt_cache.embedding.folder import MAX_DIMENSIONS
from prompt_cache.embedding.probes import UNRELATED
from prompt_cache.embedding.vector_checks import SameVectorWatch, check_unrelated, digest_of
from prompt_cache.json_endpoint import EndpointFailed, JsonEndpoint, JsonEndpointConfig

MAX_TEXTS = 2048
_MIN_NORM = 1e-6
# Statuses that may be one text's fault: malformed, too large, not to be processed.
_TEXT_STATUSES = (400, 413, 422)


@dataclass(frozen=True, kw_only=True)
class EndpointConfig(JsonEndpointConfig):
    """An embeddings endpoint, such as "http://embeddings:8080/v1/embeddings", as its operator describes it.

    Attributes:
        revision: Goes into the embedder's id; to be changed when the model behind the name changes.
        dimensions: Of a vector; None = those of the first answer.
        window_chars: Longer texts get no vector. An endpoint may cut what is too long without a word, so that this must fit its model's window.

    Raises:
        ValueError: a field is out of its range; names it.
    """

    revision: str = ""
    dimensions: int | None = None
    window_chars: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimensions is not None and not 1 <= self.dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"dimensions is {self.dimensions}, it must be from 1 to {MAX_DIMENSIONS}")
        if self.window_chars < 1:
            raise ValueError(f"window_chars is {self.window_chars}, the least is 1")


class EndpointEmbedder:
    """Embeds by HTTP.

    Before its first text it asks for the vectors of sentences that have nothing to do with each other, and refuses an endpoint that gives them
    almost the same. Vectors are brought to unit length.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._dimensions = config.dimensions
        self._watch = SameVectorWatch()
        self._endpoint = JsonEndpoint(config, "the embeddings endpoint")
        self._start = asyncio.Lock()
        self._is_started = False

    @property
    def id(self) -> str:
        """Names endpoint, model, revision and number of dimensions.

        Raises:
            EmbeddingFailed: the configuration names no dimensions, and no answer has been had yet.
        """
        parts = (self._config.url, self._config.model, self._config.revision)
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return f"endpoint-{digest[:16]}/{self.dimensions}"

    @property
    def dimensions(self) -> int:
        """Length of a vector.

        Raises:
            EmbeddingFailed: the configuration does not name it, and no answer has been had yet.
        """
        if self._dimensions is None:
            raise EmbeddingFailed("the embeddings endpoint has not answered yet, and its dimensions are not configured")
        return self._dimensions

    @property
    def is_weak(self) -> bool:
        """False: it compares meaning."""
        return False

    async def start(self) -> None:
        """Asks for the vectors of built-in sentences, once; `embed` does it too.

        Raises:
            EmbeddingFailed: the endpoint fails, or its vectors are no use.
        """
        async with self._start:
            if self._is_started:
                return
            vectors = await self._vectors(UNRELATED)
            check_unrelated(UNRELATED, vectors)
            for text, vector in zip(UNRELATED, vectors, strict=True):
                self._watch.keep(_seen(text), vector)
            self._dimensions = len(vectors[0])
            self._is_started = True

    async def embed(self, texts: Sequence[str]) -> list[Vector | None]:
        """As the protocol says.

        Raises:
            EmbeddingFailed: no answer in time, an error, or an answer that is no use.
            TextRefused: the endpoint refuses one of the texts.
        """
        await self.start()
        whole = [text for text in texts if self._fits(text)]
        if not whole:
            return [None] * len(texts)
        vectors = await self._vectors(whole)
        self._watch.check([_seen(text) for text in whole], vectors)
        of_text = dict(zip(whole, vectors, strict=True))
        return [of_text.get(text) for text in texts]

    async def close(self) -> None:
        """Closes connections."""
        await self._endpoint.close()

    def _fits(self, text: str) -> bool:
        if len(text) > self._config.window_chars or not text.strip():
            return False
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
        return True

    async def _vectors(self, texts: Sequence[str]) -> list[Vector]:
        """Checked unit vectors of texts that fit."""
        if len(texts) > MAX_TEXTS:
            raise EmbeddingFailed(f"{len(texts)} texts at once, the most is {MAX_TEXTS}")
        body = await self._ask({"model": self._config.model, "input": list(texts), "encoding_format": "float"})
        try:
            rows = _rows(json.loads(body), len(texts))
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            # Not from: the error may show what the endpoint sent.
            raise EmbeddingFailed(f"the answer of the embeddings endpoint is malformed: {type(error).__name__}") from None
        return [_unit(row, self._dimensions or len(rows[0])) for row in rows]

    async def _ask(self, question: dict[str, Any]) -> bytes:
        try:
            return await self._endpoint.ask(question)
        except EndpointFailed as error:
            kind = TextRefused if error.status in _TEXT_STATUSES and self._is_started else EmbeddingFailed
            raise kind(str(error)) from None


def _rows(answer: Any, num_texts: int) -> list[list[Any]]:
    """The vectors in an answer in the order of the texts; ValueError, TypeError or KeyError where it is malformed."""
    items = answer["data"]
    rows = {item["index"]: item["embedding"] for item in items}
    if len(items) != num_texts or any(type(index) is not int for index in rows) or set(rows) != set(range(num_texts)):
        raise ValueError("each text has one vector")
    for row in rows.values():
        # A bool is an int to numpy.
        if not isinstance(row, list) or not 1 <= len(row) <= MAX_DIMENSIONS or any(type(value) not in (float, int) for value in row):
            raise ValueError("a vector is a list of numbers")
    return [rows[index] for index in range(num_texts)]


def _unit(row: list[Any], dimensions: int) -> Vector:
    if len(row) != dimensions:
        raise EmbeddingFailed(f"the embeddings endpoint gave a vector of {len(row)} dimensions, expected {dimensions}")
    try:
        numbers = np.array(row, dtype=np.float64)
    except OverflowError:
        raise EmbeddingFailed("the embeddings endpoint gave a number that is none") from None
    norm = float(np.linalg.norm(numbers))
    if not _MIN_NORM <= norm < np.inf:
        raise EmbeddingFailed(f"the embeddings endpoint gave a vector of the length {norm:.4g}")
    vector: Vector = (numbers / norm).astype(np.float32)
    vector.setflags(write=False)
    return vector


def _seen(text: str) -> bytes:
    """Digest of what every model tells apart: letters and digits, whatever their case and accents."""
    letters = (character for character in unicodedata.normalize("NFKD", text.casefold()) if character.isalnum())
    return digest_of("".join(letters).encode())
