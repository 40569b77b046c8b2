"""Answers that are looked for, as a door reads them: all at once, at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from gateway.flow.generations.answer import Delta
from gateway.flow.generations.generation import CacheReport, Piece, Timeline, Usage, Writer
from gateway.flow.generations.waking import done_or_woken
from gateway.tools.answer_parser import AnswerForm
from triserve.rpc.traces.spans import OpenSpan


class Searching(Protocol):
    """A search that is run once."""

    @property
    def name(self) -> str:
        """What it is called in traces."""

    @property
    def num_requests(self) -> int:
        """Requests that replicas were given for it so far."""

    async def run(self) -> list[Delta]:
        """The answers, whole, one prompt's after the other's, the best first.

        Raises:
            ServiceError: a replica's, or none is there.
        """

    def usage(self) -> Usage:
        """What it has cost so far: every token that was made, returned or not."""

    def timeline(self) -> Timeline:
        """Where its time has gone so far."""


class SearchGeneration:
    """Runs searches, one for each prompt or one for all; implements `Generation`.

    Args:
        searches: not begun; they run side by side.
        prompts: token ids of the prompts.
        n: answers to each.
        idle_s: `next` returns nothing after so long, again and again; None = never.
        span: of the call; None = it is not traced.
    """

    def __init__(
        self, searches: Sequence[Searching], prompts: Sequence[Sequence[int]], *, n: int, idle_s: float | None, span: OpenSpan | None
    ) -> None:
        # Answers of a search are neither looked for in the prompt cache nor kept there.
        self.cache = CacheReport("bypass")
        self.saved_s = 0.0
        self.system_fingerprint = ""
        self.form: AnswerForm | None = None
        self.finished = False
        # Once they are there.
        self.answers: list[Delta] = []
        self._searches = searches
        self._prompts = prompts
        self._n = n
        self._idle_s = idle_s
        self._woken = asyncio.Event()
        self._running = asyncio.create_task(self._run(span), name="search")

    async def next(self) -> list[Piece]:
        """See `Generation.next`."""
        if not await done_or_woken(self._running, self._woken, idle_s=self._idle_s):
            return []
        self.answers = self._running.result()
        self.finished = True
        return [Piece(index, delta) for index, delta in enumerate(self.answers)]

    def usage(self) -> Usage:
        """See `Searching`."""
        return Usage(*map(sum, zip(*(search.usage() for search in self._searches), strict=True)))

    def timeline(self) -> Timeline:
        """See `Searching`."""
        return Timeline(*map(max, zip(*(search.timeline() for search in self._searches), strict=True)))

    @property
    def kind(self) -> str:
        """What the searches are called."""
        return self._searches[0].name

    @property
    def num_requests(self) -> int:
        """Requests that replicas were given so far."""
        return sum(search.num_requests for search in self._searches)

    def prompt_token_ids(self, choice: int) -> Sequence[int]:
        """The prompt that a choice answers."""
        return self._prompts[choice // self._n]

    def write_to(self, writer: Writer) -> None:
        """Does nothing: there are no deltas to be written early."""

    def wake(self) -> None:
        """See `Generation`."""
        self._woken.set()

    def close(self) -> None:
        """Ends the search; what it has asked of replicas is aborted."""
        self._running.cancel()
        if self._running.done() and not self._running.cancelled():
            # Whoever left did not hear of a failure.
            self._running.exception()

    async def _run(self, span: OpenSpan | None) -> list[Delta]:
        if span is None:
            return await self._run_all()
        with span.child("search") as own:
            try:
                return await self._run_all()
            finally:
                own.attributes |= {"triserve.search.kind": self.kind, "triserve.search.requests": self.num_requests}

    async def _run_all(self) -> list[Delta]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(search.run()) for search in self._searches]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [delta for task in tasks for delta in task.result()]
