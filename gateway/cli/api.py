"""A small client of the gateway's HTTP API: what chat and bench need, with errors made for people."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import aiohttp

from gateway.cli.event_stream import DONE, EventCutter

API_KEY_VARIABLE = "TRISERVE_API_KEY"

_CONNECT_S = 10.0


class ApiError(Exception):
    """The server refused or broke off; the message is for people.

    Args:
        message: what went wrong, and what to do.
        field: of the request, that the server refuses; empty = it names none.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class ModelInfo(NamedTuple):
    """What a server serves. None = it does not say: OpenAI's API asks for a name alone."""

    name: str
    # Most tokens of prompt and answer together.
    max_model_len: int | None = None
    # Token ids of a prompt are below it.
    vocab_size: int | None = None


class Thought(str):
    """A piece of what the model thinks before it answers."""

    __slots__ = ()


class ApiClient:
    """Asks one server.

    Args:
        url: such as "http://127.0.0.1:8000".
        api_key: empty = none.
        key_from: where a key is given, in words.
        ca: what the certificate of an https:// server is checked against; None = what this machine trusts.
    """

    def __init__(
        self, url: str, *, api_key: str, key_from: str = f"--api-key or the variable {API_KEY_VARIABLE}", ca: Path | None = None
    ) -> None:
        self._key_from = key_from
        self._url = url.rstrip("/")
        self._has_key = bool(api_key)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # No connection is kept: a chat waits longer between two questions than servers keep them.
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            connector=aiohttp.TCPConnector(force_close=True, ssl=True if ca is None else ssl.create_default_context(cafile=ca)),
        )

    async def __aenter__(self) -> ApiClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Lets go of all connections."""
        await self._session.close()

    async def model(self, name: str | None = None) -> ModelInfo:
        """What the server serves.

        Args:
            name: of the model; None = the first one that it lists.

        Raises:
            ApiError: it cannot be asked, or does not list the model.
        """
        body = await self._ask("GET", "/v1/models")
        try:
            listed = {str(model["id"]): model for model in json.loads(body)["data"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ApiError(f"{self._url}/v1/models is no list of models as of OpenAI's API") from error
        if not listed:
            raise ApiError(f"{self._url}/v1/models lists no model")
        chosen = next(iter(listed)) if name is None else name
        if chosen not in listed:
            raise ApiError(f"{self._url} serves no {chosen}; it lists {', '.join(sorted(listed))[:500]}", field="model")
        return ModelInfo(chosen, _count(listed[chosen], "max_model_len"), _count(listed[chosen], "vocab_size"))

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """The JSON of an answer.

        Raises:
            ApiError: the server cannot be asked, refuses, or its answer is no JSON.
        """
        answer = await self._ask(method, path, body)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise ApiError(f"{self._url}{path} answered what is no JSON") from error

    async def system_prompt_ids(self, text: str) -> list[int]:
        """The token ids with which every chat under a system prompt begins.

        Raises:
            ApiError: the server cannot be asked, refuses, or its template has no place for a system prompt.
        """
        messages = [{"role": "system", "content": text}, {"role": "user", "content": "?"}]
        body = await self._ask("POST", "/tokenize", {"messages": messages})
        try:
            answer = json.loads(body)
            ids = [int(token) for token in answer["tokens"][: int(answer["system_tokens"])]]
        except (ValueError, KeyError, TypeError) as error:
            raise ApiError(f"{self._url}/tokenize does not say tokens and system_tokens") from error
        if not ids:
            raise ApiError("in this model's chats nothing that a system prompt decides comes before the first question")
        return ids

    async def stream_chat(self, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, Any]) -> AsyncGenerator[str, None]:
        """Yields the text of an answer as it comes, and what the model thinks before it as `Thought`.

        Args:
            messages: the chat so far, each with role and content.
            parameters: further fields of the request, such as temperature.

        Raises:
            ApiError: the server cannot be asked, refuses, or breaks off.
        """
        body = {"messages": list(messages), "stream": True, **parameters}
        try:
            async with self._session.post(f"{self._url}/v1/chat/completions", json=body) as response:
                if response.status != 200:
                    raise self._refusal(response.status, await response.read())
                cutter = EventCutter()
                async for piece in response.content.iter_any():
                    for event in cutter.feed(piece):
                        if event == DONE:
                            return
                        for text in _delta_texts(event):
                            yield text
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(self._unreachable(error)) from error
        raise ApiError("the server broke the answer off")

    async def _ask(self, method: str, path: str, body: object = None) -> bytes:
        """The body of an answer with status 200.

        Raises:
            ApiError: the server cannot be asked, or refuses.
        """
        try:
            async with self._session.request(method, f"{self._url}{path}", json=body) as response:
                answer = await response.read()
                if response.status != 200:
                    raise self._refusal(response.status, answer)
                return answer
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(self._unreachable(error)) from error

    def _refusal(self, status: int, body: bytes) -> ApiError:
        if status == 401:
            # What the server says of it is made for programs.
            if self._has_key:
                return ApiError(f"{self._url} does not know the key of {self._key_from}")
            return ApiError(f"{self._url} asks for an API key: use {self._key_from}")
        try:
            error = json.loads(body)["error"]
            return ApiError(str(error["message"]), field=str(error.get("param") or ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return ApiError(f"{self._url} answered HTTP {status}, without a reason in OpenAI's form")

    def _unreachable(self, error: BaseException) -> str:
        if isinstance(error, aiohttp.InvalidURL):
            return f"{self._url} is no address of a server"
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            why = getattr(error.certificate_error, "verify_message", "") or error.certificate_error
            return f"the certificate of {self._url} is refused: {why}; --ca FILE says what it is checked against"
        if isinstance(error, aiohttp.ClientConnectorSSLError):
            return f"{self._url} does not speak TLS as it should: {error.os_error.strerror or error}"
        if isinstance(error, aiohttp.ClientConnectorError):
            return f"no server answers at {self._url}; start one with: triserve up"
        return f"the connection to {self._url} broke: {str(error) or type(error).__name__}"


def _delta_texts(event: bytes) -> list[str]:
    try:
        chunk = json.loads(event)
        if "error" in chunk:
            raise ApiError(f"the server broke the answer off: {chunk['error']['message']}")
        deltas = [choice["delta"] for choice in chunk["choices"]]
        thoughts = [Thought(delta.get("reasoning_content") or "") for delta in deltas]
        return [text for text in (*thoughts, *(delta.get("content") or "" for delta in deltas)) if text]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ApiError("the server sent an event that is no part of a chat") from error


def _count(model: Mapping[str, Any], name: str) -> int | None:
    value = model.get(name)
    return value if isinstance(value, int) and value > 0 else None
