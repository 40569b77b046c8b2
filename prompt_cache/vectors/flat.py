"""Any Redis from 6.2 on, without modules: each process keeps the vectors of the scopes it asks about in a matrix, current before every search."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from redis.asyncio import Redis

from prompt_cache.embedding.embedder import Vector
from prompt_cache.vectors import ledger_script
from prompt_cache.vectors.keyspace import Keyspace
from prompt_cache.vectors.matrix import Matrix
from prompt_cache.vectors.packing import pack_vector
from prompt_cache.vectors.resident_scopes import ResidentScopes
from prompt_cache.vectors.scripted_store import Row, Script, ScriptedStore
from prompt_cache.vectors.vector_store import Neighbour, StoreLimits

# Removals that a scope remembers. A process that has missed more than that reads the scope anew.
_MAX_GONE = 1024

# Vectors in one reply: a megabyte or so, which holds nobody up.
_PAGE = 512

# Entries looked at beyond those wanted, in case some are gone; and for those that were, next time.
_SPARE = 8

# The order of changes: sorted sets of entries by the number of their last change (KEYS[4]), and of removed ones (KEYS[5]).
_INDEX = f"""
local index, gone = KEYS[4], KEYS[5]

local function index_is_sound(count)
  return redis.pcall('ZCARD', index) == count and type(redis.pcall('ZCARD', gone)) == 'number'
end

local function next_number()
  return redis.call('HINCRBY', KEYS[3], '#seq', 1)
end

local function index_put(id, vector)
  redis.call('ZREM', gone, id)
  redis.call('ZADD', index, next_number(), id)
end

local function index_drop(id, known)
  if known then
    redis.call('ZREM', index, id)
    redis.call('ZADD', gone, next_number(), id)
    if redis.call('ZCARD', gone) > {_MAX_GONE} then
      redis.call('HSET', KEYS[3], '#floor', redis.call('ZPOPMIN', gone)[2])
    end
  end
end

local function more_fields(vector)
  return {{'v', vector}}
end
"""

# Of the ids in ARGV from `first` on: id, number of the last change, bytes, observations and ms left of the first k that are there.
_FETCHING = """
local function fetch(first, k, max_bytes)
  local found, live = {}, 0
  for i = first, #ARGV do
    if live == k then
      break
    end
    local data, observed, left = read(ARGV[i], max_bytes)
    if data then
      live = live + 1
      for _, value in ipairs({ARGV[i], redis.call('ZSCORE', index, ARGV[i]), data, observed, left}) do
        found[#found + 1] = value
      end
    end
  end
  return found
end
"""

# ARGV: 3 epoch known, "0" = none; 4 number of the last change known; 5 bytes of a vector; 6 k, 7 max bytes of an entry, ids from 8 on.
# Returns corrupt, epoch ("0" = the scope is empty), whether what is known is of no use, number up to which this is, whether that is all,
# ids removed, ids and vectors changed; and if nothing changed, whether that is so and the first k of the ids that are there.
_CHANGES = f"""
local sound = is_sound()
if not sound or redis.call('EXISTS', records) == 0 then
  return {{corrupt, '0', 0, 0, 1, {{}}, {{}}, 0, {{}}}}
end
sweep(16)
local epoch, since = redis.call('HGET', records, '#epoch'), tonumber(ARGV[4])
local upto = counter('#seq')
if ARGV[3] == '0' then
  since = 0
elseif ARGV[3] ~= epoch or since < counter('#floor') or since > upto then
  return {{corrupt, epoch, 1, 0, 0, {{}}, {{}}, 0, {{}}}}
elseif since == upto then
  local found = fetch(8, tonumber(ARGV[6]), tonumber(ARGV[7]))
  return {{corrupt, epoch, 0, upto, 1, {{}}, {{}}, 1, found}}
end
local changes = redis.call('ZRANGEBYSCORE', index, '(' .. string.format('%.17g', since), '+inf', 'WITHSCORES', 'LIMIT', 0, {_PAGE})
local is_all = 1
if #changes == {2 * _PAGE} then
  upto, is_all = tonumber(changes[#changes]), 0
end
local removed = {{}}
if since > 0 then
  removed = redis.call('ZRANGEBYSCORE', gone, '(' .. string.format('%.17g', since), upto, 'LIMIT', 0, {_MAX_GONE})
end
local vectors = {{}}
for i = 1, #changes, 2 do
  local id = changes[i]
  local key = entries .. id
  local length = redis.pcall('HSTRLEN', key, 'v')
  if length == tonumber(ARGV[5]) then
    vectors[#vectors + 1] = id
    vectors[#vectors + 1] = redis.call('HGET', key, 'v')
  elseif redis.call('EXISTS', key) == 0 then
    forget(id)
  else
    forget_corrupt(id)
  end
end
return {{corrupt, epoch, 0, upto, is_all, removed, vectors, 0, {{}}}}
"""

# ARGV: 3 epoch, 4 k, 5 max bytes of an entry, ids from 6 on. Returns corrupt, and the first k that are there.
_FETCH = """
local found = {}
if is_sound() and redis.call('HGET', records, '#epoch') == ARGV[3] then
  found = fetch(6, tonumber(ARGV[4]), tonumber(ARGV[5]))
end
return {corrupt, found}
"""


class _Changes(NamedTuple):
    epoch: int
    is_stale: bool
    upto: int
    is_all: bool
    removed: list[str]
    vectors: list[tuple[str, Vector]]
    # If nothing changed: what was asked for besides.
    found: list[Any] | None


class _Progress(NamedTuple):
    # Whether all that is known is still so, and is all.
    is_current: bool
    # If it was so before: what was asked for besides.
    found: list[Any] | None


class _Resident:
    """What the process knows of a scope: its vectors as of a change."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix
        # Of the scope's records, which are new whenever they were lost; 0 = nothing is known.
        self.epoch = 0
        self.upto = 0
        # Held while all is read: a thousand searches that find nothing known read it once.
        self.reading = asyncio.Lock()

    def forget(self) -> None:
        self.matrix.clear()
        self.epoch = self.upto = 0


class FlatStore(ScriptedStore):
    """Entries found in the process, exactly: every vector of the scope is compared.

    A search is one round trip as long as nothing changes in the scope: those that are nearest as far as the process knows are asked for, on the
    condition that it knows all. If not, it gets what changed, and then, in a second one, the nearest.

    Args:
        redis: a client that does not decode replies.
        dimensions: of all vectors.
        limits: of each scope.
        max_resident_bytes: what the matrices of all scopes may take together; the scope that was asked about longest ago goes. Of a scope
            that takes more alone, the newest entries are found.
    """

    name = "flat"

    def __init__(self, redis: Redis, *, dimensions: int, limits: StoreLimits, max_resident_bytes: int = 256 * 1024 * 1024) -> None:
        super().__init__(redis, keyspace=Keyspace("flat"), index=_INDEX, dimensions=dimensions, limits=limits)
        self._changes_script = Script(_INDEX, ledger_script.LEDGER, _FETCHING, _CHANGES)
        self._fetch_script = Script(_INDEX, ledger_script.LEDGER, _FETCHING, _FETCH)
        self._max_resident_bytes = max_resident_bytes
        self._resident: ResidentScopes[_Resident] = ResidentScopes(max_resident_bytes)

    @property
    def resident_bytes(self) -> int:
        """What the matrices take."""
        return self._resident.num_bytes

    async def search(self, scope: str, vector: Vector, k: int) -> list[Neighbour]:
        """See `VectorStore`."""
        pack_vector(vector, self._dimensions)
        resident = self._resident.use(scope)
        if resident is None or not resident.epoch:
            resident = await self._current(scope)
        else:
            near = resident.matrix.nearest(vector, k + _SPARE)
            progress = await self._catch_up(scope, resident, k, [row.entry_id for row in near])
            if progress.found is not None:
                cosines = dict(near)
                rows = await self._rows(scope, progress.found)
                if len(rows) == min(k, len(near)):
                    return [Neighbour(row.entry_id, cosines[row.entry_id], row.data, row.observations, row.ttl_s) for row in rows]
            if not progress.is_current:
                resident = await self._current(scope)
        return await self._nearest(scope, resident, vector, k)

    async def purge(self, scope: str) -> None:
        """See `VectorStore`."""
        await super().purge(scope)
        self._resident.drop(scope)

    async def _nearest(self, scope: str, resident: _Resident, vector: Vector, k: int) -> list[Neighbour]:
        """The nearest of what is known that is there."""
        hits: list[Neighbour] = []
        looked: set[str] = set()
        spare = _SPARE
        while len(hits) < k:
            # Those looked at are among the nearest, so that many more bring that many new ones.
            near = [row for row in resident.matrix.nearest(vector, len(looked) + k + spare) if row.entry_id not in looked]
            if not near:
                break
            missing = k - len(hits)
            cosines = dict(near)
            epoch, upto = resident.epoch, resident.upto
            for row in await self._fetch(scope, epoch, missing, list(cosines)):
                # One that changed after the matrix was brought up to date has another vector now.
                if int(float(row.score)) <= upto:
                    hits.append(Neighbour(row.entry_id, cosines[row.entry_id], row.data, row.observations, row.ttl_s))
            if resident.epoch != epoch:
                break
            looked |= cosines.keys()
            spare *= 8
        return hits

    async def _current(self, scope: str) -> _Resident:
        """The scope's vectors, as of now or later."""
        resident = self._resident.use(scope)
        if resident is None:
            resident = _Resident(Matrix(self._dimensions, self._max_resident_bytes))
            self._resident.keep(scope, resident, resident.matrix.num_bytes)
        while not (resident.epoch and (await self._catch_up(scope, resident)).is_current):
            async with resident.reading:
                if not resident.epoch:
                    await self._read_all(scope, resident)
                    break
        if len(resident.matrix):
            self._resident.keep(scope, resident, resident.matrix.num_bytes)
        else:
            self._resident.drop(scope)
        return resident

    async def _read_all(self, scope: str, resident: _Resident) -> None:
        """Reads a scope of which nothing is known."""
        resident.forget()
        epoch = upto = 0
        is_all = False
        while not is_all:
            changes = await self._changes(scope, epoch, upto)
            if changes.is_stale or not changes.epoch:
                # It was lost while it was read.
                resident.matrix.clear()
            else:
                await self._apply(scope, changes, resident.matrix)
            epoch, upto = (0, 0) if changes.is_stale else (changes.epoch, changes.upto)
            is_all = changes.is_all
        resident.epoch, resident.upto = epoch, upto

    async def _catch_up(self, scope: str, resident: _Resident, k: int = 0, entry_ids: Sequence[str] = ()) -> _Progress:
        """Applies what changed. Others may do the same at the same time: what they have applied already is not applied again.

        Args:
            k: entries wanted.
            entry_ids: of which, if nothing changed.
        """
        while True:
            epoch, upto = resident.epoch, resident.upto
            changes = await self._changes(scope, epoch, upto, k, entry_ids)
            if resident.epoch != epoch:
                return _Progress(False, None)
            if changes.is_stale or changes.epoch != epoch:
                # If others have got further meanwhile, it was only too far behind.
                if resident.upto == upto:
                    resident.forget()
                return _Progress(False, None)
            if changes.found is not None:
                return _Progress(True, changes.found)
            if changes.upto > resident.upto:
                resident.upto = changes.upto
                await self._apply(scope, changes, resident.matrix)
            if changes.is_all:
                self._resident.keep(scope, resident, resident.matrix.num_bytes)
                return _Progress(True, None)
            entry_ids = ()

    async def _changes(self, scope: str, epoch: int, upto: int, k: int = 0, entry_ids: Sequence[str] = ()) -> _Changes:
        arguments = (epoch, upto, 4 * self._dimensions, k, self._limits.max_entry_bytes, *entry_ids)
        reply: Any = await self._changes_script.run(self._redis, self._keys.scope(scope), scope, *arguments)
        corrupt, now, is_stale, last, is_all, removed, flat, is_unchanged, found = reply
        self.corrupt += corrupt
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return _Changes(
            epoch=int(now),
            is_stale=bool(is_stale),
            upto=last,
            is_all=bool(is_all),
            removed=[entry_id.decode() for entry_id in removed],
            vectors=[(entry_id.decode(), np.frombuffer(data, "<f4")) for entry_id, data in pairs],
            found=found if is_unchanged else None,
        )

    async def _fetch(self, scope: str, epoch: int, k: int, entry_ids: list[str]) -> list[Row]:
        """The first k of the entries that are there, in this order; none if the scope is no longer the one that is known."""
        arguments = (scope, epoch, k, self._limits.max_entry_bytes, *entry_ids)
        reply: Any = await self._fetch_script.run(self._redis, self._keys.scope(scope), *arguments)
        self.corrupt += reply[0]
        return await self._rows(scope, reply[1])

    async def _apply(self, scope: str, changes: _Changes, matrix: Matrix) -> None:
        for entry_id in changes.removed:
            matrix.discard(entry_id)
        garbage = [entry_id for entry_id, vector in changes.vectors if not matrix.put(entry_id, vector)]
        await self._remove_garbage(scope, garbage)
