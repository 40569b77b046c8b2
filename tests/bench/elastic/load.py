"""Chats of the lengths people have, sent when their time has come and not when an earlier one is done."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import aiohttp

from gateway.cli.measuring.workload import BUNDLED_LENGTHS, read_lengths

_CHARACTERS_PER_TOKEN = 4
_SYSTEM = "You are a careful assistant. Answer in plain words, say what you do not know, and keep to what was asked. " * 4
# English that nobody edits.
_WORDS = (Path(__file__).parents[3] / "LICENSE").read_text().split()
_FEW = 12
_TEXT = re.compile(rb'"content": ?"[^"]')
# No client has more under way.
_MOST_OPEN = 4096


class Question(NamedTuple):
    """A chat whose last turn is to be answered."""

    messages: list[dict[str, str]]
    max_tokens: int


class Phase(NamedTuple):
    """Chats arrive at random, so many a second in the mean."""

    seconds: float
    rate: float


class Outcome(NamedTuple):
    """What became of one chat.

    Attributes:
        at_s: When it was due, from the beginning of the load.
        ttft_s: From then to its first text; None = there was none.
        total_s: From then to its end.
        tokens: Of the answer.
        fault: Why it is not the right answer, whole; None = it is.
    """

    at_s: float
    ttft_s: float | None
    total_s: float
    tokens: int
    fault: str | None


def make_questions(count: int, seed: int, *, max_tokens: int) -> list[Question]:
    """Different chats, the same for a seed."""
    drawn = random.Random(seed)
    lengths = drawn.sample(read_lengths(BUNDLED_LENGTHS), count)
    return [_question(number, drawn, length.prompt, min(length.output, max_tokens)) for number, length in enumerate(lengths)]


def _question(number: int, drawn: random.Random, prompt_tokens: int, max_tokens: int) -> Question:
    turns = drawn.choice((1, 1, 3, 5))
    messages = [{"role": "system", "content": _SYSTEM}]
    for turn in range(turns):
        words: list[str] = [f"({number}.{turn})"]
        while sum(map(len, words)) + len(words) < prompt_tokens * _CHARACTERS_PER_TOKEN / turns:
            words.append(drawn.choice(_WORDS))
        messages.append({"role": "assistant" if turn % 2 else "user", "content": " ".join(words)})
    return Question(messages, max_tokens)


class Load:
    """Asks a gateway, and holds every answer against the one that it gave to the same question before the load.

    Args:
        url: Of its HTTP.
        questions: Asked in turn.
        seed: Of the gaps.

    Attributes:
        open: Chats under way.
    """

    def __init__(self, url: str, questions: Sequence[Question], seed: int) -> None:
        self._url = url
        self._questions = questions
        self._seed = seed
        self._expected: list[str] = []
        self.open = 0

    async def learn(self) -> None:
        """Has every question answered, a few at once: what is right is known from a pipeline that has time."""
        few = asyncio.Semaphore(_FEW)

        async def learnt(question: Question) -> str:
            async with few:
                answer = await _answer(session, question)
            assert answer.fault is None, answer.fault
            return answer.text

        async with self._session() as session:
            self._expected = await asyncio.gather(*map(learnt, self._questions))

    async def run(self, phases: Sequence[Phase]) -> list[Outcome]:
        """Sends everything, at the same times whenever it is called; returns when the last answer has come."""
        drawn, began, at_s, end_s = random.Random(self._seed), time.perf_counter(), 0.0, 0.0
        asking: list[asyncio.Task[Outcome]] = []
        async with self._session() as session:
            for phase in phases:
                at_s, end_s = end_s, end_s + phase.seconds
                while (at_s := at_s + drawn.expovariate(phase.rate)) < end_s:
                    await asyncio.sleep(max(0.0, began + at_s - time.perf_counter()))
                    asking.append(asyncio.create_task(self._ask(session, began, at_s, len(asking))))
            return list(await asyncio.gather(*asking))

    async def _ask(self, session: aiohttp.ClientSession, began: float, at_s: float, number: int) -> Outcome:
        place = number % len(self._questions)
        question, late_s = self._questions[place], time.perf_counter() - began - at_s
        self.open += 1
        answer = await _answer(session, question)
        self.open -= 1
        fault = answer.fault or (None if answer.text == self._expected[place] else "another answer than before the load")
        ttft_s = None if answer.ttft_s is None else late_s + answer.ttft_s
        return Outcome(at_s, ttft_s, time.perf_counter() - began - at_s, answer.tokens, fault)

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(self._url, connector=aiohttp.TCPConnector(limit=_MOST_OPEN))


class _Answer(NamedTuple):
    text: str
    ttft_s: float | None
    tokens: int
    fault: str | None


async def _answer(session: aiohttp.ClientSession, question: Question) -> _Answer:
    """Reads a stream as it comes and looks into it when it is over: the clients share the machine with what they ask."""
    body = {"messages": question.messages, "max_tokens": question.max_tokens, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    began, ttft_s, content = time.perf_counter(), None, bytearray()
    try:
        async with session.post("/v1/chat/completions", json=body) as response:
            async for chunk in response.content.iter_any():
                content += chunk
                if ttft_s is None and _TEXT.search(content):
                    ttft_s = time.perf_counter() - began
        text, tokens = _read(content.decode(), question.max_tokens)
    except Exception as error:  # noqa: BLE001 - whatever a client sees instead of an answer is what is counted here
        return _Answer("", ttft_s, 0, f"{type(error).__name__}: {error}"[:500])
    return _Answer(text, ttft_s, tokens, None)


def _read(content: str, max_tokens: int) -> tuple[str, int]:
    """Text and number of tokens of a stream.

    Raises:
        ValueError: it is not whole, or no stream of an answer.
    """
    events = [line.removeprefix("data: ") for line in content.splitlines() if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        raise ValueError(f"the stream does not end as it should: {content[-300:]!r}")
    parsed = [json.loads(event) for event in events[:-1]]
    choices = [choice for event in parsed for choice in event["choices"]]
    usage = next(event["usage"] for event in reversed(parsed) if event.get("usage"))
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    if reasons != ["length"] or usage["completion_tokens"] != max_tokens:
        raise ValueError(f"the answer ends by {reasons} with {usage['completion_tokens']} tokens of {max_tokens}")
    return "".join(choice["delta"].get("content") or "" for choice in choices), usage["completion_tokens"]
