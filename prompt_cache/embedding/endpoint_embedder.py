"""Embeds by asking an endpoint that speaks OpenAI's `POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from prompt_cache.embedding.embedder import EmbeddingFailed, TextRefused, Vector
from prompt_cache.embedding.folder import MAX_DIMENSIONS
from prompt_cache.embedding.probes import UNRELATED
from prompt_cache.embedding.vector_checks import SameVectorWatch, check_unrelated, digest_of

MAX_TEXTS = 2048
_MIN_NORM = 1e-6
# Statuses that may be one text's fault: malformed, too large, not to be processed.
_TEXT_STATUSES = (400, 413, 422)
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """An endpoint as its operator describes it; nothing of it comes from a client.

    Attributes:
        url: Of the resource itself, such as "http://embeddings:8080/v1/embeddings".
        model: Sent as `model`.
        revision: Goes into the embedder's id; to be changed when the model behind the name changes.
        key: Sent as a bearer token; None = none.
        dimensions: Of a vector; None = those of the first answer.
        window_chars: Longer texts get no vector. An endpoint may cut what is too long without a word, so that this must fit its model's window.
        timeout_s: Limit on one request.
        max_response_bytes: Limit on one answer.

    Raises:
        ValueError: a field is out of its range; names it.
    """

    url: str
    model: str
    revision: str = ""
    key: str | None = field(default=None, repr=False)
    dimensions: int | None = None
    window_chars: int = 1000
    timeout_s: float = 1.0
    max_response_bytes: int = 8 * 1024 * 1024

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must be of the form http://HOST/v1/embeddings or https://...")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must hold no user and no password: the key is a field of its own")
        if not 1 <= len(self.model) <= 200:
            raise ValueError(f"model has {len(self.model)} characters, it must have 1 to 200")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and self.key):
            raise ValueError("key must be printable ASCII characters")
        if self.dimensions is not None and not 1 <= self.dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"dimensions is {self.dimensions}, it must be from 1 to {MAX_DIMENSIONS}")
        for name, least in (("window_chars", 1), ("timeout_s", 0.001), ("max_response_bytes", 1024)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}, the least is {least}")


class EndpointEmbedder:
    """Embeds by HTTP.

    Before its first text it asks for the vectors of sentences that have nothing to do with each other, and refuses an endpoint that gives them
    almost the same. Vectors are brought to unit length. Proxies of the environment are not used and redirects not followed.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._dimensions = config.dimensions
        self._watch = SameVectorWatch()
        self._session: aiohttp.ClientSession | None = None
        self._start = asyncio.Lock()
        self._is_started = False
        self._is_closed = False

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
        self._is_closed = True
        if self._session is not None:
            await self._session.close()

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
        """The body of the answer to one request. Errors hold neither key nor texts."""
        if self._is_closed:
            raise EmbeddingFailed("the embedder is closed")
        if self._session is None:
            # Not decompressed: a small answer could become a large one.
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._config.timeout_s), auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        headers = {"Accept-Encoding": "identity"}
        if self._config.key is not None:
            headers["Authorization"] = f"Bearer {self._config.key}"
        try:
            async with self._session.post(self._config.url, json=question, headers=headers, allow_redirects=False) as response:
                if response.status in _TEXT_STATUSES and self._is_started:
                    raise TextRefused(f"the embeddings endpoint answered with status {response.status}")
                if response.status != 200:
                    raise EmbeddingFailed(f"the embeddings endpoint answered with status {response.status}")
                return await self._read(response)
        except TimeoutError:
            raise EmbeddingFailed(f"the embeddings endpoint took longer than {self._config.timeout_s} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EmbeddingFailed(f"the embeddings endpoint cannot be asked: {type(error).__name__}") from None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > self._config.max_response_bytes:
                raise EmbeddingFailed(f"the answer of the embeddings endpoint is longer than {self._config.max_response_bytes} bytes")
        return bytes(body)


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
