"""What is shown of the answer to --ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from gateway.cli import up


def test_of_a_long_answer_the_beginning_is_shown_and_the_rest_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "_SHOWN_PIECES", 3)
    ended = []

    async def pieces(count: int) -> AsyncGenerator[str, None]:
        try:
            for number in range(count):
                yield str(number)
        finally:
            ended.append(count)

    async def shown(count: int) -> list[str]:
        return [piece async for piece in up._beginning(pieces(count))]

    assert asyncio.run(shown(2)) == ["0", "1"]
    assert asyncio.run(shown(9)) == ["0", "1", "2", " ..."]
    assert ended == [2, 9]
