"""What is asked of Redis about flights: two scripts, each one round trip, and the names of their keys.

The lease says who leads: the leader's token, for as long as it renews it. The stream holds what it delivered. Every write checks the token, so
that a leader that lost its lease, and does not know it yet, writes nothing more. The watch says that somebody follows: as long as nobody does,
the leader writes seldom.

EVALSHA rather than Redis functions: the same one round trip, from Redis 6.2 on where functions need 7; a script is named by its own hash, so that
gateways of two releases share a server, where a function of one name is the one that was loaded last; and nobody needs FUNCTION LOAD.

A user of Redis who may not do all of this (`+evalsha +eval +script|load +get +set +del +type +pexpire +xadd +xlen +xrange +xread`) flies alone.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from prompt_cache.keys import SCHEMA_VERSION, CacheKey

logger = logging.getLogger(__name__)

# What a leader writes: deltas, the end of the answer, or that it gave up. "drop" gives the lease back and writes nothing.
RecordKind = Literal["more", "end", "gone", "drop"]

# Keys: lease, stream, watch. Arguments: token, lease in ms, life of the watch in ms, bound on entries, bound on bytes.
# Keys that hold another type are rubbish, and are removed: left there, they would keep the question from ever flying.
_BOARD = """
local function clear(key, type)
  local held = redis.call('TYPE', key).ok
  if held ~= type and held ~= 'none' then redis.call('DEL', key) end
end
clear(KEYS[1], 'string')
clear(KEYS[2], 'stream')
local most = tonumber(ARGV[4])
local entries, bytes = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', most), 0
for _, entry in ipairs(entries) do bytes = bytes + #entry[2][2] end
if #entries >= most or bytes > tonumber(ARGV[5]) then return {'full', '', {}} end
local holder = redis.call('GET', KEYS[1])
if holder then
  redis.call('SET', KEYS[3], '', 'PX', ARGV[3])
  return {'follow', holder, entries}
end
if #entries > 0 and entries[#entries][2][1] == 'end' then return {'follow', '', entries} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {'lead', ARGV[1], entries}
"""

# Keys: lease, stream, watch. Arguments: token, lease in ms, life of the stream in ms, bound on entries, kind or nothing, record.
# 0 = not written, 1 = written, 2 = written, and somebody follows. A stream that is full ends the lead: its followers find it full, too, and go
# their own ways.
_PUT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[5] ~= '' and ARGV[5] ~= 'drop' then
  if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[4]) then
    redis.call('DEL', KEYS[1])
    return 0
  end
  redis.call('XADD', KEYS[2], '*', ARGV[5], ARGV[6])
end
if ARGV[5] == 'gone' or ARGV[5] == 'drop' then redis.call('DEL', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1 + redis.call('PEXPIRE', KEYS[3], ARGV[3])
"""
_BOARD_SHA = hashlib.sha1(_BOARD.encode(), usedforsecurity=False).hexdigest()
_PUT_SHA = hashlib.sha1(_PUT.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, kw_only=True)
class FlightLimits:
    """Bounds of flights that gateways share.

    Raises:
        ValueError: one is not above 0; names it and the value.

    Attributes:
        lease_s: How long a leader that says nothing is believed to live. It renews three times as often.
        look_every_s: How often followers look whether the lease is still their leader's.
        publish_every_s: How often what leaders made is written; what came in between goes together.
        publish_unwatched_every_s: The same as long as nobody follows: most questions are asked once at a time.
        linger_s: How long a finished flight can still be joined. The prompt cache has the answer by then.
        max_records: Entries of a stream, and
        max_bytes: their size together; followers of a longer answer make its rest themselves.
        max_follows: Flights of others that this process follows at once; beyond, answers are made here.
    """

    lease_s: float = 2.0
    look_every_s: float = 0.5
    publish_every_s: float = 0.02
    publish_unwatched_every_s: float = 0.25
    linger_s: float = 10.0
    max_records: int = 8192
    max_bytes: int = 2 * 1024 * 1024
    max_follows: int = 256

    def __post_init__(self) -> None:
        for item in fields(self):
            if not getattr(self, item.name) > 0:
                raise ValueError(f"{item.name} is {getattr(self, item.name)}, it must be above 0")


class FlightNames(NamedTuple):
    """The keys of a flight in Redis; the braces put them on the same node of a cluster."""

    lease: str
    stream: str
    watch: str

    @classmethod
    def of(cls, key: CacheKey) -> FlightNames:
        """Those of a question."""
        prefix = f"triserve:cache:{SCHEMA_VERSION}:{{{key.digest}}}"
        return cls(f"{prefix}:f", f"{prefix}:s", f"{prefix}:w")


class StreamEntry(NamedTuple):
    """An entry as Redis has it."""

    entry_id: bytes
    # Empty if the entry is none of ours.
    data: bytes

    @classmethod
    def of(cls, entry_id: bytes, values: Sequence[bytes]) -> StreamEntry:
        """An entry of so many values.

        Raises:
            ValueError: the id is none.
        """
        id_order(entry_id)
        return cls(entry_id, values[0] if len(values) == 1 else b"")


def id_order(entry_id: bytes) -> tuple[int, int]:
    """What orders a stream's entries.

    Raises:
        ValueError: the id is none.
    """
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)


class Boarded(NamedTuple):
    """What boarding found."""

    state: Literal["lead", "follow", "full", "refused"]
    # Token of the leader; empty if the flight has ended.
    holder: bytes
    entries: list[StreamEntry]


class Put(NamedTuple):
    """What a leader wants written; no kind = only its lease renewed."""

    names: FlightNames
    token: str
    kind: RecordKind | None
    data: bytes


class Written(NamedTuple):
    """What became of a put."""

    written: bool
    # Whether somebody follows.
    watched: bool


class FlightScripts:
    """The scripts on one Redis.

    Args:
        redis: where.
        limits: bounds.

    Attributes:
        refused: What Redis answered with an error: a missing permission, no memory. That is no failing Redis, and opens no breaker.
    """

    def __init__(self, redis: Redis, limits: FlightLimits) -> None:
        self.refused = 0
        self._redis = redis
        self._limits = limits

    async def board(self, names: FlightNames, token: str) -> Boarded:
        """Takes the lease if it is free and the flight has not ended, and reads the stream.

        Raises:
            RedisError, ValueError: Redis did not answer, or something else.
        """
        limits = self._limits
        times = (_ms(limits.lease_s), _ms(limits.lease_s + limits.linger_s))
        arguments = (*names, token, *times, limits.max_records, limits.max_bytes)
        try:
            try:
                reply = await self._redis.evalsha(_BOARD_SHA, len(names), *arguments)
            except NoScriptError:
                reply = await self._redis.eval(_BOARD, len(names), *arguments)
        except ResponseError as error:
            self.note_refusal(error)
            return Boarded("refused", b"", [])
        try:
            state, holder, entries = reply
            if state not in (b"lead", b"follow", b"full"):
                raise ValueError
            return Boarded(state.decode(), bytes(holder), [StreamEntry.of(entry_id, pairs[1::2]) for entry_id, pairs in entries])
        except (AttributeError, TypeError, ValueError):
            raise ValueError("Redis answers a script with something else") from None

    async def put(self, puts: list[Put]) -> list[Written | Exception]:
        """Writes records, each if its leader holds the lease, and renews the leases. For each what became of it, or what Redis said.

        Raises:
            RedisError: none was, or it is not known.
        """
        replies = await self._put(puts)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            try:
                await self._redis.script_load(_PUT)
            except ResponseError as error:
                return [error] * len(puts)
            replies = await self._put(puts)
        return [reply if isinstance(reply, Exception) else Written(reply in (1, 2), reply == 2) for reply in replies]

    def note_refusal(self, error: Exception) -> None:
        """Counts what Redis refused, and logs the first of it."""
        if not self.refused:
            logger.warning("Redis refuses what flights across gateways need, this once among others: %r", error)
        self.refused += 1

    async def _put(self, puts: list[Put]) -> list[Any]:
        limits = self._limits
        async with self._redis.pipeline(transaction=False) as pipeline:
            for put in puts:
                lease_s = limits.linger_s if put.kind == "end" else limits.lease_s
                stream_s = limits.linger_s if put.kind == "end" else limits.lease_s + limits.linger_s
                times = (_ms(lease_s), _ms(stream_s), limits.max_records)
                pipeline.evalsha(_PUT_SHA, len(put.names), *put.names, put.token, *times, put.kind or "", put.data)
            return await pipeline.execute(raise_on_error=False)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
