"""A client that streams a long answer through all stages, and knows whether it came whole."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp

# As inside the cluster; gateways without keys refuse names that are none of theirs.
_HEADERS = {"Host": "gateway:8000"}
_PROMPT = "Tell a long story about a river and the people who live at it."


class Stream:
    """One answer, from its question on.

    Args:
        address: Of a gateway's pod.
        tokens: How many the answer has.
        kept: Whether the answer is kept in the cache, as those are not that go on over the model's end.
    """

    def __init__(self, address: str, tokens: int, *, kept: bool = False) -> None:
        self.text = ""
        self.deltas = 0
        self._tokens = tokens
        self._kept = kept
        self._task = asyncio.create_task(self._run(f"http://{address}:8000/v1/chat/completions"))

    @property
    def under_way(self) -> bool:
        """Whether it goes on."""
        return not self._task.done()

    async def begun(self, deltas: int = 4) -> None:
        """Returns when so much of it has come.

        Raises:
            AssertionError: it ended before.
        """
        while self.deltas < deltas:
            if self._task.done():
                self._task.result()
                raise AssertionError(f"the answer ended after {self.deltas} deltas")
            await asyncio.sleep(0.01)

    async def whole(self) -> str:
        """The answer's text.

        Raises:
            AssertionError: it did not come whole.
        """
        await self._task
        return self.text

    async def _run(self, url: str) -> None:
        question = {
            "messages": [{"role": "user", "content": _PROMPT}],
            "stream": True,
            "temperature": 0,
            "ignore_eos": not self._kept,
            "max_tokens": self._tokens,
            "stream_options": {"include_usage": True},
        }
        finish, usage, ended = "", 0, False
        timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.post(url, json=question, headers=_HEADERS) as response:
            assert response.status == 200, f"{response.status}: {await response.text()}"
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    ended = True
                    continue
                event: dict[str, Any] = json.loads(line[6:])
                assert "error" not in event, f"after {self.deltas} deltas came {event['error']}"
                usage = (event.get("usage") or {}).get("completion_tokens", usage)
                for choice in event["choices"]:
                    self.deltas += 1
                    self.text += choice["delta"].get("content") or ""
                    finish = choice.get("finish_reason") or finish
        assert (finish, usage, ended) == ("length", self._tokens, True), (
            f"it ended with {finish}, {usage} of {self._tokens} tokens, {ended=}"
        )


async def tokens_per_second(address: str) -> float:
    """How fast an answer comes on this machine."""
    stream = Stream(address, 64)
    await stream.begun()
    begun, first = time.monotonic(), stream.deltas
    await stream.whole()
    return max(1.0, (64 - first) / (time.monotonic() - begun))
