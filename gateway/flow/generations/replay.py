"""An answer from the prompt cache, as a stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from gateway.flow.generations.answer import Delta
from gateway.flow.generations.generation import CacheReport, Piece, Timeline, Usage, Writer
from gateway.tools.answer_parser import AnswerForm
from prompt_cache import CachedAnswer


class ReplayedGeneration:
    """An answer the prompt cache had, delivered in the deltas in which it was made.

    Args:
        answer: what the cache had.
        prompt_token_ids: what it answers.
        cache: where it was found.
        tokens_per_s: how fast it is delivered; 0 = at once.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        answer: CachedAnswer,
        prompt_token_ids: Sequence[int],
        *,
        cache: CacheReport,
        tokens_per_s: float = 0.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.cache = cache
        self.saved_s = answer.took_ms / 1000
        self.system_fingerprint = ""
        self.form: AnswerForm | None = None
        self._answer = answer
        self._prompt_token_ids = prompt_token_ids
        self._tokens_per_s = tokens_per_s
        self._sleep = sleep
        self._left = deque(answer.deltas)

    @property
    def finished(self) -> bool:
        """Whether every delta was taken."""
        return not self._left

    async def next(self) -> list[Piece]:
        """The next delta, when it is due."""
        kept = self._left[0]
        # A long answer is many deltas, and a reader that is never made to wait would keep the event loop for itself.
        await self._sleep(len(kept.token_ids) / self._tokens_per_s if self._tokens_per_s else 0)
        self._left.popleft()
        return [Piece(0, Delta(kept.text, list(kept.token_ids), [], self._answer.finish_reason if self.finished else None))]

    def usage(self) -> Usage:
        """What is delivered; no token of the prompt was computed."""
        prompt_tokens = len(self._prompt_token_ids)
        return Usage(prompt_tokens, self._answer.completion_tokens, prompt_tokens)

    def timeline(self) -> Timeline:
        """No stage had any work."""
        return Timeline(0, 0, 0, 0)

    def prompt_token_ids(self, choice: int) -> Sequence[int]:
        """The prompt that its one choice answers."""
        return self._prompt_token_ids

    def write_to(self, writer: Writer) -> None:
        """Does nothing: whoever replays waits between two deltas."""

    def wake(self) -> None:
        """Does nothing: `next` never waits for long."""

    def close(self) -> None:
        """Does nothing: nothing is held."""
