"""A small client of the gateway's HTTP API: what chat and bench need, with errors made for people."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import aiohttp

from gateway.cli.event_stream import DONE, EventCutter

_CONNECT_S = 10.0


class ApiError(Exception):
    """The server refused or broke off; the message is for people."""


class ModelInfo(NamedTuple):
    """What a server serves."""

    name: str
    # Most tokens of prompt and answer together.
    max_model_len: int
    # Token ids of a prompt are below it.
    vocab_size: int


class ApiClient:
    """Asks one server.

    Args:
        url: such as "http://127.0.0.1:8000".
        api_key: empty = none.
    """

    def __init__(self, url: str, *, api_key: str) -> None:
        self._url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # No connection is kept: a chat waits longer between two questions than servers keep them.
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            connector=aiohttp.TCPConnector(force_close=True),
        )

    async def __aenter__(self) -> ApiClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Lets go of all connections."""
        await self._session.close()

    async def model(self) -> ModelInfo:
        """What the server serves.

        Raises:
            ApiError: it cannot be asked, or does not say what is needed.
        """
        try:
            async with self._session.get(f"{self._url}/v1/models") as response:
                body = await response.read()
                if response.status != 200:
                    raise ApiError(_refusal(response.status, body))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(self._unreachable(error)) from error
        try:
            model = json.loads(body)["data"][0]
            return ModelInfo(str(model["id"]), int(model["max_model_len"]), int(model["vocab_size"]))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ApiError(f"{self._url}/v1/models does not say id, max_model_len and vocab_size") from error

    async def system_prompt_ids(self, text: str) -> list[int]:
        """The token ids with which every chat under a system prompt begins.

        Raises:
            ApiError: the server cannot be asked, refuses, or its template has no place for a system prompt.
        """
        messages = [{"role": "system", "content": text}, {"role": "user", "content": "?"}]
        try:
            async with self._session.post(f"{self._url}/tokenize", json={"messages": messages}) as response:
                body = await response.read()
                if response.status != 200:
                    raise ApiError(_refusal(response.status, body))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(self._unreachable(error)) from error
        try:
            answer = json.loads(body)
            ids = [int(token) for token in answer["tokens"][: int(answer["system_tokens"])]]
        except (ValueError, KeyError, TypeError) as error:
            raise ApiError(f"{self._url}/tokenize does not say tokens and system_tokens") from error
        if not ids:
            raise ApiError("in this model's chats nothing that a system prompt decides comes before the first question")
        return ids

    async def stream_chat(self, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, Any]) -> AsyncGenerator[str, None]:
        """Yields the text of an answer as it comes.

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
                    raise ApiError(_refusal(response.status, await response.read()))
                cutter = EventCutter()
                async for piece in response.content.iter_any():
                    for event in cutter.feed(piece):
                        if event == DONE:
                            return
                        yield _delta_text(event)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(self._unreachable(error)) from error
        raise ApiError("the server broke the answer off")

    def _unreachable(self, error: BaseException) -> str:
        if isinstance(error, aiohttp.InvalidURL):
            return f"{self._url} is no address of a server"
        if isinstance(error, aiohttp.ClientConnectorError):
            return f"no server answers at {self._url}; start one with: triserve up"
        return f"the connection to {self._url} broke: {str(error) or type(error).__name__}"


def _delta_text(event: bytes) -> str:
    try:
        chunk = json.loads(event)
        if "error" in chunk:
            raise ApiError(f"the server broke the answer off: {chunk['error']['message']}")
        return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ApiError("the server sent an event that is no part of a chat") from error


def _refusal(status: int, body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered HTTP {status}"
