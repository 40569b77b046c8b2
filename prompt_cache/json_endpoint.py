"""Asks an HTTP endpoint that takes JSON and answers with JSON: an embedder's, a judge's. Nothing of its address comes from a client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

_CHUNK_BYTES = 64 * 1024


class EndpointFailed(Exception):
    """No answer in time, none that is of use, or a refusal. Its text holds neither key nor what was asked.

    Attributes:
        status: HTTP status of a refusal; None = there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class JsonEndpointConfig:
    """An endpoint as its operator describes it.

    Attributes:
        url: Of the resource itself.
        model: Sent as `model`.
        key: Sent as a bearer token; None = none.
        timeout_s: Limit on one request.
        max_response_bytes: Limit on one answer.

    Raises:
        ValueError: a field is out of its range; names it.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 1.0
    max_response_bytes: int = 8 * 1024 * 1024

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must be of the form http://HOST/PATH or https://...")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must hold no user and no password: the key is a field of its own")
        if not 1 <= len(self.model) <= 200:
            raise ValueError(f"model has {len(self.model)} characters, it must have 1 to 200")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and self.key):
            raise ValueError("key must be printable ASCII characters")
        for name, least in (("timeout_s", 0.001), ("max_response_bytes", 1024)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}, the least is {least}")


class JsonEndpoint:
    """One endpoint. Proxies of the environment are not used and redirects not followed.

    Args:
        config: Where it is, and bounds.
        name: Of the endpoint in errors, such as "the embeddings endpoint".
    """

    def __init__(self, config: JsonEndpointConfig, name: str) -> None:
        self._config = config
        self._name = name
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    async def ask(self, question: dict[str, Any], headers: Mapping[str, str] | None = None) -> bytes:
        """The body of the answer to one request.

        Args:
            question: Its body.
            headers: Beside those that are always sent.

        Raises:
            EndpointFailed: there is none.
        """
        if self._is_closed:
            raise EndpointFailed(f"{self._name} is closed")
        if self._session is None:
            # Not decompressed: a small answer could become a large one.
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._config.timeout_s), auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        sent = {**(headers or {}), "Accept-Encoding": "identity"}
        if self._config.key is not None:
            sent["Authorization"] = f"Bearer {self._config.key}"
        try:
            async with self._session.post(self._config.url, json=question, headers=sent, allow_redirects=False) as response:
                if response.status != 200:
                    raise EndpointFailed(f"{self._name} answered with status {response.status}", response.status)
                return await self._read(response)
        except TimeoutError:
            raise EndpointFailed(f"{self._name} took longer than {self._config.timeout_s} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EndpointFailed(f"{self._name} cannot be asked: {type(error).__name__}") from None

    async def close(self) -> None:
        """Closes connections; nothing is asked any more."""
        self._is_closed = True
        if self._session is not None:
            await self._session.close()

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > self._config.max_response_bytes:
                raise EndpointFailed(f"the answer of {self._name} is longer than {self._config.max_response_bytes} bytes")
        return bytes(body)
