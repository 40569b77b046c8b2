"""The generation of each tenant's entries: part of their names, so that raising it forgets them all at once, on every gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from prompt_cache.guarded_redis import GuardedRedis

# A number that Redis has lost is not begun again at 0, or what was purged would come back with it: a new one is the time, which is higher.
# For the same reason it may expire, if only later than every entry. Keys: the number. Arguments: its life in ms, whether to raise it.
_SCRIPT = """
if redis.call('TYPE', KEYS[1]).ok ~= 'string' then redis.call('DEL', KEYS[1]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local number = tonumber(redis.call('GET', KEYS[1]) or '')
if not number or number < 0 or number >= 2^53 or number ~= math.floor(number) then
  number = now
elseif ARGV[2] == '1' then
  number = math.max(number + 1, now)
end
local text = string.format('%.0f', number)
redis.call('SET', KEYS[1], text, 'PX', ARGV[1])
return text
"""
_LIFE_MS = 400 * 24 * 3600 * 1000
# Namespaces remembered; the one that was heard of first is forgotten, and read again.
_MAX_NAMESPACES = 10_000


@dataclass(slots=True)
class _Known:
    # None = Redis has not told it yet.
    number: int | None
    # When it was last read, or tried to.
    asked_at: float
    reading: asyncio.Task[None] | None = None


class Generations:
    """Numbers of generations, kept in Redis for all gateways, or in the process if there is none.

    A purge counts at once in its own gateway, and in another one after twice `refresh_s` at most. While Redis cannot be reached the last
    known numbers stay: what a gateway has in its own store lives no longer than that store lets it.

    Args:
        guarded: Redis; None = numbers are the process's own.
        refresh_s: how old a number may be before it is read again.
        clock: seconds, never falling.
    """

    def __init__(self, guarded: GuardedRedis | None, *, refresh_s: float = 1.0, clock: Callable[[], float]) -> None:
        self._guarded = guarded
        self._refresh_s = refresh_s
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def current(self, namespace: str) -> int | None:
        """The number of a tenant's generation; None = it is not known, and nothing that is kept may be given.

        Waits for Redis, as long as for a lookup, if the number is unknown or was not asked for lately.
        """
        known = self._known.get(namespace)
        if known is None:
            known = self._remember(namespace)
        age_s = self._clock() - known.asked_at
        if self._guarded is None or (age_s < self._refresh_s and known.reading is None):
            return known.number
        if known.reading is None:
            known.reading = asyncio.create_task(self._read(namespace, known), name="prompt-cache-generation")
        if known.number is None or age_s >= 2 * self._refresh_s:
            await asyncio.shield(known.reading)
        return known.number

    async def purge(self, namespace: str) -> int | None:
        """Begins a new generation: nothing that was kept before is found again. Its number; None = Redis could not be told, and nothing changed."""
        known = self._known.get(namespace) or self._remember(namespace)
        number = (known.number or 0) + 1 if self._guarded is None else await self._ask(self._guarded, namespace, raises=True)
        self._heard(known, number)
        return number

    async def close(self) -> None:
        """Ends what is being read."""
        reading = [known.reading for known in self._known.values() if known.reading is not None]
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)

    def _remember(self, namespace: str) -> _Known:
        while len(self._known) >= _MAX_NAMESPACES:
            self._known.pop(next(iter(self._known)))
        number = None if self._guarded is not None else 0
        known = self._known[namespace] = _Known(number, self._clock() - 2 * self._refresh_s)
        return known

    async def _read(self, namespace: str, known: _Known) -> None:
        assert self._guarded is not None, "without a Redis nothing is read"
        try:
            self._heard(known, await self._ask(self._guarded, namespace, raises=False))
        finally:
            known.asked_at = self._clock()
            known.reading = None

    def _heard(self, known: _Known, number: int | None) -> None:
        if number is not None:
            # Replies may overtake each other, and a replica that was promoted may be behind: what was purged stays purged.
            known.number = max(number, known.number or 0)

    async def _ask(self, guarded: GuardedRedis, namespace: str, *, raises: bool) -> int | None:
        return await guarded.attempt(self._run(guarded, namespace, raises)) if guarded.usable() else None

    async def _run(self, guarded: GuardedRedis, namespace: str, raises: bool) -> int:
        # Once a second at most: not worth what EVALSHA takes to load and to load again.
        arguments = (f"triserve:cache:generation:{namespace}", _LIFE_MS, int(raises))
        return int(await guarded.redis.eval(_SCRIPT, 1, *arguments))
